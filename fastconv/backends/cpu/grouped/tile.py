"""The micro-kernel: some output channels of a group by some vectors of neighbouring outputs, held in registers."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import Emitter, literals


@intrinsic(prefer_literal=True)
def _group_tile(
    typingctx, channels, vectors, lanes, bits, fused, listed, x, places, terms, w, wk, y, yk, bias
):  # fmt: skip
    """Compute ``channels`` output channels of ``vectors * lanes`` neighbouring outputs.

    Literal integers: channels, vectors, lanes, bits (of an element), fused (multiply-add exists), listed (of
    every term, the weight's place is listed beside that of x; otherwise weights follow one another).

    Values, addresses and strides in bytes: x (what the first output's terms are counted from), places (address of
    an offset into x for every term of the sums, with one into w if listed), terms (how many), w, wk (weights of the
    first channel; from channel to channel), y, yk (the same of the sums that are stored), bias (0 for none).
    """
    given = (channels, vectors, lanes, bits, fused, listed)
    known = literals(*given)
    if known is None:
        return None
    height, width, nlanes, element, has_fma, is_listed = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, places, terms, w, wk, y, yk, bias = args[len(known) :]
        e = Emitter(builder, element, nlanes, bool(has_fma))
        step = nlanes * e.bytes
        weights = [e.at(w, e.times(wk, k)) for k in range(height)]

        def term(index: Any, sums: list[Any]) -> list[Any]:
            place = e.at(places, e.times(index, 16 if is_listed else 8))
            at = e.at(x, e.load_integer(place))
            offset = e.load_integer(e.at(place, 8)) if is_listed else e.times(index, e.bytes)
            # The fewer of the two kinds of factors stay in registers; the others come and go.
            if height <= width:
                factors = [e.load_splat(e.at(weights[k], offset)) for k in range(height)]
                for v in range(width):
                    values = e.load(e.at(at, v * step))
                    for k in range(height):
                        sums[k * width + v] = e.fma(values, factors[k], sums[k * width + v])
            else:
                columns = [e.load(e.at(at, v * step)) for v in range(width)]
                for k in range(height):
                    factor = e.load_splat(e.at(weights[k], offset))
                    for v in range(width):
                        sums[k * width + v] = e.fma(columns[v], factor, sums[k * width + v])
            return sums

        def load_bias(_: Any) -> list[Any]:
            return [e.load_splat(e.at(bias, k * e.bytes)) for k in range(height)]

        start = e.unless_zero(bias, [e.zero] * height, load_bias)
        sums = e.loop(terms, [value for value in start for _ in range(width)], term)
        for i, value in enumerate(sums):
            e.store(value, e.at(y, e.times(yk, i // width), i % width * step))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 8), codegen


@cache
def compiled_tile(channels: int, vectors: int, lanes: int, bits: int, fused: int, listed: int = 0) -> Any:
    """Return the compiled tile; its arguments are those of `_group_tile` that are no literals."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 8))
    def run(x, places, terms, w, wk, y, yk, bias):
        if sources == 0:
            return
        _group_tile(channels, vectors, lanes, bits, fused, listed, x, places, terms, w, wk, y, yk, bias)

    return run
