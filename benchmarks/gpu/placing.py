"""NumPy arrays in GPU memory, byte by byte: with what lies around them, so that no stray write goes unnoticed.

Nothing here makes CuPy compile kernels of its own, for which it needs headers of CUDA that not every machine has.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

# Bytes before and behind an array: addresses stay as aligned as they are here.
_GUARD = 256
_UNTOUCHED = 0xA5


class Placed:
    """A copy of a NumPy array in GPU memory, of the same strides, between bytes that nothing may write to.

    Attributes
    ----------
    array : cupy.ndarray
    """

    def __init__(self, host: Any) -> None:
        import cupy

        low, high = np.lib.array_utils.byte_bounds(host)
        self._host, self._offset = host, _GUARD + host.__array_interface__["data"][0] - low
        self._before = np.full(high - low + 2 * _GUARD, _UNTOUCHED, np.uint8)
        self._before[_GUARD:-_GUARD] = np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), np.uint8)
        self._memory = cupy.empty(self._before.size, np.uint8)
        self._memory.set(self._before)
        self.array = cupy.ndarray(host.shape, host.dtype, self._memory.data + self._offset, host.strides)

    def check_untouched(self) -> None:
        """Check that nothing was written to.

        Raises
        ------
        AssertionError
            If a byte is another one.
        """
        assert np.array_equal(self._memory.get(), self._before), "an input, or memory beside it, was written to"

    def fetch(self) -> None:
        """Bring the elements back.

        Raises
        ------
        AssertionError
            If a byte that belongs to none of them was written to.
        """
        after = self._memory.get()
        elements = self._seen(after)
        self._host[...] = elements
        self._seen(self._before)[...] = elements
        assert np.array_equal(after, self._before), "memory beside an output was written to"

    def _seen(self, memory: Any) -> Any:
        return np.ndarray(self._host.shape, self._host.dtype, memory, self._offset, self._host.strides)
