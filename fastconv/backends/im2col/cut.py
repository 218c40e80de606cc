"""Cutting the work into blocks whose scratch memory fits the workspace and, better, the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import TypeAlias

from fastconv.geometry import Range
from fastconv.problem import Sizes

Block: TypeAlias = Sizes

# The column matrix of one block. On one thread 1 to 16 MiB run at one speed (a core's L2 cache holds the
# smaller, the L3 the larger), and the whole matrix of a large layer takes a third longer; threads wait for
# each other at the end of every product, and want blocks that are not too small.
COLUMNS_BYTES = 8 << 20


def shrink(block: Sequence[int], order: Iterable[int], fits: Callable[[Block], bool]) -> Block:
    """Cut a block smaller, axis after axis in this order, until it fits (or every axis named is at 1).

    Each axis is cut only as far as it must be, and evenly.
    """
    block = tuple(block)
    for axis in order:
        if fits(block):
            break
        before, full, after = block[:axis], block[axis], block[axis + 1 :]
        low, high = 1, full
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits((*before, middle, *after)) else (low, middle - 1)
        pieces = -(-full // low)
        block = (*before, -(-full // pieces), *after)
    return block


def ranges(full: int, size: int) -> list[Range]:
    """Return the pieces of an axis, the last possibly smaller."""
    return [(start, min(start + size, full)) for start in range(0, full, size)]


def grid(full: Sequence[int], block: Sequence[int]) -> list[tuple[Range, ...]]:
    """Return the blocks of a whole, the last axis fastest."""
    return list(product(*map(ranges, full, block)))


def slices(block: Iterable[Range]) -> tuple[slice, ...]:
    """Return the index of a block."""
    return tuple(slice(*r) for r in block)


def numpy_buffers(elements: int, itemsize: int) -> int:
    """Return what NumPy's iterators may allocate for a ufunc of three operands on so many strided elements."""
    return 3 * min(elements, 8192) * itemsize


def readable(count: float) -> str:
    """Return a number of bytes for a person to read."""
    return f"{count / (1 << 20):.3g} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.3g} KiB"
