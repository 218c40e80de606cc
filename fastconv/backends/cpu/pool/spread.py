"""Micro-kernels of pools' gradients: every element of the input gathers from the windows that read it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import Indices, index_type, narrowed
from fastconv.backends.cpu.pool.reduction import pick
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


@intrinsic(prefer_literal=True)
def route_row(typingctx, kernel, index, lanes, format, dy, indices, count, flat, rows, flat_h, width, room, dx, xh):
    """Send a row of a max pool's gradients to where the maxima stand, in windows side by side without padding.

    Literal integers: kernel (columns of a window), index (bytes of one), lanes, format (of an element).

    Values, addresses and strides in bytes: dy and indices (a row of outputs), count (of these), flat (index of the
    windows' first element), rows (of a window), flat_h (from row to row of the index), width (of the input), room
    (as in `spread_row`; -1 for no more than a row), dx (the first of the rows, all of which are written whole), xh
    (from row to row).
    """
    given = (kernel, index, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nkernel, size, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, indices, count, flat, rows, flat_h, width, room, dx, xh = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        kind = ir.VectorType(index_type(e), nlanes)
        step, span = nlanes * e.bytes, nkernel * nlanes

        def block(group: Any, _: list[Any]) -> list[Any]:
            mask = e.first(b.sub(count, e.times(group, nlanes)))
            value = e.load_masked(e.at(dy, e.times(group, step)), mask)
            chosen = Indices(e, size).load(e.at(indices, e.times(group, size * nlanes)), mask)
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
