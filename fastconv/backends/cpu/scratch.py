"""Scratch memory that a Python thread keeps from call to call, so that no call pays for fresh pages."""

from __future__ import annotations

import threading

import numpy as np

_ALIGNMENT = 64
_local = threading.local()


def take(size: int) -> int:
    """Return the address of at least ``size`` bytes, valid until the thread's next call."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size + _ALIGNMENT:
        buffer = _local.buffer = np.empty(size + _ALIGNMENT, np.uint8)
    address: int = buffer.ctypes.data
    return address + -address % _ALIGNMENT
