"""The micro-kernels of a locally connected layer: some rows of a position's matrix, and what they meet.

Lanes run along the rows, which is how the weight lies: every element is read once, in order.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.simd import I64, Emitter, literals


def _sum_lanes(e: Emitter, vectors: list[Any]) -> Any:
    """Return the vector of the sums over the lanes of at most as many vectors as there are lanes."""
    current, step = vectors + [e.zero] * (e.lanes - len(vectors)), 1
    while step < e.lanes:
        low = [lane if not lane & step else e.lanes + lane - step for lane in range(e.lanes)]
        high = [lane + step if not lane & step else e.lanes + lane for lane in range(e.lanes)]
        pairs = zip(current[::2], current[1::2], strict=True)
        current = [e.builder.fadd(e.shuffle(a, b, low), e.shuffle(a, b, high)) for a, b in pairs]
        step *= 2
    return current[0]


@intrinsic(prefer_literal=True)
def multiply(typingctx, rows, images, lanes, format, fused, w, row, x, image, vectors, tail, sums):
    """Multiply ``rows`` rows of a matrix by the windows of ``images`` images.

    Literal integers: rows, images, lanes, format, fused (multiply-add exists). Values: w (address; rows ``row`` bytes
    apart), x (address of windows ``image`` bytes apart), whole vectors of a row and the elements after these, sums
    (address of those of an image's rows after another's).
    """
    shape = literals(rows, images, lanes, format, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, images, lanes, stored, fused = shape
        w, row, x, image, vectors, tail, sums = args[5:]
        outer = Emitter(builder, stored, lanes, bool(fused))
        e = outer.wide

        def step(w: Any, x: Any, total: list[Any], mask: Any = None) -> list[Any]:
            def weight(i: int) -> Any:
                return outer.load_masked(e.at(w, e.times(row, i)), mask)

            def window(j: int) -> Any:
                return e.load_masked(e.at(x, e.times(image, j)), mask)

            # The fewer are held in registers.
            by_row = images <= rows
            held = [window(j) for j in range(images)] if by_row else [weight(i) for i in range(rows)]
            result = list(total)
            for a in range(rows if by_row else images):
                loaded = weight(a) if by_row else window(a)
                for b, other in enumerate(held):
                    place = b * rows + a if by_row else a * rows + b
                    result[place] = e.fma(loaded, other, result[place])
            return result

        def one(_: Any, values: list[Any]) -> list[Any]:
            w, x, *total = values
            return [e.at(w, lanes * outer.bytes), e.at(x, lanes * e.bytes), *step(w, x, total)]

        total = [e.zero] * (rows * images)
        total = e.unless_zero(vectors, total, lambda start: e.loop(vectors, [w, x, *start], one)[2:])
        end_w = e.at(w, e.times(vectors, lanes * outer.bytes))
        end_x = e.at(x, e.times(vectors, lanes * e.bytes))
        total = e.unless_zero(tail, total, lambda start: step(end_w, end_x, start, e.first(tail)))
        for first in range(0, len(total), lanes):
            e.store(_sum_lanes(e, total[first : first + lanes]), e.at(sums, first * e.bytes))
        return context.get_dummy_value()

    return types.void(rows, images, lanes, format, fused, *(types.int64,) * 7), codegen


@intrinsic(prefer_literal=True)
def multiply_back(typingctx, rows, images, lanes, format, fused, w, row, dy, next_dy, dx, image, vectors, tail, add):
    """Add ``rows`` rows of a matrix, times an output gradient each, to the windows of ``images`` images.

    Literal integers as of `multiply`. Values: w (address; rows ``row`` bytes apart), dy (address of a row's gradient,
    of rows side by side, of images ``next_dy`` bytes apart), dx (address of windows ``image`` bytes apart), whole
    vectors of a row and the elements after these, and whether the windows hold anything yet.
    """
    shape = literals(rows, images, lanes, format, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, images, lanes, stored, fused = shape
        w, row, dy, next_dy, dx, image, vectors, tail, add = args[5:]
        outer = Emitter(builder, stored, lanes, bool(fused))
        e = outer.wide
        factors = [
            [e.load_splat(e.at(dy, e.times(next_dy, j), i * e.bytes)) for j in range(images)] for i in range(rows)
        ]
        held = builder.icmp_signed("!=", add, I64(0))

        def step(w: Any, dx: Any, mask: Any = None) -> None:
            places = [e.at(dx, e.times(image, j)) for j in range(images)]
            # What is there may be anything if it does not count.
            total = [builder.select(held, e.load(place), e.zero) for place in places]
            for i in range(rows):
                weight = outer.load_masked(e.at(w, e.times(row, i)), mask)
                total = [e.fma(weight, factors[i][j], total[j]) for j in range(images)]
            for value, place in zip(total, places, strict=True):
                e.store(value, place)

        def one(_: Any, values: list[Any]) -> list[Any]:
            w, dx = values
            step(w, dx)
            return [e.at(w, lanes * outer.bytes), e.at(dx, lanes * e.bytes)]

        with builder.if_then(builder.icmp_signed(">", vectors, I64(0))):
            e.loop(vectors, [w, dx], one)
        with builder.if_then(builder.icmp_signed(">", tail, I64(0))):
            end_w = e.at(w, e.times(vectors, lanes * outer.bytes))
            step(end_w, e.at(dx, e.times(vectors, lanes * e.bytes)), e.first(tail))
        return context.get_dummy_value()

    return types.void(rows, images, lanes, format, fused, *(types.int64,) * 9), codegen


@intrinsic(prefer_literal=True)
def outer_product(typingctx, rows, vectors, lanes, format, fused, dy, next_dy, x, image, images, dw, row, count):
    """Sum over images the products of ``rows`` output gradients and ``vectors`` vectors of a window.

    Literal integers as of `multiply`. Values: dy (address, a row's gradient after another's; images ``next_dy`` bytes
    apart), x (address of windows ``image`` bytes apart), how many images, dw (address; rows ``row`` bytes apart), the
    elements to store of a row if these are fewer than there are.
    """
    shape = literals(rows, vectors, lanes, format, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, vectors, lanes, stored, fused = shape
        dy, next_dy, x, image, images, dw, row, count = args[5:]
        outer = Emitter(builder, stored, lanes, bool(fused))
        e = outer.wide

        def one(_: Any, values: list[Any]) -> list[Any]:
            dy, x, *total = values
            # A window of less than a vector may end where memory does.
            mask = e.first(count) if vectors == 1 else None
            windows = [e.load_masked(e.at(x, v * lanes * e.bytes), mask) for v in range(vectors)]
            result = []
            for i in range(rows):
                factor = e.load_splat(e.at(dy, i * e.bytes))
                result += [e.fma(factor, windows[v], total[i * vectors + v]) for v in range(vectors)]
            return [e.at(dy, next_dy), e.at(x, image), *result]

        total = e.loop(images, [dy, x, *[e.zero] * (rows * vectors)], one)[2:]
        places = [e.at(dw, e.times(row, i), v * lanes * outer.bytes) for i in range(rows) for v in range(vectors)]
        with builder.if_else(builder.icmp_signed(">=", count, I64(vectors * lanes)), likely=True) as (whole, part):
            with whole:
                for value, place in zip(total, places, strict=True):
                    outer.store(value, place)
            with part:
                masks = [e.first(builder.sub(count, I64(v * lanes))) for v in range(vectors)]
                for i, (value, place) in enumerate(zip(total, places, strict=True)):
                    outer.store_masked(value, place, masks[i % vectors])
        return context.get_dummy_value()

    return types.void(rows, vectors, lanes, format, fused, *(types.int64,) * 8), codegen


@intrinsic(prefer_literal=True)
def finish(typingctx, lanes, format, source, count, y, bias, residual, activation):
    """Store ``count`` sums, at most ``lanes``, after a bias, a residual and an activation, 0 for none.

    Bias and residual lie like y.
    """
    shape = literals(lanes, format)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, y, bias, residual, activation = args[2:]
        outer = Emitter(builder, shape[1], shape[0])
        e = outer.wide
        mask = e.first(count)
        sums = [e.load(source)]

        def add(values: list[Any], at: Any) -> list[Any]:
            return [builder.fadd(values[0], outer.load_masked(at, mask))]

        for at in (bias, residual):
            sums = e.unless_zero(at, sums, functools.partial(add, at=at))
        sums = e.unless_zero(activation, sums, lambda s: activate(e, s, activation))
        outer.store_masked(sums[0], y, mask)
        return context.get_dummy_value()

    return types.void(lanes, format, *(types.int64,) * 6), codegen


@intrinsic(prefer_literal=True)
def copy_piece(typingctx, lanes, format, source, target):
    """Copy a vector."""
    shape = literals(lanes, format)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, shape[1], shape[0])
        e.store(e.load(args[2]), args[3])
        return context.get_dummy_value()

    return types.void(lanes, format, *(types.int64,) * 2), codegen


@intrinsic(prefer_literal=True)
def add_piece(typingctx, lanes, format, source, target, count):
    """Add ``count`` elements, at most ``lanes``; the rest of a vector is read and written as it is."""
    shape = literals(lanes, format)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, shape[1], shape[0])
        source, target, count = args[2:]
        e.store(builder.fadd(e.load(target), e.load_masked(source, e.first(count))), target)
        return context.get_dummy_value()

    return types.void(lanes, format, *(types.int64,) * 3), codegen
