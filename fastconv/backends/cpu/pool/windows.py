"""Where the windows of a pool lie along each axis, and what their sums are multiplied by."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv.geometry import Axis, UnevenAxis, axes_of, divisors
from fastconv.problem import AXES, PoolProblem

Windows = Axis | UnevenAxis
# Vectors that are permuted together at most, and elements of a row that are picked without a loop.
_PERMUTED, _FEW = 8, 4


class Span(NamedTuple):
    """Which elements of a line each window reads: the first, how many, ``step`` apart. Padding is left out."""

    starts: Any
    counts: Any
    step: int


def lifted(problem: PoolProblem) -> tuple[Windows, ...]:
    """Return depth, rows and columns; axes that the problem lacks have size 1."""
    missing: tuple[Windows, ...] = (Axis(1, 1, 1, 1, 1, 0, "zeros"),) * (len(AXES) - problem.ndim)
    return missing + axes_of(problem)


def span(axis: Windows) -> Span:
    """Return what the windows of an axis read."""
    o = np.arange(axis.out)
    if isinstance(axis, UnevenAxis):
        starts = o * axis.size // axis.out
        return Span(starts, -(-(o + 1) * axis.size // axis.out) - starts, 1)
    begin = o * axis.stride - axis.before
    first = -(-np.maximum(-begin, 0) // axis.dilation)
    stop = np.minimum(axis.kernel, -(-(axis.size - begin) // axis.dilation))
    return Span(begin + first * axis.dilation, stop - first, axis.dilation)


def cover(axis: Windows) -> Span:
    """Return which windows, neighbours of each other, read each element; for axes without dilation."""
    reads = span(axis)
    i = np.arange(axis.size)
    # Both ends of the windows ascend.
    first = np.searchsorted(reads.starts + reads.counts, i, side="right")
    return Span(first, np.searchsorted(reads.starts, i, side="right") - first, 1)


def alike(axis: Windows, maps: int) -> Any:
    """Return the rows of maps one below the other that the same windows read: the first, how many; windows likewise."""
    reads = cover(axis)
    breaks = np.flatnonzero(np.diff(reads.starts) | np.diff(reads.counts)) + 1
    first = np.concatenate([[0], breaks])
    rows = np.diff(np.concatenate([first, [axis.size]]))
    table = np.stack([first, rows, reads.starts[first], reads.counts[first]], axis=1)
    below = np.arange(maps)[:, None, None] * np.array([axis.size, 0, axis.out, 0])
    return np.ascontiguousarray((table + below).reshape(-1, 4), np.int64)


class Picks(NamedTuple):
    """What vectors of windows read of a line: where each begins, how far from there its windows do, and their counts.

    ``reach`` is the greatest number of elements that a vector of windows is spread over.
    """

    firsts: Any
    offsets: Any
    counts: Any
    reach: int

    @property
    def vectors(self) -> int:
        """Vectors of elements that hold what a vector of windows reads: a power of two; 0 if these are too many."""
        lanes = self.offsets.shape[1]
        vectors = 1 << (-(-self.reach // lanes) - 1).bit_length()
        return vectors if vectors <= _PERMUTED else 0

    @property
    def most(self) -> int:
        """The most elements that a window reads."""
        return int(self.counts.max())

    @property
    def few(self) -> int:
        """The same if these are picked without a loop, otherwise 0."""
        return self.most if self.most <= _FEW else 0


def picks(reads: Span, lanes: int) -> Picks:
    """Return what vectors of windows, or of elements that windows cover, read of a line."""
    more = -len(reads.starts) % lanes
    starts, counts = (np.pad(table, (0, more)).reshape(-1, lanes) for table in (reads.starts, reads.counts))
    far = np.iinfo(np.int64).max
    firsts = np.where(counts > 0, starts, far).min(axis=1)
    firsts[firsts == far] = 0
    offsets = np.where(counts > 0, starts - firsts[:, None], 0)
    reach = int((offsets + (counts - 1) * reads.step).max()) + 1
    return Picks(firsts, offsets, counts, max(reach, 1))


def dense(axis: Windows) -> bool:
    """Whether windows read neighbours."""
    return isinstance(axis, UnevenAxis) or axis.dilation == 1 or axis.kernel == 1


def scales(problem: PoolProblem) -> tuple[Any, Any]:
    """Return what sums are multiplied by: an array (depth, rows), and one of the columns or None if these are ones.

    The divisor is a product over the axes, so what it is along a column is known from one row.
    """
    # A window that reads something, where padding does not count: others may be divided by zero.
    best = [int(span(axis).counts.argmax()) for axis in axes_of(problem)]
    one = [(o, o + 1) for o in best]
    dtype = problem.accumulator
    size = float(math.prod(problem.kernel_size)) if problem.kind == "lp_pool" else 1.0
    along = [
        divisors(problem, [*one[:i], (0, out), *one[i + 1 :]]).ravel() for i, out in enumerate(problem.output_size)
    ]
    corner = divisors(problem, one).item() or math.nan  # where none reads anything
    lines = [np.ones(1)] * (len(AXES) - problem.ndim) + [line / corner for line in along]
    with np.errstate(divide="ignore"):
        rows = size / corner / np.multiply.outer(lines[0], lines[1])
        columns = 1 / lines[2]
    uniform = bool((columns == 1).all())
    return np.ascontiguousarray(rows, dtype), None if uniform else columns.astype(dtype)


def runs(axis: Windows) -> Any:
    """Return windows that differ in nothing but where they are: first, how many, the first's start, its count."""
    reads = span(axis)
    starts, counts = reads.starts, reads.counts
    rise = 1 if isinstance(axis, UnevenAxis) else axis.stride
    breaks = (np.diff(starts) != rise) | (np.diff(counts) != 0)
    first = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    length = np.diff(np.concatenate([first, [axis.out]]))
    return np.ascontiguousarray(np.stack([first, length, starts[first], counts[first]], axis=1), np.int64)


def padded(table: Any, lanes: int) -> Any:
    """Return a table as 64-bit integers, with zeros behind for the lanes of a vector."""
    return np.concatenate([table, np.zeros(lanes, np.int64)]).astype(np.int64)
