"""CuPy itself, with the CPU's memory in place of a GPU's: its arrays are real, and what would ask a driver is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cuda_emulation.emulator import Emulator, emulated
from cuda_emulation.fake_cupy import Device
from fastconv.backends.cuda.launching import Kernel, Launch


def seen(array: Any) -> Any:
    """Return an array of CuPy's as NumPy sees it, in the same memory."""
    if isinstance(array, np.ndarray):
        return array
    block = array.data.mem._owner
    return np.ndarray(array.shape, array.dtype, block, array.data.ptr - block.ctypes.data, array.strides)


class HostEmulator(Emulator):
    """Runs kernels on CuPy's arrays where they lie."""

    def on(self, array: Any) -> Any:
        return Device(0)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def prepare(self, kernel: Kernel, block: tuple[int, int, int], shared: int = 0) -> Launch:
        launch = super().prepare(kernel, block, shared)

        def on_host(grid: tuple[int, ...], parameters: bytes | bytearray, arrays: Sequence[Any]) -> None:
            launch(grid, parameters, [None if array is None else seen(array) for array in arrays])

        return on_host


def _allocated(size: int) -> Any:
    import cupy

    whole = np.full(size + 512, 0xFF, np.uint8)
    first = -whole.ctypes.data % 256  # as CuPy aligns
    block = whole[first : first + size]
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(block.ctypes.data, size, block, 0), 0)


def copied(array: Any) -> Any:
    """Return a contiguous array of CuPy's with the values of one of NumPy's."""
    import cupy

    made = cupy.empty(array.shape, array.dtype)
    seen(made)[...] = array
    return made


@contextmanager
def cupy_on_host() -> Iterator[HostEmulator]:
    """Let CuPy allocate the CPU's memory, copy there and back, and have one GPU, which is the emulator."""
    import cupy

    changes = {
        (cupy.ndarray, "get"): lambda array: seen(array).copy(),
        (cupy.ndarray, "set"): lambda array, values: np.copyto(seen(array), values),
        (cupy.ndarray, "__setitem__"): lambda array, index, value: seen(array).__setitem__(
            index, seen(value) if isinstance(value, cupy.ndarray) else value
        ),
        (cupy.ndarray, "device"): property(lambda array: Device(0)),
        (cupy, "asarray"): copied,
        (cupy, "zeros"): lambda shape, dtype: copied(np.zeros(shape, dtype)),
        (cupy.cuda, "Device"): Device,
        (cupy.cuda.runtime, "getDevice"): lambda: 0,
        (cupy.cuda.runtime, "getDeviceCount"): lambda: 1,
        (cupy.cuda.runtime, "memGetInfo"): lambda: (0, 0),
    }
    with pytest.MonkeyPatch.context() as patch, cupy.cuda.using_allocator(_allocated):
        for (place, name), value in changes.items():
            patch.setattr(place, name, value)
        with emulated(HostEmulator()) as emulator:
            yield emulator
