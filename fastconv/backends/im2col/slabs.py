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
from typing import Any, NamedTuple

import numpy as np

from fastconv.geometry import Axis, Range, axes_of, kernel_positions, source_index
from fastconv.problem import ConvProblem, PoolProblem, Sizes


def even_axes(problem: ConvProblem | PoolProblem) -> tuple[Axis, ...] | None:
    """Return the axes of a problem, None if windows of an adaptive pool are uneven or repeated."""
    axes = axes_of(problem)
    # A window that is repeated has stride 0: what goes back through such a view would not add up.
    even = tuple(axis for axis in axes if isinstance(axis, Axis) and axis.stride)
    return even if len(even) == len(axes) else None


class Run(NamedTuple):
    """Padded positions that read the input at a constant step."""

    slab: slice
    source: slice
    is_repeated: bool


@lru_cache(maxsize=4096)
def _runs(axis: Axis, outputs: Range) -> tuple[Run, ...]:
    """Return the runs of the border before the input, of the input, and of the border after it."""
    (first, last), size = axis.span(outputs), axis.size
    found = []
    for start, stop in ((first, min(last, 0)), (max(first, 0), min(last, size)), (max(first, size), last)):
        if start >= stop:
            continue
        begin, end = source_index(np.array([start, stop - 1]), size, axis.mode).tolist()
        if begin < 0:  # zero padding
            continue
        step = -1 if end < begin else 1
        beyond = end + step
        source = slice(begin, beyond if beyond >= 0 else None, step)
        found.append(Run(slice(start - first, stop - first), source, begin == end and stop - start > 1))
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
    for tap in kernel_positions(tuple(axis.kernel for axis in axes)):
        view[(*lead, *tap)] += columns[(*lead, *tap)]
    if not inside:
        spread(target, dx, axes, outputs)
