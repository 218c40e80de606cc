"""Micro-kernels of pools on other shapes: channels in the lanes, windows of any shape on a line, and whole maps."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.reduction import Reduction, if_any, pick
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


@intrinsic(prefer_literal=True)
def pool_pixel(
    typingctx, op, vectors, columns, partial, indexed, exact, lanes, bits,
    x, nd, xd, nh, xh, nw, xw, flat, flat_d, flat_h, flat_w, y, indices, count, scale, scales,
):  # fmt: skip
    """Compute one output position of ``vectors * lanes`` channels; return what `pool_row` does.

    Literal integers: op, vectors, columns (of a window; 0 if ``nw``), partial (``count`` channels may be fewer),
    indexed, exact, lanes, bits (of an element).

    Values, addresses and strides in bytes: x (of the window's first element), how many depths, rows and columns it
    has and how far apart they are, flat (index of its first element) and what a step adds to it, y, indices,
    count (channels to store), scale and scales (addresses of two factors of the sums, the second may be 0).
    """
    given = (op, vectors, columns, partial, indexed, exact, lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    nop, nvectors, ncolumns, is_partial, is_indexed, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, nd, xd, nh, xh, nw, xw, flat, flat_d, flat_h, flat_w, y, indices, count, scale, scales = args[len(known) :]
        e = Emitter(builder, element, nlanes)
        reduction = Reduction(e, nop, bool(is_indexed), bool(is_exact))
        width, step = len(reduction.border), nlanes * e.bytes
        masks = [e.first(e.at(count, -v * nlanes)) if is_partial else None for v in range(nvectors)]

        def tap(address: Any, index: Any, carried: list[Any]) -> list[Any]:
            *flat_terms, nan = carried
            values = [reduction.load(e.at(address, v * step), masks[v]) for v in range(nvectors)]
            here = [reduction.index(index)] if is_indexed else []
            result = []
            for v, value in enumerate(values):
                old = flat_terms[v * width : (v + 1) * width]
                result += reduction.combine(old, [value, *here], False)
            return [*result, builder.or_(nan, reduction.has_nan(values))]

        def plane(d: Any, carried: list[Any]) -> list[Any]:
            def line(h: Any, carried: list[Any]) -> list[Any]:
                address = e.at(x, builder.mul(d, xd), builder.mul(h, xh))
                index = e.at(flat, builder.mul(d, flat_d), builder.mul(h, flat_h))
                if not ncolumns:
                    return e.loop(
                        nw, carried,
                        lambda w, c: tap(e.at(address, builder.mul(w, xw)), e.at(index, builder.mul(w, flat_w)), c),
                    )  # fmt: skip
                for w in range(ncolumns):
                    carried = tap(e.at(address, e.times(xw, w)), e.at(index, e.times(flat_w, w)), carried)
                return carried

            return e.loop(nh, carried, line)

        *flat_terms, nan = e.loop(nd, [*reduction.border * nvectors, I64(0)], plane)
        factor = None
        if nop:
            factor = e.unless_zero(scales, [e.load_splat(scale)], lambda v: [builder.fmul(v[0], e.load_splat(scales))])[
                0
            ]
        for v in range(nvectors):
            term = flat_terms[v * width : (v + 1) * width]
            term[0] = reduction.finish(term[0], factor, None, None)
            reduction.store(term, e.at(y, v * step), e.at(indices, v * nlanes * 8), masks[v])
        return nan

    return types.int64(*given, *(types.int64,) * 16), codegen


def _gather(e: Emitter, addresses: Any, mask: Any, otherwise: Any) -> Any:
    """Return the elements at a vector of addresses, of the type of ``otherwise``, which stands outside the mask."""
    b, kind = e.builder, otherwise.type
    element = kind.element
    pointers = ir.VectorType(element.as_pointer(), e.lanes)
    suffix = f"v{e.lanes}{'i64' if element == I64 else f'f{8 * e.bytes}'}"
    signature = ir.FunctionType(kind, [pointers, I32, mask.type, kind])
    function = cgutils.get_or_insert_function(b.module, signature, f"llvm.masked.gather.{suffix}.v{e.lanes}p0")
    return b.call(function, [b.inttoptr(addresses, pointers), I32(e.bytes), mask, otherwise])


@intrinsic(prefer_literal=True)
def pool_line(
    typingctx, op, indexed, exact, lanes, bits,
    line, places, starts, counts, kernel, step, y, indices, count, scale, scales,
):  # fmt: skip
    """Compute ``count`` outputs, at most ``lanes``, from a line of reduced columns; return what `pool_row` does.

    Literal integers: op, indexed, exact, lanes, bits (of an element).

    Values, addresses and strides in bytes: line, places (the index of each of its elements), starts and counts (of
    the windows: 64-bit integers, in elements, for all lanes), kernel (the largest count), step (from element to
    element of a window), y, indices, count, scale and scales (as in `pool_row`).
    """
    given = (op, indexed, exact, lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    nop, is_indexed, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, places, starts, counts, kernel, step, y, indices, count, scale, scales = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        # Squares are in the line already; the root is still to be taken.
        reduction = Reduction(e, nop, bool(is_indexed), bool(is_exact))
        wide = ir.VectorType(I64, nlanes)

        def integers(address: Any) -> Any:
            loaded = b.load(b.inttoptr(address, wide.as_pointer()))
            loaded.align = 8
            return loaded

        first, reads = integers(starts), integers(counts)

        def tap(k: Any, carried: list[Any]) -> list[Any]:
            *old, nan = carried
            element_of = b.add(first, e.splat(b.mul(k, step)))
            mask = b.icmp_signed("<", e.splat(k), reads)
            byte = b.add(e.splat(line), b.mul(element_of, ir.Constant(wide, [e.bytes] * nlanes)))
            new = [_gather(e, byte, mask, reduction.border[0])]
            if is_indexed:
                byte = b.add(e.splat(places), b.mul(element_of, ir.Constant(wide, [8] * nlanes)))
                index = _gather(e, byte, mask, ir.Constant(wide, [0] * nlanes))
                index = index if reduction.integer == I64 else b.trunc(index, reduction.indices)
                new.append(b.select(mask, index, reduction.border[1]))
            return [*reduction.combine(old, new, False), b.or_(nan, reduction.has_nan(new[:1]))]

        *total, nan = e.loop(kernel, [*reduction.border, I64(0)], tap)
        mask = e.first(count)
        total[0] = reduction.finish(total[0], e.load_splat(scale) if nop else None, scales, mask)
        reduction.store(total, y, indices, mask)
        return nan

    return types.int64(*given, *(types.int64,) * 11), codegen


@intrinsic(prefer_literal=True)
def pool_whole(typingctx, op, lanes, bits, x, stride, planes, size, y, scale, scratch):
    """Reduce up to ``lanes`` runs of neighbouring elements, each to one output; outputs are neighbours.

    Literal integers: op, lanes, bits (of an element).

    Values, addresses and strides in bytes: x, stride (from run to run), planes (how many), size (elements of each), y,
    scale (of a factor of the sums), scratch (a square of vectors).
    """
    given = (op, lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    nop, nlanes, element = known
    chains = 4

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, stride, planes, size, y, scale, scratch = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        reduction = Reduction(e, nop, False, True)
        step = nlanes * e.bytes

        def combine(a: Any, c: Any) -> Any:
            return reduction.combine([a], [c])[0]

        blocks = b.sdiv(size, I64(chains * nlanes))
        left = b.sub(size, e.times(blocks, chains * nlanes))
        ragged = e.first(b.srem(left, I64(nlanes)))

        def block(i: Any, carried: list[Any]) -> list[Any]:
            at, *sums = carried
            sums = [combine(s, reduction.load(e.at(at, c * step))) for c, s in enumerate(sums)]
            return [e.at(at, chains * step), *sums]

        def vector(i: Any, carried: list[Any]) -> list[Any]:
            at, *sums = carried
            return [e.at(at, step), *sums[1:], combine(sums[0], reduction.load(at))]

        def plane(i: Any, carried: list[Any]) -> list[Any]:
            state = [b.add(x, b.mul(i, stride)), *reduction.border * chains]
            state = if_any(e, blocks, state, block)
            vectors = b.sdiv(left, I64(nlanes))
            state = if_any(e, vectors, state, vector)
            at, *sums = state
            sums[0] = combine(sums[0], reduction.load(at, ragged))
            total = combine(combine(sums[0], sums[1]), combine(sums[2], sums[3]))
            e.store(total, e.at(scratch, e.times(i, step)))
            return []

        e.loop(planes, [], plane)
        rows = [e.load(e.at(scratch, i * step)) for i in range(nlanes)]
        # Halve what is left of each row, two rows into one vector.
        width = nlanes
        while len(rows) > 1:
            half = width // 2
            joined = []
            for first, second in zip(rows[::2], rows[1::2], strict=True):
                starts = range(0, nlanes, width)
                low = [s + i for s in starts for i in range(half)]
                low, high = low + [nlanes + i for i in low], [i + half for i in low] + [nlanes + i + half for i in low]
                joined.append(combine(pick(e, (first, second), low), pick(e, (first, second), high)))
            rows, width = joined, half
        result = reduction.finish(rows[0], e.load_splat(scale) if nop else None, None, None)
        e.store_masked(result, y, e.first(planes))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 7), codegen
