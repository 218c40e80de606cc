"""Memory of results that is kept from call to call.

PyTorch keeps none on the CPU: the C library gives large maps back to the system, and every call meets new pages, which
the system has to clear first. Of a network of large and cheap maps that is a third of the time. Results are lent rooms
here, which come back when nobody holds the tensor any more, and are still in the cache when they are lent again.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from typing import Any

import numpy as np

from fastconv.arrays import dtype_named
from fastconv.buffers import aligned
from fastconv.choice import BoundPlan

# Bytes of a result from which on new pages cost: smaller ones the C library keeps.
_LEAST = 64 << 10
# Bytes that wait to be lent again, at most; how much larger than a result its room may be.
_WAITING, _TIMES = 64 << 20, 2


class _Rooms:
    """Rooms that nobody uses, the one that came back last at the end. Each step is a single one to other threads."""

    def __init__(self) -> None:
        self.free: list[_Room] = []
        self.lent: dict[int, weakref.ref[Any]] = {}

    def take(self, size: int) -> _Room:
        """Return the smallest room that is not much too large, a new one if there is none."""
        while True:
            fitting = [room for room in self.free[::-1] if size <= room.size <= _TIMES * size]
            if not fitting:
                return _Room(size)
            room = min(fitting, key=attrgetter("size"))
            try:
                self.free.remove(room)
            except ValueError:  # another thread was faster
                continue
            return room

    def lend(self, room: _Room, array: Any) -> None:
        """Have a room come back when an array in it is gone, to which nothing else in the room must lead."""
        key = id(array)

        def back(_: Any) -> None:
            self.lent.pop(key, None)
            self.free.append(room)
            while sum(each.size for each in self.free) > _WAITING:
                with suppress(IndexError):  # another thread was faster
                    self.free.pop(0)

        self.lent[key] = weakref.ref(array, back)

    def clear(self) -> None:
        self.free.clear()


class _Room:
    __slots__ = ("memory", "size")

    def __init__(self, size: int) -> None:
        self.size, self.memory = size, aligned(size)


_rooms = _Rooms()


def forget() -> None:
    """Give rooms that wait back to the system."""
    _rooms.clear()


def recycling(plan: BoundPlan) -> Callable[[Any], Any]:
    """Return what runs a plan on arrays that are just what it was made for, large results in such rooms."""
    operand, *others = plan.problem.outputs
    # Where a tensor's memory is a view of the array, that would be gone too early, and let go of its room.
    alone = not others and operand.dtype in ("float32", "float64")
    size = math.prod(operand.shape) * dtype_named(operand.dtype).itemsize
    return _Recycling(plan, size) if plan.plain and alone and size >= _LEAST else plan


class _Recycling:
    def __init__(self, plan: BoundPlan, size: int) -> None:
        self._plan, self._size = plan, size
        (operand,) = plan.problem.outputs
        self._dtype = dtype_named(operand.dtype)
        n, c, *spatial = operand.shape
        self._last = plan.problem.layout == "channels_last"
        self._shape = (n, *spatial, c) if self._last else operand.shape

    def __call__(self, x: Any) -> Any:
        room = _rooms.take(self._size)
        out = room.memory[: self._size].view(self._dtype).reshape(self._shape)
        if self._last:
            out = np.moveaxis(out, -1, 1)
        _rooms.lend(room, out)
        self._plan.into(out, x)
        return out
