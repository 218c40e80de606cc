"""Calling native code by its address: so a kernel need not be compiled again for every other that it may call."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)


@intrinsic
def call(typingctx, function, arguments):
    """Call a compiled function, by its address, with a tuple of 64-bit integers; it returns nothing."""
    if not isinstance(arguments, types.BaseTuple):
        return None
    count = len(arguments)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * count)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), cgutils.unpack_tuple(builder, args[1], count))
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, count)), codegen
