"""What all kernels of pools know of a problem: axes of windows, strides of maps, the threads that share maps out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastconv.backends.cuda.algorithm import Strides
from fastconv.backends.cuda.launching import Grid
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, LONG_FASTDIV, array, fastdiv, nested
from fastconv.geometry import Axis, UnevenAxis, axes_of
from fastconv.problem import PoolProblem

THREADS = 256
# Threads that a multiprocessor runs side by side: with fewer, a thread gets fewer results.
RESIDENT_THREADS = 2048
# Results that a row of the grid has at most, and elements that a map has: their numbers take 32 bits.
_MOST_UNITS = 2**32 - THREADS
_MOST_ELEMENTS = 2**31 - 1

# The structs of kernels/windows.cuh.
WINDOW_AXIS = nested(
    {
        **dict.fromkeys(("size", "out", "kernel", "stride", "dilation", "before", "counted", "uneven"), INT),
        **dict.fromkeys(("by_kernel", "by_stride", "by_dilation"), FASTDIV),
        **dict.fromkeys(("by_size", "by_out"), LONG_FASTDIV),
    }
)
MAP_STRIDES = nested({"image": LONG, "channel": LONG, "axis": array(LONG, 3)})
UNITS = nested(
    {
        **dict.fromkeys(("images", "group", "first", "rows", "channels_fastest"), INT),
        "by_channels": FASTDIV,
        "by_axis": array(FASTDIV, 3),
    }
)


class Windows(NamedTuple):
    """One axis: `geometry.Axis` in the kernels' terms, and where an average stops to count padding."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int
    counted: int
    uneven: bool

    @classmethod
    def of(cls, axis: Axis | UnevenAxis, after: int) -> Windows:
        if isinstance(axis, UnevenAxis):
            longest = -(-axis.size // axis.out) + 1
            return cls(axis.size, axis.out, longest, 1, 1, 0, axis.size, True)
        return cls(*axis[:6], axis.size + after, False)

    @property
    def step(self) -> float:
        """Elements from one window to the next."""
        return self.size / self.out if self.uneven else self.stride

    @property
    def extent(self) -> int:
        """Elements of the padded line that windows span."""
        return self.before + max(self.counted, (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1)

    @property
    def is_whole(self) -> bool:
        """Whether the one window is the line."""
        return (
            not self.uneven and self.out == 1 and self.kernel == self.size and self.before == 0 and self.dilation == 1
        )

    def is_full(self, with_padding: bool) -> bool:
        """Whether an average counts the same in every window."""
        last = (self.out - 1) * self.stride - self.before + (self.kernel - 1) * self.dilation
        inside = self.before == 0 or with_padding
        return not self.uneven and inside and last < (self.counted if with_padding else self.size)

    def packed(self) -> tuple[Any, ...]:
        """Return the values of the kernels' struct."""
        divisors = (fastdiv(d) for d in (self.kernel, self.stride, self.dilation))
        return (*self, *divisors, fastdiv(self.size, 64), fastdiv(self.out, 64))


POINT = Windows(1, 1, 1, 1, 1, 0, 1, False)


def windows(problem: PoolProblem) -> list[Windows]:
    """Return a problem's axes, always three."""
    axes = [Windows.of(axis, after) for axis, (_, after) in zip(axes_of(problem), problem.padding, strict=True)]
    return [POINT] * (3 - len(axes)) + axes


def three(sizes: Sequence[int], missing: int) -> tuple[int, int, int]:
    """Return sizes or strides of up to three axes as those of three."""
    a, b, c = (*(missing,) * (3 - len(sizes)), *sizes)
    return a, b, c


def map_strides(strides: Sequence[int]) -> tuple[int, int, tuple[int, int, int]]:
    """Return the strides of a map in the kernels' terms."""
    return strides[0], strides[1], three(strides[2:], 0)


def channels_fastest(strides: Sequence[int]) -> bool:
    """Whether a map's channels lie closer together than its columns."""
    channel, column = abs(strides[1]), abs(strides[-1])
    return channel != 0 and (column == 0 or channel < column)


def has_vectors(maps: Strides, channels: int, lanes: int, alignment: int) -> bool:
    """Whether all maps have channels side by side, so that `lanes` of them move together."""
    return (
        alignment >= 16
        and channels % lanes == 0
        and all(s[1] == 1 and all(step % lanes == 0 for step in (s[0], *s[2:])) for s in maps)
    )


class Units(NamedTuple):
    """How entries of a map are shared out: a thread has `rows` of them along the middle axis, of `lanes` channels."""

    images: int
    channels: int
    sizes: tuple[int, int, int]
    lanes: int
    rows: int
    channels_fastest: bool

    @property
    def an_image(self) -> int:
        d, h, w = self.sizes
        return self.channels // self.lanes * d * -(-h // self.rows) * w

    @property
    def total(self) -> int:
        return self.images * self.an_image

    @property
    def group(self) -> int:
        """Images that a row of the grid has."""
        return max(1, min(self.images, _MOST_UNITS // self.an_image))

    def grid(self, a_block: int = THREADS) -> Grid:
        """Return the grid, for blocks that have so many units."""
        return -(-self.group * self.an_image // a_block), -(-self.images // self.group)

    def packed(self, first: int = 0) -> tuple[Any, ...]:
        """Return the values of the kernels' struct, for images from one on."""
        d, h, w = self.sizes
        by_axis = [fastdiv(size) for size in (d, -(-h // self.rows), w)]
        counts = (self.images, self.group, first, self.rows, self.channels_fastest)
        return *counts, fastdiv(self.channels // self.lanes), by_axis


def enough_threads(multiprocessors: int) -> int:
    """Return how many threads leave none of that many multiprocessors idle."""
    return multiprocessors * RESIDENT_THREADS


def several_rows(units: Units, most: int, multiprocessors: int) -> Units:
    """Return units of as many rows, up to `most`, as leave every multiprocessor enough threads."""
    enough = enough_threads(multiprocessors)
    while most > 1 and (units._replace(rows=most).total < enough or units.sizes[1] < most):
        most //= 2
    return units._replace(rows=most)


def too_large(problem: PoolProblem) -> str | None:
    """Return why the kernels do not count so far; None if they do."""
    largest = max(math.prod(problem.input_size), math.prod(problem.output_size))
    axes = windows(problem)
    if max(largest, math.prod(axis.kernel for axis in axes), *(axis.extent for axis in axes)) > _MOST_ELEMENTS:
        return "counts the elements of a map in 32 bits"
    if problem.c * largest > _MOST_UNITS:
        return "counts the elements of an image in 32 bits"
    return None
