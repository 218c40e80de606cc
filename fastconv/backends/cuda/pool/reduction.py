"""Pools whose windows are shared out among threads: when, and among how many."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from fastconv.backends.cuda.pool.windows import POINT, THREADS, Windows, enough_threads

# Smaller windows are left to one thread each.
_LEAST_TAPS = 32
# Loads that a thread has on their way together, twice.
_TAPS_A_PART = 8
# Neighbouring windows that are further apart are in different sectors of memory, so that threads of their own would
# fetch 32 bytes for one element.
_FAR_BYTES = 32
# Threads that have neighbouring channels of one element: 128 bytes of them.
_CHANNEL_THREADS = 8


class Reduction(NamedTuple):
    """How windows are shared: by ``2 ** bits`` threads, neighbours or not."""

    bits: int
    parts_fastest: bool

    @property
    def units(self) -> int:
        """Windows, each of some channels, that a block has."""
        return THREADS >> self.bits


def reduction(
    axes: Sequence[Windows], units: int, channels_fastest: bool, itemsize: int, multiprocessors: int
) -> Reduction | None:
    """Return how the windows of a pool are best shared; None if a thread each is as good."""
    taps = math.prod(axis.kernel for axis in axes)
    if taps < _LEAST_TAPS:
        return None
    is_far = not channels_fastest and axes[2].step * itemsize >= _FAR_BYTES
    idle = enough_threads(multiprocessors) // units
    most = THREADS // _CHANNEL_THREADS if channels_fastest else THREADS
    parts = min(taps // _TAPS_A_PART, most) if is_far else min(taps // _TAPS_A_PART, most, idle)
    return Reduction(parts.bit_length() - 1, not channels_fastest) if parts > 1 else None


def flattened(axes: Sequence[Windows], strides: Sequence[int]) -> tuple[list[Windows], tuple[int, int, int]] | None:
    """Return the axes and strides of maps that are one window each, and whose elements are evenly spaced, as a line."""
    long = [(axis, step) for axis, step in zip(axes, strides, strict=True) if axis.size > 1]
    rows = itertools.pairwise(long)
    if len(long) < 2 or not all(a.is_whole for a in axes) or any(s != b.size * t for (_, s), (b, t) in rows):
        return None
    size = math.prod(axis.size for axis in axes)
    return [POINT, POINT, Windows(size, 1, size, 1, 1, 0, size, False)], (0, 0, long[-1][1])
