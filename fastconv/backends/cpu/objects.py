"""Python's objects as compiled code sees them: by address, without the time that reading an attribute takes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

from fastconv.backends.cpu.compiling import inlined
from fastconv.backends.cpu.memory import integer

# Where in an array's object its address of the data and that of its strides stand: words behind the head that every
# object has. NumPy keeps them there for compiled extensions.
_DATA = object.__basicsize__
_STRIDES = _DATA + 3 * 8


class _Object(types.Opaque):
    """The type of any object."""

    def __init__(self) -> None:
        super().__init__("object of Python")


register_model(_Object)(models.OpaqueModel)
OBJECT = _Object()


@unbox(_Object)
def _unbox(kind: Any, value: Any, context: Any) -> Any:
    return NativeValue(value)


@intrinsic
def _place_of(typingctx: Any, value: Any) -> Any:
    """Return the address of an object."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(value), codegen


@inlined
def data_of(array):
    """Return the address of an array's first element."""
    return integer(_place_of(array) + _DATA)


@inlined
def strides_of(array):
    """Return the address of an array's strides."""
    return integer(_place_of(array) + _STRIDES)


def _word(where: int) -> int:
    return ctypes.c_ssize_t.from_address(where).value


_probe = np.empty((2, 3), np.int16)
_found = _word(id(_probe) + _DATA), _word(_word(id(_probe) + _STRIDES))
if _found != (_probe.ctypes.data, _probe.strides[0]):  # pragma: no cover
    raise ImportError("fastconv: its CPU kernels need CPython and NumPy, whose arrays hold their address first")
