"""A kernel of k taps that moves by s as kernels that move by one: s of them along an axis, each on every s-th element.

They have ceil(k / s) taps, or one fewer, and are as further input channels. A filter with a tap fewer is zero at the
point at infinity, so that its products there are left out. Phases stand in such an order that those which are not
left out are neighbours at every point.
"""

from __future__ import annotations

import itertools
import math
from functools import cache, cached_property

import numpy as np

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.winograd.points import products_of
from fastconv.geometry import Axis, source_index
from fastconv.problem import ConvProblem, Sizes

# Every stride has compiled loops of its own.
_MOST_APART = 4


def refuses_steps(problem: ConvProblem, taps: Sizes) -> str | None:
    """Return why not, if the largest phase of a kernel has other taps than these, or steps are too long."""
    plane = lifted_axes(problem)[1:]
    given = tuple(taps_of(axis.kernel, axis.stride) for axis in plane)
    if given != taps:
        takes, has = ("x".join(map(str, sizes)) for sizes in (taps, given))
        return f"takes kernels of {takes} taps a step of the stride, not {has}"
    if any(axis.dilation > 1 for axis in plane):
        return "takes kernels of dilation 1 only"
    longest = max(axis.stride for axis in plane)
    return f"steps by at most {_MOST_APART}, not by {longest}" if longest > _MOST_APART else None


def taps_of(kernel: int, stride: int) -> int:
    """Return how many taps the longest phase has."""
    return -(-kernel // stride)


class Phases:
    """The phases of a kernel's plane.

    Parameters
    ----------
    kernel, stride, m : tuple of int
        Taps, how far they move, and outputs of a tile, along rows and columns.

    Attributes
    ----------
    taps : tuple of int
        Rows and columns of a phase's filter.
    points : tuple of int
        Of a tile.
    order : list of (int, int)
        The first row and column of every phase.
    """

    def __init__(self, kernel: Sizes, stride: Sizes, m: Sizes) -> None:
        self.kernel, self.stride = kernel, stride
        self.taps = tuple(map(taps_of, kernel, stride))
        self.points = tuple(map(products_of, m, self.taps))
        starts = itertools.product(*map(range, map(min, kernel, stride)))
        self.order = sorted(starts, key=self._place)

    def _place(self, start: Sizes) -> tuple[bool, bool]:
        """Return a key by which rows of phases turn, as an ox ploughs: what is left out comes first or last."""
        short_row, short_column = map(self._is_short, (0, 1), start)
        return short_row, short_row == short_column

    def _is_short(self, axis: int, start: int) -> bool:
        """Whether a phase has a tap fewer than the longest."""
        return taps_of(self.kernel[axis] - start, self.stride[axis]) < self.taps[axis]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Of every point, the first phase that has products there, and how many have."""
        found = []
        for point in itertools.product(*map(range, self.points)):
            infinite = [p == points - 1 for p, points in zip(point, self.points, strict=True)]
            there = [
                index
                for index, start in enumerate(self.order)
                if not any(end and self._is_short(axis, start[axis]) for axis, end in enumerate(infinite))
            ]
            found.append((there[0], len(there)))
        return found

    @cached_property
    def products(self) -> int:
        """Multiplications of a tile for each pair of channels."""
        return sum(count for _, count in self.spans)

    @property
    def growth(self) -> float:
        """How much larger a transformed filter is than the filter."""
        return math.prod(self.points) * len(self.order) / math.prod(self.kernel)

    def starts(self, row: int, column: int) -> np.ndarray:
        """Return where every phase begins among padded rows and columns that lie so far apart."""
        return np.array([i * row + j * column for i, j in self.order], np.int64)

    def tap_places(self, turned: bool) -> np.ndarray:
        """Return which element of a filter each tap of a phase is, -1 for none: (phase, tap).

        ``turned``: the filter's elements are in reverse order.
        """
        first, taps = np.array(self.order)[:, :, None, None], np.indices(self.taps)
        (kh, kw), (sh, sw) = self.kernel, self.stride
        row, column = first[:, 0] + taps[0] * sh, first[:, 1] + taps[1] * sw
        place = row * kw + column
        place = np.where((row < kh) & (column < kw), kh * kw - 1 - place if turned else place, -1)
        return np.ascontiguousarray(place.reshape(len(self.order), -1), np.int64)


@cache
def _phases_of(kernel: Sizes, stride: Sizes, m: Sizes) -> Phases:
    """Return `Phases` of these parameters, once worked out."""
    return Phases(kernel, stride, m)


def plane_phases(problem: ConvProblem, m: Sizes) -> Phases:
    """Return the phases of a problem's kernel."""
    _, height, width = lifted_axes(problem)
    return _phases_of((height.kernel, width.kernel), (height.stride, width.stride), m)


def read_line(axis: Axis, outputs: int, extent: int, tiles: int) -> np.ndarray:
    """Return the input index of every padded position that tiles of so many outputs read."""
    place = np.arange(((tiles - 1) * outputs + extent) * axis.stride)
    index = source_index(place - axis.before, axis.size, axis.mode)
    # The last tile may reach beyond what the convolution is defined on.
    return np.ascontiguousarray(np.where(place < axis.extent(axis.out), index, -1), np.int64)
