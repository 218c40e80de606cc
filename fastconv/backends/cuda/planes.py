"""The strides of arrays of planes, as `kernels/plane.cuh` has them; a line is a plane of one row."""

from __future__ import annotations

from typing import NamedTuple

from fastconv.backends.cuda.parameters import LONG, nested

MAP = nested(dict.fromkeys(("image", "channel", "row", "column"), LONG))
"""``Map`` there."""


class Map(NamedTuple):
    """Elements from one image, channel, row and column to the next."""

    image: int = 0
    channel: int = 0
    row: int = 0
    column: int = 0

    @classmethod
    def of(cls, strides: tuple[int, ...]) -> Map:
        """Return the map of an array with one or two spatial axes."""
        return cls(strides[0], strides[1], *two(strides[2:]))


def two(strides: tuple[int, ...]) -> tuple[int, int]:
    """Return the strides of rows and columns."""
    row, column = (0,) * (2 - len(strides)) + strides
    return row, column
