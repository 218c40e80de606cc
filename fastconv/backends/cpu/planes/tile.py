"""The micro-kernel with columns in the lanes: output channels times vectors of columns, summed in registers."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def plane_tile(
    typingctx, rows, vectors, lanes, bits, fused, x, terms, nterms, w, y, yk, nk, count, bias, residual, activation
):
    """Compute ``rows`` output channels by ``vectors * lanes`` columns, of which ``nk`` and ``count`` exist.

    Values, addresses and strides in bytes: x, terms (address of nterms offsets into x), w (packed: term, channel),
    y, yk (output channel), bias, residual (strides of y), activation; the last three are 0 for none.
    """
    given = (rows, vectors, lanes, bits, fused)
    shape = literals(*given)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit(builder, *shape, *args[len(shape) :])
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 11), codegen


def _emit(
    builder: Any, rows: int, vectors: int, lanes: int, bits: int, fused: int, x: Any, terms: Any, nterms: Any, w: Any,
    y: Any, yk: Any, nk: Any, count: Any, bias: Any, residual: Any, activation: Any,
) -> None:  # fmt: skip
    e = Emitter(builder, bits, lanes, bool(fused))
    width = lanes * e.bytes

    def exists(row: int) -> Any:
        return builder.icmp_signed("<", I64(row), nk)

    def start(_: Any) -> list[Any]:
        # A row that does not exist reads the last one's.
        last = builder.sub(nk, I64(1))
        chosen = [builder.select(exists(r), I64(r), last) for r in range(rows)]
        values = [e.load_splat(e.at(bias, e.times(row, e.bytes))) for row in chosen]
        return [value for value in values for _ in range(vectors)]

    def term(index: Any, values: list[Any]) -> list[Any]:
        weight, *total = values
        source = e.at(x, e.load_integer(e.at(terms, e.times(index, 8))))
        columns = [e.load(e.at(source, v * width)) for v in range(vectors)]
        for r in range(rows):
            factor = e.load_splat(e.at(weight, r * e.bytes))
            for v, value in enumerate(columns):
                total[r * vectors + v] = e.fma(factor, value, total[r * vectors + v])
        return [e.at(weight, rows * e.bytes), *total]

    # The output comes near while the sums are made: stores that wait for memory would hold up the next tile.
    for r in range(rows):
        for v in range(vectors):
            e.prefetch(e.at(y, e.times(yk, r), v * width), write=True)
    sums = e.unless_zero(bias, [e.zero] * (rows * vectors), start)
    sums = e.loop(nterms, [w, *sums], term)[1:]

    def finish(sums: list[Any], masks: list[Any]) -> None:
        def add(values: list[Any]) -> list[Any]:
            # A row that does not exist reads the first one's.
            starts = [e.at(residual, builder.select(exists(r), e.times(yk, r), I64(0))) for r in range(rows)]
            loaded = [e.load_masked(e.at(s, v * width), masks[v]) for s in starts for v in range(vectors)]
            return [builder.fadd(a, b) for a, b in zip(values, loaded, strict=True)]

        sums = e.unless_zero(residual, sums, add)
        sums = e.unless_zero(activation, sums, lambda s: activate(e, s, activation))
        for r in range(rows):
            with builder.if_then(exists(r), likely=True):
                for v in range(vectors):
                    e.store_masked(sums[r * vectors + v], e.at(y, e.times(yk, r), v * width), masks[v])

    is_whole = builder.icmp_signed(">=", count, I64(vectors * lanes))
    with builder.if_else(is_whole, likely=True) as (whole, part):
        with whole:
            finish(sums, [None] * vectors)
        with part:
            finish(sums, [e.first(builder.sub(count, I64(v * lanes))) for v in range(vectors)])
