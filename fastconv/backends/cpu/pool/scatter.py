"""The micro-kernel of recorded positions: values go to, or come from, where indices say.

One element after the other waits for what the one before it has written where both go to the same place. So several
planes, or channels, take turns: their elements never meet.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.simd import I64, Emitter, literals

# What is done with recorded positions: gradients are added, values are put, and taken.
ADD, PUT, TAKE = range(3)


@intrinsic(prefer_literal=True)
def scatter(
    typingctx, action, ways, dense, bits,
    count, x, x_way, x_next, step, cells, y, y_way, y_next, j, j_way, j_next, aside,
):  # fmt: skip
    """Do what is to be done with ``ways`` lines of ``count`` elements each, in turns.

    Literal integers: action, ways, dense (cells are neighbours, ``step`` is an element), bits (of one).

    Values, addresses and strides in bytes: count; x (the cells that indices point into) with the strides from way to
    way and from one element of a line to the next, step (from cell to cell) and cells (how many: indices beyond are
    left out); y and j (values and indices) with their strides; aside (one element that is written for what is left
    out, in scratch).
    """
    given = (action, ways, dense, bits)
    known = literals(*given)
    if known is None:
        return None
    what, nways, is_dense, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, x, x_way, x_next, step, cells, y, y_way, y_next, j, j_way, j_next, aside = args[len(known) :]
        b, e = builder, Emitter(builder, element, 1)
        pointer = e.scalar.as_pointer()
        zero = ir.Constant(e.scalar, 0.0)

        def put(value: Any, address: Any) -> None:
            b.store(value, b.inttoptr(address, pointer)).align = e.bytes

        def turn(i: Any, carried: list[Any]) -> list[Any]:
            for to, of, at in zip(*(iter(carried),) * 3, strict=True):
                index = e.load_integer(at)
                inside = b.icmp_unsigned("<", index, cells)
                cell = b.add(to, b.mul(index, I64(e.bytes) if is_dense else step))
                if what == TAKE:
                    # What is read aside is of no account.
                    value = e.load_scalar(b.select(inside, cell, aside))
                    put(b.select(inside, value, zero), of)
                else:
                    cell = b.select(inside, cell, aside)
                    value = e.load_scalar(of)
                    put(b.fadd(e.load_scalar(cell), value) if what == ADD else value, cell)
            return [b.add(value, by) for value, by in zip(carried, (x_next, y_next, j_next) * nways, strict=True)]

        start = []
        for way in range(nways):
            start += [e.at(x, e.times(x_way, way)), e.at(y, e.times(y_way, way)), e.at(j, e.times(j_way, way))]
        e.loop(count, start, turn)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 13), codegen
