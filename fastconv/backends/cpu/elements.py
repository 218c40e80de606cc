"""Single elements by address, for kernels: moved, read and written in any format."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.simd import I32, Emitter, literals


@intrinsic(prefer_literal=True)
def widen_one(typingctx, format, source, target):
    """Copy one element to where it is stored as it is computed."""
    known = literals(format)
    if known is None:
        return None
    (stored,) = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, stored, 1)
        e.wide.store(e.load(args[1]), args[2])
        return context.get_dummy_value()

    return types.void(format, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def widen_some(typingctx, lanes, format, source, target, count):
    """Copy ``count`` adjacent elements, at most ``lanes``, to where they are stored as they are computed."""
    known = literals(format, lanes)
    if known is None:
        return None
    stored, width = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, stored, width)
        mask = e.first(args[4])
        e.wide.store_masked(e.load_masked(args[2], mask), args[3], mask)
        return context.get_dummy_value()

    return types.void(lanes, format, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def get(typingctx, format, address):
    """Return an element as it is computed."""
    known = literals(format)
    if known is None:
        return None
    (stored,) = known
    number = types.float64 if computed(stored) == 64 else types.float32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, stored, 1)
        return builder.extract_element(e.load(args[1]), I32(0))

    return number(format, types.int64), codegen


@intrinsic(prefer_literal=True)
def put(typingctx, format, address, value):
    """Write a number of the computed type to an address."""
    known = literals(format)
    if known is None:
        return None
    (stored,) = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, stored, 1)
        e.store(builder.insert_element(ir.Constant(e.vector, ir.Undefined), args[2], I32(0)), args[1])
        return context.get_dummy_value()

    return types.void(format, types.int64, value), codegen
