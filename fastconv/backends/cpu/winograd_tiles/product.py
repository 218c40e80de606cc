"""The micro-kernel: at every point, output channels times vectors of tiles, summed in registers over the channels."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import Emitter, literals


@intrinsic(prefer_literal=True)
def _product(typingctx, rows, vectors, lanes, bits, fused, points, terms, v, w, target):
    """Compute ``rows`` output channels by ``vectors`` of tiles, one point after another.

    Literal integers: rows, vectors, lanes, bits (of an element), fused (multiply-add exists). All lies as it is used:
    at v (point, term, vector), w (point, term, row) and the target (point, row, vector).
    """
    given = (rows, vectors, lanes, bits, fused)
    shape = literals(*given)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, vectors, lanes, bits, fused = shape
        points, terms, v, w, target = args[len(shape) :]
        e = Emitter(builder, bits, lanes, bool(fused))
        width = lanes * e.bytes

        def term(_: Any, values: list[Any]) -> list[Any]:
            source, weight, *sums = values
            tiles = [e.load(e.at(source, t * width)) for t in range(vectors)]
            for r in range(rows):
                factor = e.load_splat(e.at(weight, r * e.bytes))
                for t, tile in enumerate(tiles):
                    sums[r * vectors + t] = e.fma(factor, tile, sums[r * vectors + t])
            return [e.at(source, vectors * width), e.at(weight, rows * e.bytes), *sums]

        def point(_: Any, values: list[Any]) -> list[Any]:
            source, weight, result = values
            source, weight, *sums = e.loop(terms, [source, weight, *[e.zero] * (rows * vectors)], term)
            for i, total in enumerate(sums):
                e.store(total, e.at(result, i * width))
            return [source, weight, e.at(result, rows * vectors * width)]

        e.loop(points, [v, w, target], point)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 5), codegen


@cache
def product(rows: int, vectors: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled micro-kernel: points, channels of the input, addresses as `_product` takes them."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 5))
    def run(points, terms, v, w, target):
        if sources == 0:
            return
        _product(rows, vectors, lanes, bits, fused, points, terms, v, w, target)

    return run
