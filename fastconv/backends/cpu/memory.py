"""Memory by address, for kernels: move elements, copy and clear runs of bytes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import inlined
from fastconv.backends.cpu.registers import LINE

_BYTES = ir.IntType(8).as_pointer()
# Lines that are on their way together.
_LINES = 4


@intrinsic
def record(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Return one of the records that follow a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return pointer.dtype(pointer, types.int64), codegen


@intrinsic
def pointed(typingctx: Any, pointer: Any) -> Any:
    """Return the address that a pointer holds."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), codegen


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
def fetch(typingctx: Any, source: Any, count: Any) -> Any:
    """Ask for ``count`` bytes from an address on, which need not exist, to be brought to the second-level cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b, (source, count) = builder, args
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, *(ir.IntType(32),) * 3])
        prefetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        lines = b.sdiv(b.add(count, count.type(LINE - 1)), count.type(LINE))
        with cgutils.for_range(b, lines) as loop:
            place = b.inttoptr(b.add(source, b.mul(loop.index, count.type(LINE))), _BYTES)
            b.call(prefetch, [place, *map(ir.IntType(32), (0, 2, 1))])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def stream(typingctx: Any, target: Any, source: Any, count: Any, begins: Any, ends: Any) -> Any:
    """Copy the next ``count`` bytes of a run past the caches: lines that are written whole are not read before.

    A run comes in pieces, each of a line at least. What is left of the last line of one waits in the `LINE` bytes
    before the source, behind which the next piece is to stand. What the lines at both ends of a run hold besides stays
    as it is. Other threads see a run that has ended when they see what the caller writes next.

    Values and addresses: target (of the piece), source, count, begins and ends (whether the run does with it).
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        b, (target, source, count, begins, ends) = builder, args
        word, line = ir.IntType(64), ir.VectorType(ir.IntType(32), LINE // 4)
        past_caches = b.module.add_metadata([ir.IntType(32)(1)])

        def load(address: Any) -> Any:
            loaded = b.load(b.inttoptr(address, line.as_pointer()))
            loaded.align = 1
            return loaded

        def part(first: Any, bytes: Any) -> None:
            to, of = (b.inttoptr(b.add(start, first), _BYTES) for start in (target, source))
            cgutils.raw_memcpy(b, to, of, bytes, 1)

        def whole(first: Any, many: int) -> Any:
            """Move lines, so many at a time, as long as there are as many, and return how far that went."""
            step = word(many * LINE)
            times = b.sdiv(b.sub(count, first), step)
            with cgutils.for_range(b, times) as loop:
                places = [b.add(first, b.add(b.mul(loop.index, step), word(i * LINE))) for i in range(many)]
                for place, value in zip(places, [load(b.add(source, place)) for place in places], strict=True):
                    stored = b.store(value, b.inttoptr(b.add(target, place), line.as_pointer()))
                    stored.align = LINE
                    stored.set_metadata("nontemporal", past_caches)
            return b.add(first, b.mul(times, step))

        starting = b.icmp_signed("!=", begins, word(0))
        ahead = b.and_(b.neg(target), word(LINE - 1))
        ahead = b.select(b.icmp_signed("<", ahead, count), ahead, count)
        with b.if_then(starting):
            part(word(0), ahead)
        waiting = b.neg(b.and_(target, word(LINE - 1)))
        done = whole(whole(b.select(starting, ahead, waiting), _LINES), 1)
        with b.if_else(b.icmp_signed("!=", ends, word(0))) as (end, more):
            with end:
                part(done, b.sub(count, done))
                b.fence("seq_cst")
            with more:
                last = load(b.add(source, b.sub(count, word(LINE))))
                b.store(last, b.inttoptr(b.sub(source, word(LINE)), line.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 5), codegen


@intrinsic
def integer(typingctx: Any, address: Any) -> Any:
    """Return the 64-bit integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def put(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a 64-bit integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


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
