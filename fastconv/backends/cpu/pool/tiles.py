"""The micro-kernel of pools' gradients in windows side by side: lanes are columns of the map.

The window of each column is repeated in its lanes. Of an average, every element takes its share; of a maximum, whose
index is repeated too, an element compares that with its own place, and takes the gradient or nothing. What is stored
lies as it is to lie.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import Indices, index_type, narrowed
from fastconv.backends.cpu.pool.reduction import MAX
from fastconv.backends.cpu.simd import I32, Emitter, literals


@intrinsic(prefer_literal=True)
def fill_tiles(
    typingctx, op, kernel, index, lanes, format,
    dy, yh, indices, jh, windows, first, rows, width, dx, xh, whole, scale, scales,
):  # fmt: skip
    """Send gradients to what the windows read, in a strip of columns of windows without padding.

    Literal integers: op (``MAX`` by indices, otherwise an average), kernel (rows and columns of a window), index (bytes
    of one), lanes (at least as many as the kernel has columns), format (of an element).

    Values, addresses and strides in bytes: dy and indices (of the map's first window), yh and jh (from row to row of
    these), windows (of a row), first (number of the strip's first window), rows (of windows), width (of the map), dx
    (the map), xh (from row to row), whole (rows of windows whose results may be stored as whole vectors, since what
    lies behind is written later), scale (of an average's factor for each row of windows), scales (of one for each
    column, 0 for none).
    """
    given = (op, kernel, index, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nkernel, size, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, yh, indices, jh, windows, first, rows, width, dx, xh, whole, scale, scales = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        # As many windows as the lanes have columns of, in a vector of a length that there is.
        small = Emitter(builder, element, 1 << (nlanes // nkernel - 1).bit_length())
        wide, narrow = e.wide, small.wide
        repeated = ir.Constant(ir.VectorType(I32, nlanes), [lane // nkernel % small.lanes for lane in range(nlanes)])
        column = e.times(first, nkernel)
        read, stored = small.first(b.sub(windows, first)), e.first(b.sub(width, column))
        inside = b.icmp_signed("<=", e.at(column, nlanes), width)
        last = b.select(inside, rows, whole)
        kind = ir.VectorType(index_type(e), nlanes)
        below = e.splat(narrowed(e, width))

        def repeat(vector: Any) -> Any:
            return b.shuffle_vector(vector, vector, repeated)

        def routed(y: Any, j: Any, place: Any, _: Any) -> tuple[list[Any], Any]:
            value, chosen = repeat(small.load_masked(y, read)), repeat(Indices(small, size).load(j, read))
            results = []
            for _ in range(nkernel):
                results.append(b.select(b.icmp_signed("==", chosen, place), value, e.zero))
                place = b.add(place, below)
            return results, place

        def shared(y: Any, _: Any, place: Any, factor: Any) -> tuple[list[Any], Any]:
            return [
                b.fmul(repeat(small.load_masked(y, read)), b.fmul(wide.load_splat(factor), columns))
            ] * nkernel, place

        def line(number: Any, carried: list[Any]) -> list[Any]:
            y, j, x, place, factor = carried
            results, place = (routed if nop == MAX else shared)(y, j, place, factor)
            with b.if_else(b.icmp_signed("<", number, last), likely=True) as (all_lanes, some):
                with all_lanes:
                    for r, result in enumerate(results):
                        e.store(result, e.at(x, e.times(xh, r)))
                with some:
                    for r, result in enumerate(results):
                        e.store_masked(result, e.at(x, e.times(xh, r)), stored)
            return [e.at(y, yh), e.at(j, jh), e.at(x, e.times(xh, nkernel)), place, e.at(factor, wide.bytes)]

        y, j = e.at(dy, e.times(first, e.bytes)), e.at(indices, e.times(first, size))
        x = e.at(dx, e.times(column, e.bytes))
        place = b.add(e.splat(narrowed(e, column)), ir.Constant(kind, list(range(nlanes))))
        ones, factors = [ir.Constant(e.vector, [1.0] * nlanes)], e.at(scales, e.times(first, wide.bytes))
        (columns,) = e.unless_zero(scales, ones, lambda _: [repeat(narrow.load_masked(factors, read))])
        e.loop(rows, [y, j, x, place, scale], line)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 13), codegen
