"""Slabs: a padded piece of a map, the windows on it, and the way back.

A *slab* is what a range of output positions reads of a map, padding written out, so that its windows are a
plain strided view. It is filled run by run: along one axis the input indices that a range of padded
positions reads fall into a few runs of constant step (forward, backward in a reflected border, repeated in a
replicated one), and a slab is the product of the axes' runs. The same runs, read the other way, fold a
gradient's border back.

Maps are handed over as (leading axes, spatial axes); the leading ones are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastconv.geometry import source_index, taps
from fastconv.problem import ConvProblem, PoolProblem, Sizes

Range: TypeAlias = tuple[int, int]


class Axis(NamedTuple):
    """One spatial axis: evenly spaced windows of a size on a padded line."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int
    mode: str

    def extent(self, positions: int) -> int:
        """Return how much of the padded line that many neighbouring windows span."""
        return (positions - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    def span(self, outputs: Range) -> Range:
        """Return what these windows span, counted from the first input element."""
        first = outputs[0] * self.stride - self.before
        return first, first + self.extent(outputs[1] - outputs[0])

    def is_inside(self, outputs: Range) -> bool:
        """Whether these windows read no padding."""
        first, last = self.span(outputs)
        return first >= 0 and last <= self.size

    @property
    def is_point(self) -> bool:
        """Whether the windows are the elements themselves."""
        return self.kernel == 1 and self.stride == 1 and self.out == self.size and self.before == 0

    @property
    def is_whole(self) -> bool:
        """Whether the one window is the line itself."""
        return self.out == 1 and self.kernel == self.size and self.before == 0 and self._is_dense

    @property
    def is_tiled(self) -> bool:
        """Whether every element is read exactly once, in order."""
        tiles = self.out == 1 or self.stride == self.kernel
        return tiles and self._is_dense and self.before == 0 and self.out * self.kernel == self.size

    @property
    def _is_dense(self) -> bool:
        return self.dilation == 1 or self.kernel == 1


def axes_of(problem: ConvProblem | PoolProblem) -> tuple[Axis, ...] | None:
    """Return the axes of a problem, None if windows of an adaptive pool are uneven or repeated."""
    if isinstance(problem, PoolProblem) and problem.is_adaptive:
        axes = tuple(map(_even_axis, problem.input_size, taps(problem)))
        return None if None in axes else axes  # type: ignore[return-value]
    mode = problem.padding_mode if isinstance(problem, ConvProblem) else "zeros"
    return tuple(
        Axis(size, out, kernel, stride, dilation, before, mode)
        for size, out, kernel, stride, dilation, (before, _) in zip(
            problem.input_size,
            problem.output_size,
            problem.kernel_size,
            problem.stride,
            problem.dilation,
            problem.padding,
            strict=True,
        )
    )


def _even_axis(size: int, table: Any) -> Axis | None:
    out, kernel = table.shape
    stride = int(table[1, 0]) if out > 1 else 1
    if stride == 0:  # the same window again: what goes back through it would not add up
        return None
    even = np.arange(out)[:, None] * stride + np.arange(kernel)
    return Axis(size, out, kernel, stride, 1, 0, "zeros") if np.array_equal(table, even) else None


class Run(NamedTuple):
    """Padded positions that read the input at a constant step."""

    slab: slice
    source: slice
    is_repeated: bool


@lru_cache(maxsize=4096)
def _runs(axis: Axis, outputs: Range) -> tuple[Run, ...]:
    source = source_index(np.arange(*axis.span(outputs)), axis.size, axis.mode)
    step = np.diff(source)
    found, start = [], 0
    while start < len(source):
        if source[start] < 0:
            start += 1
            continue
        first, stride = int(source[start]), 0
        last = start
        if start < len(step) and source[start + 1] >= 0 and abs(step[start]) <= 1:
            stride = int(step[start])
            ends = np.flatnonzero((step[start:] != stride) | (source[start + 1 :] < 0))
            last = start + int(ends[0]) if len(ends) else len(source) - 1
        count = last - start + 1
        end = first + stride * count
        picked = slice(first, end if end >= 0 else None, stride) if stride else slice(first, first + 1)
        found.append(Run(slice(start, last + 1), picked, stride == 0 and count > 1))
        start = last + 1
    return tuple(found)


def _pairs(axes: Sequence[Axis], outputs: Sequence[Range]) -> Iterator[tuple[Any, Any, tuple[int, ...]]]:
    """Yield the index into the slab, the index into the map, and the spatial axes along which it repeats."""
    for runs in product(*map(_runs, axes, outputs)):
        repeated = tuple(i - len(runs) for i, run in enumerate(runs) if run.is_repeated)
        yield (..., *(r.slab for r in runs)), (..., *(r.source for r in runs)), repeated


def is_inside(axes: Sequence[Axis], outputs: Sequence[Range]) -> bool:
    """Whether windows at these outputs read no padding."""
    return all(axis.is_inside(o) for axis, o in zip(axes, outputs, strict=True))


def extent(axes: Sequence[Axis], positions: Sequence[int]) -> Sizes:
    """Return the spatial size of a slab for that many positions along every axis."""
    return tuple(axis.extent(o) for axis, o in zip(axes, positions, strict=True))


def region(x: Any, axes: Sequence[Axis], outputs: Sequence[Range]) -> Any:
    """Return the part of a map that windows at these outputs span; they read no padding."""
    return x[(..., *(slice(*axis.span(o)) for axis, o in zip(axes, outputs, strict=True)))]


def fill(slab: Any, x: Any, axes: Sequence[Axis], outputs: Sequence[Range], border: float = 0.0) -> None:
    """Copy what these outputs read of a map into a slab, ``border`` where they read zero padding."""
    if not is_inside(axes, outputs):
        slab[...] = border
    for there, here, _ in _pairs(axes, outputs):
        slab[there] = x[here]


def spread(slab: Any, dx: Any, axes: Sequence[Axis], outputs: Sequence[Range]) -> None:
    """Add a slab to the map it was read from: the adjoint of `fill`."""
    for there, here, repeated in _pairs(axes, outputs):
        part = slab[there]
        dx[here] += part.sum(repeated, keepdims=True) if repeated else part


def windows(slab: Any, axes: Sequence[Axis], positions: Sequence[int]) -> Any:
    """View a slab as (leading axes, kernel positions, output positions)."""
    lead = slab.ndim - len(axes)
    inner = slab.strides[lead:]
    shape = (*slab.shape[:lead], *(axis.kernel for axis in axes), *positions)
    by_tap = (axis.dilation * s for axis, s in zip(axes, inner, strict=True))
    by_position = (axis.stride * s for axis, s in zip(axes, inner, strict=True))
    strides = (*slab.strides[:lead], *by_tap, *by_position)
    return np.lib.stride_tricks.as_strided(slab, shape, strides)


@lru_cache(maxsize=1024)
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """Return the permutation that undoes another."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


class Scratch:
    """The buffers of one run, one for each role, allocated when first needed.

    Blocks shrink from the first to the last, so that a buffer is large enough once it is there.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self._flat: dict[str, Any] = {}

    def take(self, role: str, shape: Sequence[int], order: tuple[int, ...] | None = None) -> Any:
        """Return an array of a shape whose axes lie in memory in this order, outermost first."""
        size = math.prod(shape)
        flat = self._flat.get(role)
        if flat is None or flat.size < size:
            self._flat[role] = None
            flat = self._flat[role] = np.empty(size, self.dtype)
        if order is None:
            return flat[:size].reshape(shape)
        return flat[:size].reshape([shape[i] for i in order]).transpose(inverse(order))


def fold(columns: Any, dx: Any, axes: Sequence[Axis], outputs: Sequence[Range], slab: Callable[[Sizes], Any]) -> None:
    """Add a column matrix to the map it was unfolded from (col2im).

    Parameters
    ----------
    columns : ndarray
        (leading axes, kernel positions, output positions).
    dx : ndarray
        The map, (leading axes, spatial axes). Where the windows tile it, it is overwritten.
    slab : callable
        ``slab(shape)`` gives a buffer; asked for only where the windows overlap the border.
    """
    positions = [stop - start for start, stop in outputs]
    inside = is_inside(axes, outputs)
    target = region(dx, axes, outputs) if inside else slab((*dx.shape[: dx.ndim - len(axes)], *extent(axes, positions)))
    if not inside:
        target[...] = 0
    view = windows(target, axes, positions)
    lead = (slice(None),) * (dx.ndim - len(axes))
    if all(axis.is_tiled for axis in axes):
        view[...] = columns
        return
    for tap in product(*(range(axis.kernel) for axis in axes)):
        view[(*lead, *tap)] += columns[(*lead, *tap)]
    if not inside:
        spread(target, dx, axes, outputs)
