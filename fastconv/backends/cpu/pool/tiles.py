"""The micro-kernel of a max pool's gradient in windows side by side: lanes are columns of the map.

The window of each column is repeated in its lanes, gradient and index, so an element compares the index with its own
place, and takes the gradient or nothing: what is stored lies as it is to lie.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import Indices, index_type, narrowed
from fastconv.backends.cpu.simd import I32, Emitter, literals


@intrinsic(prefer_literal=True)
def route_tiles(
    typingctx, kernel, index, lanes, format, dy, yh, indices, jh, windows, first, rows, width, dx, xh, whole,
):  # fmt: skip
    """Send a max pool's gradients to where the maxima stand, in a strip of columns of windows without padding.

    Literal integers: kernel (rows and columns of a window), index (bytes of one), lanes (at least as many),
    format (of an element).

    Values, addresses and strides in bytes: dy and indices (of the map's first window), yh and jh (from row to row of
    these), windows (of a row), first (number of the strip's first window), rows (of windows), width (of the map), dx
    (the map), xh (from row to row), whole (rows of windows whose results may be stored as whole vectors, since what
    lies behind is written later).
    """
    given = (kernel, index, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nkernel, size, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, yh, indices, jh, windows, first, rows, width, dx, xh, whole = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        # As many windows as the lanes have columns of, in a vector of a length that there is.
        small = Emitter(builder, element, 1 << (nlanes // nkernel - 1).bit_length())
        repeated = ir.Constant(ir.VectorType(I32, nlanes), [lane // nkernel % small.lanes for lane in range(nlanes)])
        column = e.times(first, nkernel)
        read, stored = small.first(b.sub(windows, first)), e.first(b.sub(width, column))
        inside = b.icmp_signed("<=", e.at(column, nlanes), width)
        last = b.select(inside, rows, whole)
        integers = ir.VectorType(index_type(e), nlanes)
        place = b.add(e.splat(narrowed(e, column)), ir.Constant(integers, list(range(nlanes))))
        below = e.splat(narrowed(e, width))

        def line(number: Any, carried: list[Any]) -> list[Any]:
            y, j, x, place = carried
            value, chosen = small.load_masked(y, read), Indices(small, size).load(j, read)
            value, chosen = (b.shuffle_vector(vector, vector, repeated) for vector in (value, chosen))
            results = []
            for _ in range(nkernel):
                results.append(b.select(b.icmp_signed("==", chosen, place), value, e.zero))
                place = b.add(place, below)
            with b.if_else(b.icmp_signed("<", number, last), likely=True) as (all_lanes, some):
                with all_lanes:
                    for r, result in enumerate(results):
                        e.store(result, e.at(x, e.times(xh, r)))
                with some:
                    for r, result in enumerate(results):
                        e.store_masked(result, e.at(x, e.times(xh, r)), stored)
            return [e.at(y, yh), e.at(j, jh), e.at(x, e.times(xh, nkernel)), place]

        y, j = e.at(dy, e.times(first, e.bytes)), e.at(indices, e.times(first, size))
        x = e.at(dx, e.times(column, e.bytes))
        e.loop(rows, [y, j, x, place], line)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 11), codegen
