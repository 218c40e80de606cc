"""Running unfold and fold: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.formats import format_of
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.pool.scatter import ADD, TAKE
from fastconv.backends.cpu.pool.strides import is_dense
from fastconv.backends.cpu.scratch import address, aligned
from fastconv.backends.cpu.unfold.listed import lists, positions
from fastconv.backends.cpu.unfold.loops import CHANNELS, ELEMENTS, FIELDS, PATCHES, PHASES, ROWS, WOVEN, folds, unfolds
from fastconv.backends.cpu.unfold.work import FoldWork, Phases, UnfoldWork, Work
from fastconv.geometry import Axis
from fastconv.problem import Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64

# Where the addresses stand that every run fills in.
_X, _Y, _SLAB = (FIELDS.index(name) for name in ("x", "y", "slab"))


def _table(rows: Sequence[Any]) -> Any:
    return np.ascontiguousarray(rows, np.int64)


class _Runner(ABC):
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self._work, self.problem = work, work.problem
        self._tables: dict[str, Any] = {}
        self._workers, self._scratch = work.workers, work.workers * work.slab_bytes
        self._fields = self._known()
        self._records: dict[tuple[Sizes, Sizes], tuple[Any, int, int]] = {}

    @abstractmethod
    def _loops(self, how: int) -> Any:
        """Return the compiled loops."""

    @abstractmethod
    def _how(self, channel: int, column: int) -> int:
        """Return how elements get to their phases, from a map of these strides."""

    @abstractmethod
    def _lists(self) -> Any:
        """Return the compiled loops that go by a list of positions."""

    def _turned(self, channel: int, column: int, lanes: int, regular: bool) -> int:
        """Return what is to be transposed, if anything: lines of at least half a vector pay.

        ``regular`` says that the phases of a row lie side by side.
        """
        work, size = self._work, self._work.size
        if work.block > 1 and channel == size and 2 * work.block >= lanes:
            return CHANNELS
        # The unit's elements of a row have no others between them.
        together = work.block == 1 or (work.blocks == 1 and channel == size)
        length = work.block * len(work.phases[2].remainders)
        if together and column == work.block * size and regular and 2 * length >= lanes:
            return PHASES
        return ELEMENTS

    def _known(self) -> dict[str, int]:
        """Return the fields that do not depend on strides; the tables that they point to are kept."""
        work, p = self._work, self.problem
        f: dict[str, int] = {"channels": p.c, "block": work.block, "blocks": work.blocks}
        f |= {"bands": work.bands, "band": work.band, "slab_bytes": work.slab_bytes, "passes": int(work.passes)}
        for names, values in (
            (("depths", "heights", "width"), [axis.size for axis in work.axes]),
            (("od", "oh", "ow"), [axis.out for axis in work.axes]),
            (("kd", "kh", "kw"), [axis.kernel for axis in work.axes]),
            (("front", "above", "before"), [axis.before for axis in work.axes]),
            (("sd", "sh", "sw"), [axis.stride for axis in work.axes]),
        ):
            f |= dict(zip(names, values, strict=True))
        _, height, width = work.phases
        if work.is_listed:
            self._list = positions(p, work.position)
            f |= {"positions": address(self._list), "listed": len(self._list), "cells": math.prod(p.input_size)}
        return f | {
            "dd": work.axes[0].dilation,
            "nphases_h": len(height.remainders),
            "nphases_w": len(width.remainders),
        }

    def _keep(self, **tables: Any) -> dict[str, int]:
        """Return the addresses of tables, which live as long as the plan."""
        self._tables |= {name: _table(rows) for name, rows in tables.items()}
        return {name: address(self._tables[name]) for name in tables}

    def _do(self, x: Any, y: Any) -> bool:
        """Do the job on a map and its columns; return whether the loops can take them."""
        try:
            record, loops, units = self._records[x.strides, y.strides]
        except KeyError:
            record, loops, units = self._look(x.strides, y.strides)
        if record is None or not (x.flags.aligned and y.flags.aligned):
            return False
        job = record.copy()
        job[_X], job[_Y] = address(x), address(y)
        job[_SLAB] = scratch.take(self._scratch)
        threads.run(loops, address(job), units, self._workers)
        return True

    def _look(self, x: Sizes, y: Sizes) -> tuple[Any, int, int]:
        """Return the record for arrays of these strides, the loops and their units, and remember them.

        There is no record if columns have gaps.
        """
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        work, p = self._work, self.problem
        found: tuple[Any, int, int] = None, 0, 0
        if y[2] == work.size or p.y_shape[2] == 1:
            missing = (0,) * (3 - p.ndim)
            strides = dict(zip(("xn", "xc", "xd", "xh", "xw"), (*x[:2], *missing, *x[2:]), strict=True))
            f = {**self._fields, **strides, "yn": y[0], "yc": y[1]}
            # One row after the other, without gaps.
            f["passes"] &= f["heights"] == 1 or f["xh"] == f["width"] * f["xw"]
            whole = is_dense(x[2:], p.x_shape[2:], work.size) and is_dense(y[1:], p.y_shape[1:], work.size)
            if work.is_listed and whole:
                found = record_of(FIELDS, f), self._lists().address, p.n * p.c
            else:
                found = record_of(FIELDS, f), self._loops(self._how(x[1], x[-1])).address, work.units
        self._records[x, y] = found
        return found


class UnfoldRunner(_Runner):
    """Runs an unfold."""

    def __init__(self, work: Work) -> None:
        assert isinstance(work, UnfoldWork)
        self.work = work
        super().__init__(work)

    def _loops(self, how: int) -> Any:
        return unfolds(how, self.work.simd.vector_bytes, 8 * self.work.size)

    def _lists(self) -> Any:
        return lists(
            TAKE, self.work.position, abs(format_of(self.problem))
        )  # what is only moved is the same in both half formats

    def _how(self, channel: int, column: int) -> int:
        work = self.work
        if work.size != work.computed:  # halves are moved as they are, one by one
            return ELEMENTS
        remainders = work.phases[2].remainders
        regular = _is_range(remainders) and all(
            (start, stop) == (0, work.line) for start, stop, _ in self._tables["phases_w"]
        )
        return self._turned(channel, column, work.simd.lanes(work.size), regular)

    def _known(self) -> dict[str, int]:
        work = self.work
        columns = work.axes[2]
        _, height, width = work.phases
        row_phase = (work.band + height.reach) * work.line * work.size
        channel = len(height.remainders) * row_phase
        f = {"line": work.line, "row_phase": row_phase, "channel": channel, "column_phase": work.block * channel}
        f["level"] = len(width.remainders) * f["column_phase"]
        f |= self._keep(
            phases_h=height.remainders,
            phases_w=[_inside(columns, remainder, work.line) for remainder in width.remainders],
            taps_h=[phase * row_phase + shift * work.line * work.size for phase, shift in height.taps],
            taps_w=[phase * f["column_phase"] + shift * work.size for phase, shift in width.taps],
        )
        return super()._known() | f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        if not self._do(inputs[0], outputs[0]):
            result = np.empty(outputs[0].shape, outputs[0].dtype)
            self._do(aligned(inputs[0]), result)
            outputs[0][...] = result


class FoldRunner(_Runner):
    """Runs a fold."""

    def __init__(self, work: Work) -> None:
        assert isinstance(work, FoldWork)
        self.work = work
        super().__init__(work)

    def _loops(self, how: int) -> Any:
        return folds(how, self.work.lanes, format_of(self.problem))

    def _lists(self) -> Any:
        return lists(ADD, self.work.position, format_of(self.problem))

    def _how(self, channel: int, column: int) -> int:
        work, size = self.work, self.work.size
        stride, phases = work.axes[2].stride, len(work.phases[2].remainders)
        if stride == 1 and column == size and work.block == 1:
            return ROWS
        if work.patches and column == size:
            return PATCHES
        if stride == 2 and phases == 2 and column == size == work.computed:
            return WOVEN
        return self._turned(channel, column, work.lanes, _is_range(self._tables["phases_w"][:, 0].tolist()))

    def _known(self) -> dict[str, int]:
        work = self.work
        depth, rows, columns = work.axes
        width = work.phases[2]
        channel = work.line * work.computed
        f = {"line": work.line, "channel": channel, "column_phase": work.block * channel}
        f["level"] = len(width.remainders) * f["column_phase"]
        f["ahead"] = work.ahead
        # In the order in which the phases begin in a row.
        reached = sorted((*_reached(columns, remainder), n) for n, remainder in enumerate(width.remainders))
        row_bytes = columns.out * work.size
        tables: dict[str, Any] = {"phases_w": [phase[:3] for phase in reached]}
        entries: Any
        for name, entries in (
            ("d", _readers(depth, rows.kernel * columns.kernel, rows.out * row_bytes)),
            ("h", _readers(rows, columns.kernel, row_bytes)),
            ("w", [_taps_of(width, phase[3]) for phase in reached]),
        ):
            counts = [len(entry) for entry in entries]
            tables |= {f"reads_{name}": counts, f"from_{name}": np.cumsum([0, *counts[:-1]])}
            tables[f"taps_{name}"] = [pair for entry in entries for pair in entry] or [(0, 0)]
        return super()._known() | f | self._keep(**tables)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        if not self._do(outputs[0], inputs[0]):
            result = np.empty(outputs[0].shape, outputs[0].dtype)
            self._do(result, aligned(np.ascontiguousarray(inputs[0])))
            outputs[0][...] = result


def _inside(axis: Axis, remainder: int, length: int) -> tuple[int, int, int]:
    """Return which elements of a phase are in the map: from, to, and which one of the map the first is."""
    start = min(max(0, -(-(axis.before - remainder) // axis.stride)), length)
    stop = min(max(start, (axis.size - 1 + axis.before - remainder) // axis.stride + 1), length)
    return start, stop, start * axis.stride + remainder - axis.before


def _reached(axis: Axis, remainder: int) -> tuple[int, int, int]:
    """Return which elements of the map a phase is: the first, how many, and the first's place in the phase."""
    first = (remainder - axis.before) % axis.stride
    return first, max(0, -(-(axis.size - first) // axis.stride)), (first + axis.before - remainder) // axis.stride


def _readers(axis: Axis, taps: int, step: int) -> list[list[tuple[int, int]]]:
    """Return, for each element, the kernel positions that read it, times ``taps``, and their windows, times a step."""
    result = []
    for place in range(axis.before, axis.before + axis.size):
        windows = [divmod(place - k * axis.dilation, axis.stride) for k in range(axis.kernel)]
        result.append([(k * taps, o * step) for k, (o, rest) in enumerate(windows) if rest == 0 and 0 <= o < axis.out])
    return result


def _taps_of(phases: Phases, number: int) -> list[tuple[int, int]]:
    """Return the kernel positions of a phase, and their shifts."""
    return [(k, shift) for k, (phase, shift) in enumerate(phases.taps) if phase == number]


def _is_range(numbers: Sequence[int]) -> bool:
    """Whether each number is one more than the one before it."""
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
