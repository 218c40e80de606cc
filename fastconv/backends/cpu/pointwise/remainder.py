"""The pixels of an image that fill no vector, where the weight is read where it is.

Lanes run along the weight instead: along input channels where these lie together, so that a sum is one of lanes, along
output channels where it was transposed. A pixel's own channels are side by side in a panel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals

# Sums of a pixel that are added up side by side, where one would wait for itself.
_CHAINS = 4


@intrinsic(prefer_literal=True)
def _pixels(
    typingctx, rows, pixels, lanes, bits, fused, apart,
    w, w_row, w_step, x, x_pixel, depth, y, y_row, bias, residual, activation,
):  # fmt: skip
    """Compute ``rows`` output channels of ``pixels`` pixels.

    Literal integers: rows, pixels, lanes, bits (of an element), fused (multiply-add exists), apart (whether rows of
    the weight are its input channels side by side; otherwise its output channels are).

    Values: w (address), w_row, w_step (bytes to the next output channel, and input channel), x (address), x_pixel
    (bytes to the next pixel), depth (input channels), y (address), y_row (bytes to the next output channel), bias,
    residual (lies like y) and activation (addresses, 0 for none).
    """
    given = (rows, pixels, lanes, bits, fused, apart)
    shape = literals(*given)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows_, pixels_, lanes_, bits_, fused_, apart_ = shape
        w, w_row, w_step, x, x_pixel, depth, y, y_row, bias, residual, activation = args[len(shape) :]
        e = Emitter(builder, bits_, lanes_, bool(fused_))
        if apart_:
            sums = _dots(e, rows_, pixels_, w, w_row, x, x_pixel, depth)
        else:
            sums = _scaled_rows(e, rows_, pixels_, w, w_step, x, x_pixel, depth)
        _finish(e, rows_, sums, y, y_row, bias, residual, activation)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 11), codegen


def _chunks(e: Emitter, rows: int) -> list[tuple[int, int]]:
    """Return (first, count) of the rows that share a vector."""
    return [(first, min(e.lanes, rows - first)) for first in range(0, rows, e.lanes)]


def _dots(e: Emitter, rows: int, pixels: int, w: Any, w_row: Any, x: Any, x_pixel: Any, depth: Any) -> list[list[Any]]:
    """Return each pixel's sums, vectors of output channels: products of whole rows of the weight."""
    b = e.builder
    whole, rest = b.sdiv(depth, I64(e.lanes)), b.srem(depth, I64(e.lanes))
    width = e.lanes * e.bytes

    def add(at: Any, from_: Any, mask: Any, total: list[Any]) -> list[Any]:
        total = list(total)
        values = [e.load_masked(e.at(from_, e.times(x_pixel, p)), mask) for p in range(pixels)]
        for r in range(rows):
            weight = e.load_masked(e.at(at, e.times(w_row, r)), mask)
            for p, value in enumerate(values):
                total[p * rows + r] = e.fma(weight, value, total[p * rows + r])
        return total

    def vector(_: Any, values: list[Any]) -> list[Any]:
        at, from_, *total = values
        return [e.at(at, width), e.at(from_, width), *add(at, from_, None, total)]

    total: list[Any] = [e.zero] * (rows * pixels)
    total = e.unless_zero(whole, total, lambda total: e.loop(whole, [w, x, *total], vector)[2:])
    done = b.mul(whole, I64(width))
    total = e.unless_zero(rest, total, lambda total: add(e.at(w, done), e.at(x, done), e.first(rest), total))
    return [
        [e.sums(total[p * rows + first : p * rows + first + count]) for first, count in _chunks(e, rows)]
        for p in range(pixels)
    ]


def _scaled_rows(
    e: Emitter, rows: int, pixels: int, w: Any, w_step: Any, x: Any, x_pixel: Any, depth: Any
) -> list[list[Any]]:
    """Return each pixel's sums, vectors of output channels: its channels' values times rows of the weight."""
    b = e.builder
    whole, rest = b.sdiv(depth, I64(_CHAINS)), b.srem(depth, I64(_CHAINS))
    chunks = _chunks(e, rows)
    length = pixels * len(chunks)

    def add(at: Any, from_: Any, total: list[Any]) -> list[Any]:
        weights = [e.load_masked(e.at(at, i * e.bytes), _mask(e, count)) for i, count in chunks]
        values = [e.load_splat(e.at(from_, e.times(x_pixel, p))) for p in range(pixels)]
        products = [(weight, value) for value in values for weight in weights]
        return [e.fma(weight, value, sum_) for (weight, value), sum_ in zip(products, total, strict=True)]

    def several(_: Any, values: list[Any]) -> list[Any]:
        at, from_, *total = values
        for i in range(_CHAINS):
            part = slice(i * length, (i + 1) * length)
            total[part] = add(e.at(at, e.times(w_step, i)), e.at(from_, i * e.bytes), total[part])
        return [e.at(at, e.times(w_step, _CHAINS)), e.at(from_, _CHAINS * e.bytes), *total]

    def one(_: Any, values: list[Any]) -> list[Any]:
        at, from_, *total = values
        return [e.at(at, w_step), e.at(from_, e.bytes), *add(at, from_, total[:length]), *total[length:]]

    total: list[Any] = [e.zero] * (_CHAINS * length)
    total = e.unless_zero(whole, total, lambda total: e.loop(whole, [w, x, *total], several)[2:])
    done = b.mul(whole, I64(_CHAINS))
    at, from_ = e.at(w, b.mul(w_step, done)), e.at(x, b.mul(done, I64(e.bytes)))
    total = e.unless_zero(rest, total, lambda total: e.loop(rest, [at, from_, *total], one)[2:])
    while len(total) > length:
        half = len(total) // 2
        total = [b.fadd(u, v) for u, v in zip(total[:half], total[half:], strict=True)]
    return [total[p * len(chunks) : (p + 1) * len(chunks)] for p in range(pixels)]


def _mask(e: Emitter, count: int) -> Any:
    return None if count == e.lanes else e.first(count)


def _finish(
    e: Emitter, rows: int, sums: list[list[Any]], y: Any, y_row: Any, bias: Any, residual: Any, activation: Any
) -> None:
    """Add what is to be added, and store element by element."""
    b = e.builder

    def biased(vectors: list[Any]) -> list[Any]:
        added = [e.load_masked(e.at(bias, first * e.bytes), _mask(e, count)) for first, count in _chunks(e, rows)]
        return [b.fadd(vector, value) for vector, value in zip(vectors, added * len(sums), strict=True)]

    places = [
        [e.at(y, e.times(y_row, first + i), p * e.bytes) for i in range(count)]
        for p in range(len(sums))
        for first, count in _chunks(e, rows)
    ]

    def added(vectors: list[Any]) -> list[Any]:
        beside = b.sub(residual, y)
        result = []
        for vector, place in zip(vectors, places, strict=True):
            loaded = e.zero
            for i, at in enumerate(place):
                loaded = b.insert_element(loaded, e.load_scalar(e.at(at, beside)), I32(i))
            result.append(b.fadd(vector, loaded))
        return result

    vectors = [vector for pixel in sums for vector in pixel]
    vectors = e.unless_zero(bias, vectors, biased)
    vectors = e.unless_zero(residual, vectors, added)
    vectors = e.unless_zero(activation, vectors, lambda v: activate(e, v, activation))
    for vector, place in zip(vectors, places, strict=True):
        for i, at in enumerate(place):
            e.store_part(vector, e.at(at, -i * e.bytes), i, 1)


@cache
def remainder(rows: int, pixels: int, lanes: int, bits: int, fused: int, apart: int) -> Any:
    """Return the compiled function; its arguments are those of `_pixels` that are no literals."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 11))
    def run(w, w_row, w_step, x, x_pixel, depth, y, y_row, bias, residual, activation):
        if sources == 0:
            return
        _pixels(
            rows, pixels, lanes, bits, fused, apart,
            w, w_row, w_step, x, x_pixel, depth, y, y_row, bias, residual, activation,
        )  # fmt: skip

    return run
