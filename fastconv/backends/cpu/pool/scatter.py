"""The micro-kernel of recorded positions: values go to, or come from, where indices say.

One element after the other waits for what the one before it has written where both go to the same place. So several
planes, or channels, take turns: their elements never meet.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import Indices
from fastconv.backends.cpu.simd import I64, Emitter, literals

# What is done with recorded positions: gradients are added, values are put, and taken.
ADD, PUT, TAKE = range(3)


@intrinsic(prefer_literal=True)
def scatter(
    typingctx, action, ways, dense, index, format,
    count, x, x_way, x_next, step, cells, y, y_way, y_next, j, j_way, j_next, aside,
):  # fmt: skip
    """Do what is to be done with ``ways`` lines of ``count`` elements each, in turns.

    Literal integers: action, ways, dense (cells are neighbours, ``step`` is an element), index (bytes of one),
    format (of the elements; cells that are added to hold them as they are computed).

    Values, addresses and strides in bytes: count; x (the cells that indices point into) with the strides from way to
    way and from one element of a line to the next, step (from cell to cell) and cells (how many: indices beyond are
    left out); y and j (values and indices) with their strides; aside (one element that is written for what is left
    out, in scratch).
    """
    given = (action, ways, dense, index, format)
    known = literals(*given)
    if known is None:
        return None
    what, nways, is_dense, size, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, x, x_way, x_next, step, cells, y, y_way, y_next, j, j_way, j_next, aside = args[len(known) :]
        b, e = builder, Emitter(builder, element, 1)
        # What is only moved stays as it is.
        stored, indices = ir.IntType(8 * e.bytes), Indices(e, size)
        cell_bytes = e.wide.bytes if what == ADD else e.bytes

        def take(address: Any) -> Any:
            loaded = b.load(b.inttoptr(address, stored.as_pointer()))
            loaded.align = e.bytes
            return loaded

        def put(value: Any, address: Any) -> None:
            b.store(value, b.inttoptr(address, stored.as_pointer())).align = e.bytes

        def turn(i: Any, carried: list[Any]) -> list[Any]:
            for to, of, at in zip(*(iter(carried),) * 3, strict=True):
                index = indices.load_one(at)
                inside = b.icmp_unsigned("<", index, cells)
                cell = b.add(to, b.mul(index, I64(cell_bytes) if is_dense else step))
                if what == TAKE:
                    # What is read aside is of no account.
                    put(b.select(inside, take(b.select(inside, cell, aside)), stored(0)), of)
                    continue
                cell = b.select(inside, cell, aside)
                if what == ADD:
                    e.wide.store(b.fadd(e.wide.load(cell), e.load(of)), cell)
                else:
                    put(take(of), cell)
            return [b.add(value, by) for value, by in zip(carried, (x_next, y_next, j_next) * nways, strict=True)]

        start = []
        for way in range(nways):
            start += [e.at(x, e.times(x_way, way)), e.at(y, e.times(y_way, way)), e.at(j, e.times(j_way, way))]
        e.loop(count, start, turn)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 13), codegen
