"""Lines taken apart by a stride: which of their phases are read, and what it costs.

Phase ``p`` of a line is what the first window reads at ``p``, and the later ones a stride further each.
"""

from __future__ import annotations

import numpy as np

from fastconv.geometry import Axis, Table, source_line

#: Vectors that are interleaved or dealt in registers, at most: shuffles grow with their square.
MOST_WAYS = 8
#: In place of an input index: no window reads this position, whatever its padding is.
UNREAD = -2


def lines_read(axis: Axis) -> Table:
    """Return the input index of every padded position: -1 for zero padding, `UNREAD` where no window looks."""
    line = source_line(axis)
    read = np.zeros(line.size, bool)
    for tap in range(axis.kernel):
        read[tap * axis.dilation :: axis.stride][: axis.out] = True
    return np.where(read, line, UNREAD)


def shuffles(ways: int) -> int:
    """Return how many shuffles it takes to interleave or deal so many vectors, for each of them."""
    return 1 + shuffles(ways // 2) if ways % 2 == 0 else ways - 1


def dealing_cycles(ways: int) -> float:
    """Return the cycles of dealing as many vectors so many ways: they are loaded, shuffled and stored."""
    return ways * (2.0 + shuffles(ways))
