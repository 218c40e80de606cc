"""CuPy as fastconv's public functions see it, played by NumPy: so that whole calls run on the emulator."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any, Self

import numpy as np


class Device:
    """One of the GPUs that are played; `current` is the one in force."""

    current = 0

    def __init__(self, id: int) -> None:
        self.id = id
        self._before: list[int] = []

    def __enter__(self) -> Self:
        self._before.append(Device.current)
        Device.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        Device.current = self._before.pop()


class ndarray:  # noqa: N801 - CuPy's name
    """A NumPy array that is no `numpy.ndarray`, on the device that is current when it is made."""

    __module__ = "cupy"
    __cuda_array_interface__ = None

    def __init__(self, array: Any, device: Device | None = None) -> None:
        self.array, self.device = array, device or Device(Device.current)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(self.array[index], self.device)

    def __setitem__(self, index: Any, value: Any) -> None:
        assert Device.current == self.device.id, "written to on another GPU"
        self.array[index] = value

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self.array.reshape(*shape), self.device)

    def transpose(self, *axes: Any) -> ndarray:
        return ndarray(self.array.transpose(*axes), self.device)

    def copy(self) -> ndarray:
        assert Device.current == self.device.id, "copied on another GPU"
        return ndarray(self.array.copy(), self.device)


def module() -> ModuleType:
    """Return what stands in for ``cupy`` among the imported modules."""
    made = ModuleType("cupy")
    made.ndarray, made.may_share_memory = ndarray, np.may_share_memory  # type: ignore[attr-defined]
    made.empty = lambda shape, dtype: ndarray(np.empty(shape, dtype))  # type: ignore[attr-defined]
    made.cuda = ModuleType("cupy.cuda")  # type: ignore[attr-defined]
    made.cuda.Device = Device
    made.cuda.runtime = SimpleNamespace(getDevice=lambda: Device.current, CUDARuntimeError=RuntimeError)
    return made
