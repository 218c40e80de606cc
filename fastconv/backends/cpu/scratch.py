"""Addresses: of arrays, and of scratch memory that a Python thread keeps from call to call."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import types

from fastconv.backends.cpu.compiling import fingerprint, function
from fastconv.backends.cpu.objects import OBJECT, data_of

_ALIGNMENT = 64
_local = threading.local()


def _addressing() -> Any:
    sources = fingerprint()

    @function(types.int64(OBJECT), short=True)
    def address(array):
        return data_of(array) if sources else 0

    return address


_address = _addressing()


def address(array: Any) -> int:
    """Return where an array's first element is."""
    where: int = _address(array)
    return where


def contiguous(array: Any) -> Any:
    """Return an array in C order on aligned memory: itself, or a copy. `np.require` takes ten times as long."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=("C", "A"))


def aligned(array: Any) -> Any:
    """Return an array whose elements lie at multiples of their size: itself, or a copy."""
    return array if array.flags.aligned else np.require(array, requirements="A")


def take(size: int) -> int:
    """Return the address of at least ``size`` bytes, valid until the thread's next call: no call pays for new pages."""
    start: int
    try:
        start, room = _local.start, _local.room
    except AttributeError:
        start, room = 0, -1
    if room < size:
        _local.buffer = np.empty(size + _ALIGNMENT, np.uint8)
        start = address(_local.buffer)
        start = _local.start = start + -start % _ALIGNMENT
        _local.room = size
    return start


def room(size: int, owner: str) -> Any:
    """Return at least ``size`` bytes as an array that the owner's next call in this thread may return again.

    What is taken through `take` by the algorithms that the owner runs is apart from it.
    """
    rooms: dict[str, Any] = _local.__dict__.setdefault("rooms", {})
    buffer = rooms.get(owner)
    if buffer is None or buffer.size < size:
        whole = np.empty(size + _ALIGNMENT, np.uint8)
        start = -address(whole) % _ALIGNMENT
        buffer = rooms[owner] = whole[start : start + size]
    return buffer
