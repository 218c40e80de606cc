"""Addresses: of arrays, and of scratch memory that a Python thread keeps from call to call."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

_ALIGNMENT = 64
_local = threading.local()


def address(array: Any) -> int:
    """Return where an array's first element is."""
    try:  # a third of the time that array.ctypes takes
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):  # read-only, or not contiguous
        return array.ctypes.data  # type: ignore[no-any-return]


def take(size: int) -> int:
    """Return the address of at least ``size`` bytes, valid until the thread's next call: no call pays for new pages."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size + _ALIGNMENT:
        buffer = _local.buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = address(buffer)
    return start + -start % _ALIGNMENT


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
