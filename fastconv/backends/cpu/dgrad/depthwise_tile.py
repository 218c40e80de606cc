"""The micro-kernel of the depthwise input gradient: pairs of rows and of columns, woven as they are stored."""

from __future__ import annotations

import itertools
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.depthwise.tile import in_order
from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.geometry import Axis

# The values that `pairs_tile` is given, in order.
_VALUES = "y yh row col heights widths zeros w x xh rows left"


@intrinsic(prefer_literal=True)
def pairs_tile(
    typingctx, lanes, bits, fused, kh, kw, odd_top, odd_side, held, partial,
    y, yh, row, col, heights, widths, zeros, w, x, xh, rows, left,
):  # fmt: skip
    """Compute rows of a gradient, ``2 * lanes`` columns of them.

    Literal integers: lanes, bits (of an element), fused (multiply-add exists), kh, kw (kernel size, at least 2),
    odd_top, odd_side (1 if there is an odd number of zeros before the rows, the columns), held (weights stay in
    registers), partial (there may be fewer columns than that).

    Values, addresses and strides in bytes: y (the output's gradient, its first element, whether it is read or not), its
    stride of rows; row, col (the first element that is read for the first pairs); its sizes; zeros (address of as many
    as a vector has lanes); w; x (the gradient's first pair of rows and columns), its stride of rows; rows of the
    gradient, columns of it that are left.
    """
    given = (lanes, bits, fused, kh, kw, odd_top, odd_side, held, partial)
    known = literals(*given)
    if known is None:
        return None
    width, element, has_fma, nkh, nkw, above, before, is_held, is_partial = known
    down, right = (shifts_of(Axis(0, 0, kernel, 2, 1, odd, "zeros")) for kernel, odd in ((nkh, above), (nkw, before)))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_VALUES.split(), args[len(known) :], strict=True))
        e = Emitter(builder, element, width, bool(has_fma))
        step = width * e.bytes
        # Columns that there are: lanes from the first to before the last.
        places = [e.at(v["col"], shift) for shift in range(right.elements)]
        masks = [
            builder.and_(e.first(builder.sub(v["widths"], place)), builder.not_(e.first(builder.neg(place))))
            for place in places
        ]
        stored = [e.first(e.at(v["left"], -i * width)) if is_partial else None for i in range(2)]

        def weight(tap: tuple[int, int]) -> Any:
            return e.load_splat(e.at(v["w"], (tap[0] * nkw + tap[1]) * e.bytes))

        every = list(itertools.product(range(nkh), range(nkw)))
        kept = dict(zip(every, in_order(e, [weight(tap) for tap in every]), strict=True)) if is_held else {}

        def read(at: Any, number: Any) -> list[Any]:
            there = builder.icmp_unsigned("<", number, v["heights"])
            return [
                e.load_masked(builder.select(there, e.at(at, shift * e.bytes), v["zeros"]), mask)
                for shift, mask in enumerate(masks)
            ]

        def store(vectors: list[Any], address: Any) -> None:
            for i, (vector, mask) in enumerate(zip(vectors, stored, strict=True)):
                e.store_masked(vector, e.at(address, i * step), mask)

        def pair(index: Any, values: list[Any]) -> list[Any]:
            at, number, target, *found = values
            found += read(at, number)
            for parity in range(2):
                sums = [e.zero, e.zero]
                for (r, below), side in itertools.product(down.terms[parity], range(2)):
                    for s, beside in right.terms[side]:
                        factor = kept[r, s] if is_held else weight((r, s))
                        sums[side] = e.fma(found[below * right.elements + beside], factor, sums[side])
                even, odd = sums
                woven = [
                    e.shuffle(even, odd, [(i + half) // 2 + width * (i % 2) for i in range(width)])
                    for half in (0, width)
                ]
                if parity == 0:
                    store(woven, target)
                    continue
                following = e.at(e.times(index, 2), 1)
                with builder.if_then(builder.icmp_signed("<", following, v["rows"]), likely=True):
                    store(woven, e.at(target, v["xh"]))
            return [
                e.at(at, v["yh"]), e.at(number, 1), e.at(target, e.times(v["xh"], 2)), *found[right.elements :]
            ]  # fmt: skip

        at, number = e.at(v["y"], e.times(v["col"], e.bytes), builder.mul(v["row"], v["yh"])), v["row"]
        carried = []
        for _ in range(down.elements - 1):
            carried += read(at, number)
            at, number = e.at(at, v["yh"]), e.at(number, 1)
        pairs = builder.ashr(e.at(v["rows"], 1), I64(1))
        e.loop(pairs, [at, number, v["x"], *carried], pair)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * len(_VALUES.split())), codegen
