"""Memory by address, for kernels: move elements, copy and clear runs of bytes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import inlined

_BYTES = ir.IntType(8).as_pointer()


@intrinsic
def copy(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy ``count`` bytes between addresses that do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.raw_memcpy(builder, builder.inttoptr(args[0], _BYTES), builder.inttoptr(args[1], _BYTES), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def clear(typingctx: Any, target: Any, count: Any) -> Any:
    """Set ``count`` bytes at an address to zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], _BYTES), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def integer(typingctx: Any, address: Any) -> Any:
    """Return the 64-bit integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


@inlined
def word(table, index):
    """Return an entry of a table of 64-bit integers at an address."""
    return integer(table + 8 * index)


@intrinsic
def move(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy one element of 2, 4 or 8 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def element(bits: int) -> None:
            pointer = ir.IntType(bits).as_pointer()
            loaded = builder.load(builder.inttoptr(args[1], pointer))
            loaded.align = 1
            stored = builder.store(loaded, builder.inttoptr(args[0], pointer))
            stored.align = 1

        choice = builder.function.append_basic_block("eight")
        after = builder.function.append_basic_block("moved")
        switch = builder.switch(args[2], choice)
        for bits in (16, 32, 64):
            block = choice if bits == 64 else builder.function.append_basic_block("fewer")
            if bits != 64:
                switch.add_case(ir.IntType(64)(bits // 8), block)
            builder.position_at_end(block)
            element(bits)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
