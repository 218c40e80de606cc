"""Which of several arrays may lie in the same memory, because one is no longer needed when another is made."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

_ALIGNMENT = 64


class Life(NamedTuple):
    """From which step to which an array is needed, both included, and how many bytes it takes."""

    first: int
    last: int
    bytes: int


def shared(lives: Sequence[Life]) -> tuple[list[int], list[int]]:
    """Share memory among arrays.

    Parameters
    ----------
    lives : sequence of Life

    Returns
    -------
    buffers : list of int
        For each array, the number of the buffer that it lies in.
    sizes : list of int
        Bytes of each buffer.

    Notes
    -----
    In order of first need, an array takes the smallest free buffer that holds it, else it makes the largest free one
    larger; linear-scan register allocation (Poletto and Sarkar, 1999) with registers of any size.
    """
    buffers, sizes = [0] * len(lives), list[int]()
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    for index in sorted(range(len(lives)), key=lambda index: lives[index].first):
        life = lives[index]
        free += [buffer for until, buffer in busy if until < life.first]
        busy = [(until, buffer) for until, buffer in busy if until >= life.first]
        holding = [buffer for buffer in free if sizes[buffer] >= life.bytes]
        if holding:
            taken = min(holding, key=sizes.__getitem__)
        elif free:
            taken = max(free, key=sizes.__getitem__)
        else:
            taken = len(sizes)
            sizes.append(0)
        sizes[taken] = max(sizes[taken], life.bytes)
        free = [buffer for buffer in free if buffer != taken]
        busy.append((life.last, taken))
        buffers[index] = taken
    return buffers, sizes


def aligned(size: int, namespace: ModuleType = np) -> Any:
    """Return new memory of NumPy's or CuPy's, so many bytes, that begins where vectors and cache lines do."""
    room = namespace.empty(size + _ALIGNMENT, np.uint8)
    address = room.ctypes.data if isinstance(room, np.ndarray) else room.data.ptr
    start = -address % _ALIGNMENT
    return room[start : start + size]
