"""Running a forward convolution: what all algorithms of the engine do alike, between arrays and compiled loops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastconv import arrays
from fastconv.backends.cpu import job, scratch
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.exponential import Finish
from fastconv.backends.cpu.scratch import address, contiguous
from fastconv.buffers import aligned
from fastconv.problem import AXES, ConvProblem, Sizes

# Bytes of a packed weight up to which a thread keeps the room for the next call: new memory takes longer than packing.
_MOST_KEPT = 16 << 20

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_STARTS = 64


def fresh(size: int) -> Any:
    """Return new memory of so many bytes, which begins with a line of the cache: no vector crosses two."""
    return aligned(size)


def kept(size: int) -> Any:
    """Return memory that this thread's next call uses again."""
    return scratch.room(size, "weight") if size <= _MOST_KEPT else fresh(size)


class Packed(NamedTuple):
    """A weight as the micro-kernel reads it, and the address of its first vector."""

    array: Any
    address: int


# Stands for a weight that is read where it is.
_AS_IT_IS = Packed(None, 0)


class Runner(ABC):
    """Runs one problem on arrays of any strides. An algorithm derives from it and describes its jobs.

    Parameters
    ----------
    problem : ConvProblem
    units, workers : int
        Units of work, and threads that share them.
    scratch_bytes : int
        Scratch of all workers together.
    """

    def __init__(self, problem: ConvProblem, units: int, workers: int, scratch_bytes: int) -> None:
        self.problem = problem
        self._units, self._workers, self._scratch = units, workers, scratch_bytes
        self._starts: dict[tuple[Sizes, Sizes], job.Start | None] = {}
        # That of the last run, whose arrays the next one's most often lie like.
        self._start: job.Start = job.never
        self._has_bias, self._has_residual, self._prepacked = (
            problem.bias != "none",
            problem.residual,
            problem.prepacked,
        )
        self._fused = problem.activation is None or problem.activation in FUSED
        self._finish = Finish(problem.activation, workers)
        self._constants = np.array(FUSED.get(problem.activation or "", (0, 0, 0)), problem.accumulator)
        #: Address of the activation's constants, 0 if it has none or is not fused.
        self.activation = address(self._constants) if problem.activation in FUSED else 0

    #: Bytes of scratch that are found without asking for them; what was written there before a run is lost.
    own_room = job.ROOM
    #: Whether the loops read the weight where it is, unless it was packed.
    in_place = False

    @abstractmethod
    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it, in memory that ``new(bytes)`` gives."""

    @abstractmethod
    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """Return what a job's fields are for arrays of these strides, in bytes: image, channel, depth, row, column.

        Returns
        -------
        fields : dict of str to int
            Those of `job.HEAD` left out; what is missing is 0.
        loops : int
            Address of the compiled loops.
        kept : any
            Arrays that the fields point to.

        None if the loops cannot read or write such arrays.
        """

    #: The fields of a job, those of `job.HEAD` first.
    fields: tuple[str, ...]

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        w, y = inputs[1], outputs[0]
        packed = w if self._prepacked else _AS_IT_IS if self.in_place else self.pack(w, kept)
        bias = inputs[2] if self._has_bias else None
        residual = inputs[-1] if self._has_residual else None
        slab = scratch.take(self._scratch) if self._scratch > self.own_room else 0
        if not self._start(inputs[0], w, y, bias, residual, packed[1], slab):
            self._run_otherwise(inputs, y, packed, slab)
        elif not self._fused:
            self._finish(y)

    def _run_otherwise(self, inputs: tuple[Any, ...], y: Any, packed: Any, slab: int) -> None:
        """Run on arrays that lie otherwise than those of the last run."""
        x = inputs[0]
        bias = contiguous(inputs[2]) if self._has_bias else None
        residual = inputs[-1] if self._has_residual else None
        start = None
        if x.flags.aligned and y.flags.aligned and _alike(residual, y):
            packed = self.pack(inputs[1], kept) if packed is _AS_IT_IS else packed
            w = packed[0] if self.in_place and not self._prepacked else None
            start = self._look(x, w, y, bias, residual)
        if start is None:
            self._run_apart(inputs, y)
            return
        self._start = start
        start(x, None, y, bias, residual, packed[1], slab)
        if not self._fused:
            self._finish(y)

    def _look(self, *arrays: Any) -> job.Start | None:
        """Return what does the job on x, w, y, bias and residual, None if the loops cannot read or write them."""
        x, y = arrays[0].strides, arrays[2].strides
        try:
            return self._starts[x, y]
        except KeyError:
            pass
        missing = (0,) * (len(AXES) - self.problem.ndim)
        found = self.describe((*x[:2], *missing, *x[2:]), (*y[:2], *missing, *y[2:]))
        start = None
        if found is not None:
            fields, loops, kept = found
            record = job.record_of(self.fields, fields)
            start = job.start_of(loops, record, self._units, self._workers, arrays, kept)
        if len(self._starts) >= _MOST_STARTS:
            self._starts.clear()
        self._starts[x, y] = start
        return start

    def _run_apart(self, inputs: tuple[Any, ...], y: Any) -> None:
        """Run on copies of what the loops cannot read, and into an array that they can write."""
        copies, result = list(inputs), self._laid_out(y.shape)
        for index in {0, len(inputs) - 1 if self._has_residual else 0}:
            copies[index] = self._laid_out(inputs[index].shape)
            copies[index][...] = inputs[index]
        # Not what a deriving class does before: it was done.
        Runner.run(self, tuple(copies), (result,))
        y[...] = result

    def _laid_out(self, shape: Sizes) -> Any:
        """Return a new array of the problem's memory order."""
        dtype = arrays.dtype_named(self.problem.dtype)
        if self.problem.layout == "channels_first":
            return np.empty(shape, dtype)
        return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), dtype), -1, 1)


def _alike(residual: Any, y: Any) -> bool:
    """Whether the loops find the residual's elements where they store the output's."""
    return residual is None or (residual.strides == y.strides and bool(residual.flags.aligned))
