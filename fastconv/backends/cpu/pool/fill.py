"""The micro-kernel of an average over a whole map: all elements of its gradient are one value."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def fill_maps(typingctx, lanes, format, maps, y, yc, scale, x, xc, cells):
    """Fill maps with what each one's window sends.

    Literal integers: lanes, format (of an element).

    Values, addresses and strides in bytes: maps (how many), y (the first one's window), yc (from one to the next),
    scale (of the factor), x (the first map), xc (from one to the next), cells (elements of a map).
    """
    given = (lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        maps, y, yc, scale, x, xc, cells = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        factor = e.wide.load_splat(scale)
        # The last vector ends where the map does.
        before = b.sdiv(b.sub(cells, I64(1)), I64(nlanes))
        last = e.times(b.sub(cells, I64(nlanes)), e.bytes)

        def fill(whole: bool) -> None:
            def one(_: Any, state: list[Any]) -> list[Any]:
                y, x = state
                value = b.fmul(e.load_splat(y), factor)

                def vector(index: Any, _: list[Any]) -> list[Any]:
                    e.store(value, e.at(x, e.times(index, nlanes * e.bytes)))
                    return []

                if whole:
                    e.loop(before, [], vector)
                    e.store(value, e.at(x, last))
                else:
                    e.store_masked(value, x, e.first(cells))
                return [b.add(y, yc), b.add(x, xc)]

            e.loop(maps, [y, x], one)

        with b.if_else(b.icmp_signed(">", before, I64(0))) as (several, single):
            with several:
                fill(True)
            with single:
                fill(False)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 7), codegen
