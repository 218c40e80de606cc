"""The micro-kernel of the weight gradient, and the transposition of a square that packs and unpacks for it."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Inputs that lie apart are addressed from one pointer for so many: its multiples of a stride are all that an
# instruction can add.
_REACH = 4


@intrinsic(prefer_literal=True)
def wgrad_tile(
    typingctx, cols, vectors, lanes, bits, fused, spread, apart,
    a, a_row, a_plane, b, b_col, b_row, b_plane, b_step, ncols, nrows, nplanes, start, sums, step,
):  # fmt: skip
    """Sum the products of ``vectors * lanes`` output channels and ``cols`` inputs over a box of pixels.

    Literal integers: cols, vectors, lanes, bits (of an element), fused (multiply-add exists), spread (channels of a
    group where several groups share a vector, 0 where a vector's channels are of one group), apart (the inputs of a
    pixel are not adjacent).

    Values, addresses and strides in bytes: a (dy: the output channels of a pixel, then the next pixel's), a_row,
    a_plane, b (x: the inputs of a pixel), b_col, b_row, b_plane, b_step (if spread: from one kernel position to the
    next; if apart: from one input to the next), the box, start (what the sums were so far: input, output channel; 0
    for none), sums, step (from an input's to the next's).
    """
    given = (cols, vectors, lanes, bits, fused, spread, apart)
    known = literals(*given)
    if known is None:
        return None
    cols_, vectors_, lanes_, bits_, fused_, spread_, apart_ = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_row, a_plane, b, b_col, b_row, b_plane, b_step, ncols, nrows, nplanes = args[len(known) : -3]
        start, sums, step = args[-3:]
        e = Emitter(builder, bits_, lanes_, bool(fused_))
        width = lanes_ * e.bytes
        pointers = -(-cols_ // _REACH) if apart_ else 1

        def value_of(at: list[Any], c: int) -> Any:
            if spread_:
                return _spread(e, e.at(at[0], e.times(b_step, c // spread_)), spread_, c)
            if apart_:
                return e.load_splat(e.at(at[c // _REACH], e.times(b_step, c % _REACH)))
            return e.load_splat(e.at(at[0], c * e.bytes))

        def pixel(_: Any, values: list[Any]) -> list[Any]:
            at_a, at, total = values[0], values[1 : 1 + pointers], values[1 + pointers :]
            factors = [e.load(e.at(at_a, v * width)) for v in range(vectors_)]
            for c in range(cols_):
                value = value_of(at, c)
                for v, factor in enumerate(factors):
                    i = c * vectors_ + v
                    total[i] = e.fma(value, factor, total[i])
            return [e.at(at_a, vectors_ * width), *(e.at(b, b_col) for b in at), *total]

        def row(_: Any, values: list[Any]) -> list[Any]:
            at_a, at_b, *total = values
            at = [e.at(at_b, e.times(b_step, _REACH * i)) for i in range(pointers)]
            return [e.at(at_a, a_row), e.at(at_b, b_row), *e.loop(ncols, [at_a, *at, *total], pixel)[1 + pointers :]]

        def plane(_: Any, values: list[Any]) -> list[Any]:
            at_a, at_b, *total = values
            return [e.at(at_a, a_plane), e.at(at_b, b_plane), *e.loop(nrows, [at_a, at_b, *total], row)[2:]]

        held = range(cols_ * vectors_)
        so_far = e.unless_zero(start, [e.zero] * len(held), lambda _: [e.load(e.at(start, i * width)) for i in held])
        targets = [e.at(sums, e.times(step, c), v * width) for c in range(cols_) for v in range(vectors_)]
        # Rows of dw may be far away; sums that lie side by side were there a moment ago.
        with builder.if_then(builder.icmp_signed("!=", step, I64(vectors_ * width))):
            for target in targets:
                e.prefetch(target, write=True)
        for target, value in zip(targets, e.loop(nplanes, [a, b, *so_far], plane)[2:], strict=True):
            e.store(value, target)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 14), codegen


@cache
def compiled_tile(cols: int, vectors: int, lanes: int, bits: int, fused: int, spread: int, apart: int) -> Any:
    """Return the compiled tile; its arguments are those of `wgrad_tile` that are no literals."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 14))
    def run(a, a_row, a_plane, b, b_col, b_row, b_plane, b_step, ncols, nrows, nplanes, start, sums, step):
        if sources == 0:
            return
        wgrad_tile(
            cols, vectors, lanes, bits, fused, spread, apart,
            a, a_row, a_plane, b, b_col, b_row, b_plane, b_step, ncols, nrows, nplanes, start, sums, step,
        )  # fmt: skip

    return run


def _spread(e: Emitter, address: Any, spread: int, col: int) -> Any:
    """Load a pixel's inputs of several groups, and give each group's lanes its own ``col``-th."""
    value = e.load(address)
    return e.shuffle(value, value, [lane - lane % spread + col % spread for lane in range(e.lanes)])


@intrinsic(prefer_literal=True)
def turn(typingctx, lanes, bits, to, listed, whole, source, stride, rows, count, target, offsets):
    """Transpose a square: ``count`` elements of ``rows`` rows, both at most ``lanes``.

    Element ``e`` of all rows goes to ``target + offsets[e]``. Literal integers besides lanes: bits and to (formats of
    what is read and of what is written), listed (``stride`` is the address of the rows' offsets; otherwise rows are
    ``stride`` bytes apart), whole (a whole vector is stored, zero beyond the rows; otherwise ``rows`` elements).
    """
    given = (lanes, bits, to, listed, whole)
    known = literals(*given)
    if known is None:
        return None
    width, element, written, by_list, entire = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, rows, count, target, offsets = args[5:]
        e, out = Emitter(builder, element, width), Emitter(builder, written, width)

        def origin(row: int) -> Any:
            return e.at(source, e.load_integer(e.at(stride, 8 * row)) if by_list else e.times(stride, row))

        def place(i: int) -> Any:
            return e.load_integer(e.at(offsets, 8 * i))

        def full_square() -> None:
            for i, vector in enumerate(e.transpose([e.load(origin(row)) for row in range(width)])):
                out.store(vector, e.at(target, place(i)))

        def part() -> None:
            mask = e.first(count)
            loaded = []
            for row in range(width):
                inside = builder.zext(builder.icmp_signed("<", I64(row), rows), I64)
                load = partial(lambda row, _: [e.load_masked(origin(row), mask)], row)
                loaded += e.unless_zero(inside, [e.zero], load)
            stored = None if entire else e.first(rows)
            for i, vector in enumerate(e.transpose(loaded)):
                with builder.if_then(builder.icmp_signed("<", I64(i), count)):
                    out.store_masked(vector, e.at(target, place(i)), stored)

        full = builder.icmp_signed("==", builder.add(rows, count), I64(2 * width))
        with builder.if_else(full) as (then, otherwise):
            with then:
                full_square()
            with otherwise:
                part()
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 6), codegen


@intrinsic(prefer_literal=True)
def lift(typingctx, lanes, bits, to, whole, source, count, target):
    """Copy ``count`` adjacent elements, at most ``lanes``; ``whole``: and fill the vector with zeros.

    ``bits`` and ``to`` are the formats of what is read and written.
    """
    given = (lanes, bits, to, whole)
    known = literals(*given)
    if known is None:
        return None
    width, element, written, entire = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, target = args[4:]
        e, out = Emitter(builder, element, width), Emitter(builder, written, width)
        mask = e.first(count)
        out.store_masked(e.load_masked(source, mask), target, None if entire else mask)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 3), codegen
