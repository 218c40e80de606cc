"""Cutting a length into pieces that are as even as can be, so that nothing is computed twice."""

from __future__ import annotations

from typing import NamedTuple


class Cut(NamedTuple):
    """A length in pieces that differ by one at most: ``full`` pieces of ``size``, the others one smaller."""

    pieces: int
    size: int
    full: int

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """How many pieces there are of which size: those of full size, and the others."""
        return (self.full, self.size), (self.pieces - self.full, self.size - 1)


def even(length: int, most: int) -> Cut:
    """Return the fewest pieces of at most a size."""
    pieces = -(-length // most)
    size = -(-length // pieces)
    return Cut(pieces, size, length - pieces * (size - 1))
