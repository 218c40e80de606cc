"""Micro-kernels of pools' gradients: every element of the input gathers from the windows that read it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.reduction import index_type, narrowed, pick
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


def _whole_or_part(e: Emitter, first: Any, count: int, width: Any, room: Any, store: Any) -> None:
    """Emit stores of ``count`` vectors from column ``first`` on, masked only where they leave the room."""
    b, lanes = e.builder, e.lanes
    kind = ir.VectorType(I32, lanes)
    inside = b.and_(b.icmp_signed(">=", first, I64(0)), b.icmp_signed("<=", e.at(first, count * lanes), room))
    with b.if_else(inside) as (whole, part):
        with whole:
            for v in range(count):
                store(v, None)
        with part:
            at, end = e.splat(b.trunc(first, I32)), e.splat(b.trunc(width, I32))
            for v in range(count):
                place = b.add(at, ir.Constant(kind, list(range(v * lanes, (v + 1) * lanes))))
                store(v, b.icmp_unsigned("<", place, end))


@intrinsic(prefer_literal=True)
def spread_row(typingctx, kernel, stride, lanes, format, line, width, room, before, dx):
    """Fold a line of the windows' values into a row: each element is the sum of those of the windows that read it.

    Literal integers: kernel and stride of the columns (0: there is one window, as wide as the row), lanes, format (of
    the row's elements; the line is as computed).

    Values and addresses: line (with a vector of zeros before it, and zeros behind it as far as the row goes), width
    (of the row), room (elements that may be written from its start on: what lies behind is written later), before
    (padding), dx.
    """
    given = (kernel, stride, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nkernel, nstride, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, width, room, before, dx = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        wide, step = e.wide, nlanes * e.bytes
        count = max(nstride, 1)
        value = wide.load_splat(line)

        def block(group: Any, _: list[Any]) -> list[Any]:
            first = b.sub(e.times(group, count * nlanes), before)
            at = e.at(line, e.times(group, nlanes * wide.bytes))
            shifted = [wide.load(e.at(at, -m * wide.bytes)) for m in range(-(-nkernel // count))] if nkernel else []
            phases = []
            for phase in range(count):
                reach = [shifted[k // count] for k in range(phase, nkernel, count)]
                total = reach[0] if reach else (e.zero if nkernel else value)
                for term in reach[1:]:
                    total = b.fadd(total, term)
                phases.append(total)

            def store(v: int, mask: Any) -> None:
                places = [p % count * nlanes + p // count for p in range(v * nlanes, (v + 1) * nlanes)]
                target = e.at(dx, e.times(first, e.bytes), v * step)
                e.store_masked(pick(e, phases, places), target, mask)

            _whole_or_part(e, first, count, width, room, store)
            return []

        span = count * nlanes
        e.loop(b.sdiv(e.at(width, before, span - 1), I64(span)), [], block)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 5), codegen


def load_indices(e: Emitter, address: Any, mask: Any) -> Any:
    """Return a vector of indices, -1 outside the mask."""
    b = e.builder
    wide = ir.VectorType(I64, e.lanes)
    pointer = b.inttoptr(address, wide.as_pointer())
    if mask is None:
        loaded = b.load(pointer)
        loaded.align = 8
        return narrowed(e, loaded)
    kind = ir.FunctionType(wide, [pointer.type, I32, mask.type, wide])
    function = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.load.v{e.lanes}i64.p0")
    return narrowed(e, b.call(function, [pointer, I32(8), mask, ir.Constant(wide, [-1] * e.lanes)]))


@intrinsic(prefer_literal=True)
def route_row(typingctx, kernel, lanes, format, dy, indices, count, flat, rows, flat_h, width, room, dx, xh):
    """Send a row of a max pool's gradients to where the maxima stand, in windows side by side without padding.

    Literal integers: kernel (columns of a window), lanes, format (of an element).

    Values, addresses and strides in bytes: dy and indices (a row of outputs), count (of these), flat (index of the
    windows' first element), rows (of a window), flat_h (from row to row of the index), width (of the input), room
    (as in `spread_row`; -1 for no more than a row), dx (the first of the rows, all of which are written whole), xh
    (from row to row).
    """
    given = (kernel, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nkernel, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, indices, count, flat, rows, flat_h, width, room, dx, xh = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        kind = ir.VectorType(index_type(e), nlanes)
        step, span = nlanes * e.bytes, nkernel * nlanes

        def block(group: Any, _: list[Any]) -> list[Any]:
            mask = e.first(b.sub(count, e.times(group, nlanes)))
            value = e.load_masked(e.at(dy, e.times(group, step)), mask)
            chosen = load_indices(e, e.at(indices, e.times(group, 8 * nlanes)), mask)
            first = e.times(group, span)

            def row(r: Any, _: list[Any]) -> list[Any]:
                start = e.splat(narrowed(e, e.at(flat, b.mul(r, flat_h), first)))
                phases = []
                for phase in range(nkernel):
                    lane = ir.Constant(kind, [nkernel * i + phase for i in range(nlanes)])
                    phases.append(b.select(b.icmp_signed("==", chosen, b.add(start, lane)), value, e.zero))
                target = e.at(dx, b.mul(r, xh), e.times(first, e.bytes))

                def store(v: int, mask: Any) -> None:
                    places = [p % nkernel * nlanes + p // nkernel for p in range(v * nlanes, (v + 1) * nlanes)]
                    e.store_masked(pick(e, phases, places), e.at(target, v * step), mask)

                reach = b.select(b.icmp_signed("<", room, I64(0)), width, b.sub(room, b.mul(r, flat_h)))
                _whole_or_part(e, first, nkernel, width, reach, store)
                return []

            return e.loop(rows, [], row)

        e.loop(b.sdiv(e.at(width, span - 1), I64(span)), [], block)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 10), codegen


@intrinsic(prefer_literal=True)
def cover_pixel(
    typingctx, vectors, partial, fused, lanes, format,
    dy, nd, yd, nh, yh, nw, yw, scale, scale_d, scales, dx, count,
):  # fmt: skip
    """Compute one element of an average's gradient for ``vectors * lanes`` channels.

    Literal integers: vectors, partial (``count`` channels may be fewer),
    fused (multiply-add exists), lanes, format (of an element).

    Values, addresses and strides in bytes: dy (of the first window that reads it), how many depths, rows and columns
    of windows read it and how far apart they are, scale and scale_d (address of the first window's factor, step to
    the next depth; those of rows are neighbours), scales (of that of its column, 0 for none), dx, count (channels to
    store).
    """
    given = (vectors, partial, fused, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nvectors, is_partial, has_fma, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, nd, yd, nh, yh, nw, yw, scale, scale_d, scales, dx, count = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes, bool(has_fma))
        wide, step = e.wide, nlanes * e.bytes
        masks = [e.first(e.at(count, -v * nlanes)) if is_partial else None for v in range(nvectors)]

        def tap(d: Any, h: Any, w: Any, sums: list[Any]) -> list[Any]:
            at = e.at(dy, b.mul(d, yd), b.mul(h, yh), b.mul(w, yw))
            values = [e.load_masked(e.at(at, v * step), masks[v]) for v in range(nvectors)]
            factor = wide.load_splat(e.at(scale, b.mul(d, scale_d), e.times(h, wide.bytes)))
            factor = e.unless_zero(
                scales, [factor], lambda f: [b.fmul(f[0], wide.load_splat(e.at(scales, e.times(w, wide.bytes))))]
            )[0]
            return [e.fma(value, factor, s) for s, value in zip(sums, values, strict=True)]

        def plane(d: Any, sums: list[Any]) -> list[Any]:
            return e.loop(nh, sums, lambda h, s: e.loop(nw, s, lambda w, t: tap(d, h, w, t)))

        for v, total in enumerate(e.loop(nd, [e.zero] * nvectors, plane)):
            e.store_masked(total, e.at(dx, v * step), masks[v])
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 12), codegen
