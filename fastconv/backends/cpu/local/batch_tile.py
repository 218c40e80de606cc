"""The micro-kernels of a locally connected layer whose lanes are images: elements of the weight are broadcast."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def multiply_batch(
    typingctx, rows, vectors, lanes, format, fused,
    w, row, column, x, line, lines, step, taps, bias, next_bias, y, next_y,
):  # fmt: skip
    """Multiply ``rows`` rows of a matrix by the window of ``vectors`` vectors of images.

    Literal integers: rows, vectors, lanes, format, fused (multiply-add exists). Values: w (address; rows ``row`` bytes
    apart, elements of one ``column`` bytes), x (address of the window: ``lines`` lines of ``taps`` vectors each, and
    how far these lie apart), bias (address, 0 for none; of rows ``next_bias`` bytes apart), y (address; of rows
    ``next_y`` bytes apart).
    """
    shape = literals(rows, vectors, lanes, format, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, vectors, lanes, stored, fused = shape
        w, row, column, x, line, lines, step, taps, bias, next_bias, y, next_y = args[5:]
        outer = Emitter(builder, stored, lanes, bool(fused))
        e = outer.wide
        width = lanes * e.bytes

        def tap(_: Any, values: list[Any]) -> list[Any]:
            w, x, ahead, *total = values
            e.prefetch(ahead, level=2)
            window = [e.load(e.at(x, v * width)) for v in range(vectors)]
            result = []
            for i in range(rows):
                weight = outer.load_splat(e.at(w, e.times(row, i)))
                result += [e.fma(weight, window[v], total[i * vectors + v]) for v in range(vectors)]
            return [e.at(w, column), e.at(x, step), e.at(ahead, rows * outer.bytes), *result]

        def one_line(_: Any, values: list[Any]) -> list[Any]:
            w, x, ahead, *total = values
            w, _, ahead, *total = e.loop(taps, [w, x, ahead, *total], tap)
            return [w, e.at(x, line), ahead, *total]

        def begin(_: Any) -> list[Any]:
            return [outer.load_splat(e.at(bias, e.times(next_bias, i))) for i in range(rows)]

        start = [value for value in e.unless_zero(bias, [e.zero] * rows, begin) for _ in range(vectors)]
        # The next tile's rows, all of them while this one's are multiplied.
        ahead = e.at(w, e.times(row, rows))
        total = e.loop(lines, [w, x, ahead, *start], one_line)[3:]
        for i in range(rows):
            for v in range(vectors):
                e.store(total[i * vectors + v], e.at(y, e.times(next_y, i), v * width))
        return context.get_dummy_value()

    return types.void(rows, vectors, lanes, format, fused, *(types.int64,) * 12), codegen


@intrinsic(prefer_literal=True)
def multiply_back_batch(typingctx, terms, vectors, lanes, format, fused, w, row, rows, dy, dx, offsets):
    """Add ``terms`` columns of a matrix, times the output gradients, to vectors of images.

    Literal integers: terms, and as of `multiply_batch`. Values: w (address; ``rows`` rows, ``row`` bytes apart), dy
    (address; a row's vectors after another's), dx (address, to which a column's offset is added), offsets (address).
    """
    shape = literals(terms, vectors, lanes, format, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        terms, vectors, lanes, stored, fused = shape
        w, row, rows, dy, dx, offsets = args[5:]
        outer = Emitter(builder, stored, lanes, bool(fused))
        e = outer.wide
        width = lanes * e.bytes

        def one(_: Any, values: list[Any]) -> list[Any]:
            w, dy, *total = values
            # What comes after the next tile's elements: no processor foresees rows that lie far apart.
            e.prefetch(e.at(w, 2 * terms * outer.bytes))
            gradients = [e.load(e.at(dy, v * width)) for v in range(vectors)]
            result = []
            for t in range(terms):
                weight = outer.load_splat(e.at(w, t * outer.bytes))
                result += [e.fma(weight, gradients[v], total[t * vectors + v]) for v in range(vectors)]
            return [e.at(w, row), e.at(dy, vectors * width), *result]

        total = e.loop(rows, [w, dy, *[e.zero] * (terms * vectors)], one)[2:]
        for t in range(terms):
            place = e.at(dx, e.load_integer(e.at(offsets, 8 * t)))
            for v in range(vectors):
                at = e.at(place, v * width)
                e.store(builder.fadd(e.load(at), total[t * vectors + v]), at)
        return context.get_dummy_value()

    return types.void(terms, vectors, lanes, format, fused, *(types.int64,) * 6), codegen


@intrinsic(prefer_literal=True)
def finish_turned(typingctx, lanes, format, source, step, count, images, y, next_image, residual, activation):
    """Store ``count`` vectors, ``step`` bytes apart, as lines of ``images`` images, ``next_image`` bytes apart.

    Count and images are at most ``lanes``. A residual (which lies like y) is added and an activation applied before, 0
    for none.
    """
    shape = literals(lanes, format)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, count, images, y, next_image, residual, activation = args[2:]
        outer = Emitter(builder, shape[1], shape[0])
        e = outer.wide
        last = builder.sub(count, I64(1))

        def load(i: int) -> Any:
            # A vector that does not exist reads the last one's place.
            index = builder.select(builder.icmp_signed("<", I64(i), count), I64(i), last)
            return e.load(e.at(source, builder.mul(step, index)))

        mask = e.first(count)

        def store(vector: Any, offset: Any) -> None:
            def add(sums: list[Any]) -> list[Any]:
                return [builder.fadd(sums[0], outer.load_masked(e.at(residual, offset), mask))]

            sums = e.unless_zero(residual, [vector], add)
            sums = e.unless_zero(activation, sums, lambda s: activate(e, s, activation))
            outer.store_masked(sums[0], e.at(y, offset), mask)

        for image, vector in enumerate(e.transpose([load(i) for i in range(e.lanes)])):
            with builder.if_then(builder.icmp_signed("<", I64(image), images)):
                store(vector, e.times(next_image, image))
        return context.get_dummy_value()

    return types.void(lanes, format, *(types.int64,) * 8), codegen
