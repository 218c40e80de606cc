"""Which input element each window position reads: one small index table per axis.

``taps(problem)[axis][o, k]`` is the input index that output position ``o`` reads through kernel position
``k``, or ``-1`` where it reads padding. Stride, dilation, the padding modes, rounding up and the
uneven windows of adaptive pools all end in this table, so that what follows it needs to know none of them.

A table takes no more memory than one axis of the padded input: windows that are evenly spaced are strided views
of one line of indices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from fastconv.problem import ConvProblem, PoolProblem, Sizes

Table: TypeAlias = NDArray[Any]
Range: TypeAlias = tuple[int, int]

# Longer lines of indices than this are made anew for every run: what is kept would be as large as the data.
_KEPT = 8192


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


class UnevenAxis(NamedTuple):
    """One axis of an adaptive pool whose windows differ in size or are unevenly spaced."""

    size: int
    out: int


def axes_of(problem: ConvProblem | PoolProblem) -> tuple[Axis | UnevenAxis, ...]:
    """Return the axes of a problem. Nothing here grows with their size."""
    if isinstance(problem, PoolProblem) and problem.is_adaptive:
        return tuple(_adaptive_axis(i, o) for i, o in zip(problem.input_size, problem.output_size, strict=True))
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


def _adaptive_axis(size: int, out: int) -> Axis | UnevenAxis:
    """Windows run from ``floor(o * size / out)`` to ``ceil((o + 1) * size / out)``, as PyTorch's adaptive pools.

    They are evenly spaced if and only if ``size`` is a multiple of ``out``, or one more than that.
    """
    stride, more = divmod(size, out)
    return UnevenAxis(size, out) if more > 1 or not stride else Axis(size, out, stride + more, stride, 1, 0, "zeros")


def taps(problem: ConvProblem | PoolProblem) -> tuple[Table, ...]:
    """Return the index table of every axis, shape (output size, kernel size). Read-only and shared."""
    return tuple(_taps(axis) for axis in axes_of(problem))


def taps_bytes(problem: ConvProblem | PoolProblem) -> int:
    """Return the memory that `taps` takes, making it included."""
    return 8 * sum(map(_length, axes_of(problem)))


def _taps(axis: Axis | UnevenAxis) -> Table:
    return (_small_table if _length(axis) <= _KEPT else _table)(axis)


def _length(axis: Axis | UnevenAxis) -> int:
    """Return the elements of the largest array behind a table, with the temporaries of an uneven one."""
    return axis.extent(axis.out) if isinstance(axis, Axis) else 2 * axis.size + 6 * axis.out


def _table(axis: Axis | UnevenAxis) -> Table:
    if isinstance(axis, UnevenAxis):
        start, stop = _uneven_windows(axis, (0, axis.out))
        table = start[:, None] + np.arange((stop - start).max())
        table[table[:, -1] >= stop, -1] = -1  # windows differ by one element at most
        table.flags.writeable = False
        return table
    line = source_line(axis)
    step = line.itemsize
    shape, strides = (axis.out, axis.kernel), (axis.stride * step, axis.dilation * step)
    return as_strided(line, shape, strides, writeable=False)


def source_line(axis: Axis) -> Table:
    """Return the input index of every padded position that an axis reads, ``-1`` for zero padding."""
    line = np.arange(*axis.span((0, axis.out)))
    for border in (line[: axis.before], line[axis.before + axis.size :]):
        border[...] = source_index(border, axis.size, axis.mode)
    return line


_small_table = lru_cache(maxsize=1024)(_table)


def _uneven_windows(axis: UnevenAxis, outputs: Range) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return where every window starts, and where it stops."""
    first, last = outputs
    edge = np.arange(first, last + 1) * axis.size
    return edge[:-1] // axis.out, -(-edge[1:] // axis.out)


def kernel_positions(sizes: Sizes) -> Iterator[tuple[int, ...]]:
    """Yield every index of a kernel of these sizes in row-major order; `itertools.product` would hold the ranges."""
    if not sizes:
        yield ()
        return
    for first in range(sizes[0]):
        for others in kernel_positions(sizes[1:]):
            yield first, *others


def source_index(position: NDArray[Any], size: int, mode: str) -> Table:
    """Map positions in the padded input to positions in the input, ``-1`` for zero padding."""
    if mode == "replicate":
        position = position.clip(0, size - 1)
    if mode == "circular":
        position = position % size
    if mode == "reflect":
        # The edge itself is not repeated: ... 2 1 | 0 1 2 ... n-1 | n-2 ...
        position = (size - 1) - abs((size - 1) - abs(position))
    return np.where((position >= 0) & (position < size), position, -1)


def divisors(problem: PoolProblem, outputs: Sequence[Range] | None = None) -> NDArray[np.float64]:
    """Return what an average pool divides the sums of its windows by, in the shape of the output positions.

    Padding counts if ``count_include_pad``, but never beyond the padded input, which a window that
    was rounded up may overhang (PyTorch's rule).

    Parameters
    ----------
    problem : PoolProblem
    outputs : sequence of (int, int), optional
        A range of output positions along every axis; all of them by default.
    """
    ranges = outputs or [(0, size) for size in problem.output_size]
    if problem.divisor_override is not None:
        return np.full([stop - start for start, stop in ranges], problem.divisor_override, np.float64)
    counts = (
        _reads(axis, after if problem.count_include_pad else None, o).astype(np.float64)
        for axis, (_, after), o in zip(axes_of(problem), problem.padding, ranges, strict=True)
    )
    return reduce(np.multiply.outer, counts)


def divisors_bytes(positions: Sequence[int]) -> int:
    """Return the memory that `divisors` takes for that many positions along every axis, making them included."""
    return 16 * math.prod(positions) + 48 * sum(positions)


def fewest_reads(axis: Axis) -> int:
    """Return how many different input elements every window reads along an axis, at least.

    Padding that repeats elements counts as none, as padding with zeros does.
    """
    # Windows that begin in the padding before, and those that end in the padding behind.
    before = min(axis.out, max(0, -(-axis.before // axis.stride)))
    behind = max(before, min(axis.out, (axis.size + axis.before - axis.extent(1)) // axis.stride + 1))
    borders = [_reads(axis, None, part) for part in ((0, before), (behind, axis.out)) if part[0] < part[1]]
    return min((int(reads.min()) for reads in borders), default=axis.kernel)


def fewest_uses(axis: Axis) -> int:
    """Return how many windows read an input element at the same kernel position, at least; not zeros for padding."""
    if axis.mode != "zeros":
        return axis.out
    place = axis.before - np.arange(axis.kernel) * axis.dilation
    first = -(-place // axis.stride)
    stop = -(-(axis.size + place) // axis.stride)
    uses = stop.clip(0, axis.out) - first.clip(0, axis.out)
    return int(uses.clip(0).min())


def _reads(axis: Axis | UnevenAxis, after: int | None, outputs: Range) -> NDArray[Any]:
    """Return how many positions every window has on the input, padding included unless ``after`` is None."""
    if isinstance(axis, UnevenAxis):
        begin, end = _uneven_windows(axis, outputs)
        lengths: NDArray[Any] = end - begin
        return lengths
    start = np.arange(*outputs) * axis.stride - axis.before
    before, size = (0, axis.size) if after is None else (axis.before, axis.size + after)
    # The first position at or after a place is the distance to it over the dilation, rounded up.
    first, stop = (-(-(place - start) // axis.dilation) for place in (-before, size))
    reads: NDArray[Any] = stop.clip(0, axis.kernel) - first.clip(0, axis.kernel)
    return reads
