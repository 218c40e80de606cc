"""The micro-kernel with pixels in the lanes, what fills the slabs that it reads, and what adds up its lanes."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def _pixels_tile(typingctx, outputs, cells, lanes, bits, fused, y, yk, x, places, count, sums, row, add, soon):
    """Sum the products of ``outputs`` lines of dy and ``cells`` lines of x.

    Literal integers: outputs, cells, lanes, bits (of an element), fused (multiply-add exists).

    Values, addresses and strides in bytes: y, yk (the first line of dy; from line to line), x, places (address of the
    offset of every cell's line), count (elements of a line), sums (a vector for each cell), row (from an output
    channel's sums to the next), add (0 if the sums begin), soon (a line that is asked for).
    """
    given = (outputs, cells, lanes, bits, fused)
    known = literals(*given)
    if known is None:
        return None
    height, width, nlanes, element, has_fma = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        y, yk, x, places, count, sums, row, add, soon = args[len(known) :]
        e = Emitter(builder, element, nlanes, bool(has_fma))
        step = nlanes * e.bytes
        left = [e.at(y, e.times(yk, k)) for k in range(height)]
        right = [e.at(x, e.load_integer(e.at(places, 8 * c))) for c in range(width)]

        def products(total: list[Any], offset: Any, mask: Any) -> list[Any]:
            # The fewer of the two kinds of factors stay in registers; the others come and go.
            few, many = (left, right) if height <= width else (right, left)
            held = [e.load_masked(e.at(at, offset), mask) for at in few]
            for j, at in enumerate(many):
                factor = e.load_masked(e.at(at, offset), mask)
                for i, other in enumerate(held):
                    cell = i * width + j if height <= width else j * width + i
                    total[cell] = e.fma(factor, other, total[cell])
            return total

        def rounds(values: list[Any]) -> list[Any]:
            def one(index: Any, total: list[Any]) -> list[Any]:
                offset = e.times(index, step)
                e.prefetch(e.at(soon, offset), level=2)
                return products(total, offset, None)

            return e.loop(whole, values, one)

        def rest(values: list[Any]) -> list[Any]:
            # Beyond the lines' end nothing is multiplied: zero times infinity would be NaN.
            return products(values, e.times(whole, step), e.first(remaining))

        whole = builder.sdiv(count, I64(nlanes))
        remaining = builder.sub(count, e.times(whole, nlanes))
        targets = [e.at(sums, e.times(row, k), c * step) for k in range(height) for c in range(width)]
        total = e.unless_zero(add, [e.zero] * len(targets), lambda _: [e.load(target) for target in targets])
        total = e.unless_zero(remaining, e.unless_zero(whole, total, rounds), rest)
        for target, value in zip(targets, total, strict=True):
            e.store(value, target)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 9), codegen


@cache
def compiled_tile(outputs: int, cells: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled tile; its arguments are those of `_pixels_tile` that are no literals."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 9))
    def run(y, yk, x, places, count, sums, row, add, soon):
        if sources == 0:
            return
        _pixels_tile(outputs, cells, lanes, bits, fused, y, yk, x, places, count, sums, row, add, soon)

    return run


@intrinsic(prefer_literal=True)
def pick(typingctx, lanes, bits, apart, source, down, begin, end, target, row, rows, ahead):
    """Store a whole vector of every ``apart``-th element, row by row.

    Values, addresses and strides in bytes: source (the first row's first element), from row to row; begin and end,
    counted from there (elements that exist: others are zero, and not touched); target, from row to row; rows (one at
    least); ahead (from what is read to what is asked for, 0 for nothing).
    """
    given = (lanes, bits, apart)
    known = literals(*given)
    if known is None:
        return None
    width, element, stride = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, down, begin, end, target, row, rows, ahead = args[len(known) :]
        e = Emitter(builder, element, width)
        asks = builder.icmp_signed("!=", ahead, I64(0))

        def copy(masks: list[Any]) -> None:
            def line(index: Any, _: list[Any]) -> list[Any]:
                at = e.at(source, builder.mul(index, down))
                with builder.if_then(asks):
                    for v in range(stride):
                        e.prefetch(e.at(at, ahead, v * width * e.bytes), level=2)
                value, *others = [e.load_masked(e.at(at, v * width * e.bytes), m) for v, m in enumerate(masks)]
                for v, other in enumerate(others, 1):
                    # Where elements stand whose turn is not over: later ones come with a vector of their own.
                    places = [min(lane * stride - (v - 1) * width, 2 * width - 1) for lane in range(width)]
                    order = [place if v == 1 or place >= width else lane for lane, place in enumerate(places)]
                    value = e.shuffle(value, other, order)
                e.store(value, e.at(target, builder.mul(index, row)))
                return []

            e.loop(rows, [], line)

        whole = builder.and_(
            builder.icmp_signed("<=", begin, I64(0)), builder.icmp_signed(">=", end, I64(stride * width))
        )
        with builder.if_else(whole) as (inside, edge):
            with inside:
                copy([None] * stride)
            with edge:
                before, behind = ([e.first(e.at(bound, -v * width)) for v in range(stride)] for bound in (begin, end))
                copy([builder.and_(builder.not_(b), a) for b, a in zip(before, behind, strict=True)])
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 8), codegen


@intrinsic(prefer_literal=True)
def add_up(typingctx, lanes, bits, source, target, count):
    """Store the sums of the lanes of the first ``count`` of ``lanes`` vectors, all of which are read."""
    given = (lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, count = args[len(known) :]
        e = Emitter(builder, element, width)
        sums = e.sums([e.load(e.at(source, i * width * e.bytes)) for i in range(width)])
        e.store_masked(sums, target, e.first(count))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 3), codegen
