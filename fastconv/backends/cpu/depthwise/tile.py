"""The micro-kernel of depthwise convolution: a block of outputs of one memory order, summed in registers."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.simd import Emitter


@intrinsic(prefer_literal=True)
def depthwise_tile(
    typingctx, rows, vectors, lanes, bits, fused, last, partial,
    x, xr, taps, ntaps, w, wt, y, yr, count, bias, activation,
):  # fmt: skip
    """Compute ``rows`` times ``vectors * lanes`` outputs.

    Literal integers: rows, vectors, lanes, bits (of an element), fused (multiply-add exists), last (lanes are
    channels with weights of their own, not columns that share one) and partial (``count`` may be below
    ``vectors * lanes``).

    Values, addresses and strides in bytes: x (of the first output's first tap), xr (from row to row), taps (address
    of ntaps offsets into x), ntaps, w, wt (from tap to tap), y, yr, count (lanes to store), bias, activation
    (slope below zero, floor, cap); the last two are 0 for none. Lanes beyond the count are read, but not stored.
    """
    literals = (rows, vectors, lanes, bits, fused, last, partial)
    if not all(isinstance(a, types.IntegerLiteral) for a in literals):
        return None
    nrows, nvectors, width, element, has_fma, is_last, is_partial = (a.literal_value for a in literals)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, xr, taps, ntaps, w, wt, y, yr, count, bias, activation = args[len(literals) :]
        e = Emitter(builder, element, width, bool(has_fma))
        step = width * e.bytes
        cells = [(r, v) for r in range(nrows) for v in range(nvectors)]
        masks = [e.first(e.at(count, -v * width)) if is_partial else None for v in range(nvectors)]

        def load_bias(_: Any) -> list[Any]:
            if is_last:
                return [e.load_masked(e.at(bias, v * step), masks[v]) for v in range(nvectors)]
            return [e.load_splat(bias)] * nvectors

        def tap(index: Any, values: list[Any]) -> list[Any]:
            weight, *sums = values
            at = e.at(x, e.load_integer(e.at(taps, e.times(index, 8))))
            if is_last:
                factors = [e.load(e.at(weight, v * step)) for v in range(nvectors)]
            else:
                factors = [e.load_splat(weight)] * nvectors
            for i, (r, v) in enumerate(cells):
                sums[i] = e.fma(e.load(e.at(at, e.times(xr, r), v * step)), factors[v], sums[i])
            return [e.at(weight, wt), *sums]

        start = e.unless_zero(bias, [e.zero] * nvectors, load_bias)
        sums = e.loop(ntaps, [w, *start * nrows], tap)[1:]
        sums = e.unless_zero(activation, sums, lambda s: activate(e, s, activation))
        for value, (r, v) in zip(sums, cells, strict=True):
            e.store_masked(value, e.at(y, e.times(yr, r), v * step), masks[v])
        return context.get_dummy_value()

    return types.void(*literals, *(types.int64,) * 11), codegen


@intrinsic(prefer_literal=True)
def split(typingctx, lanes, bits, partial, source, even, odd, count):
    """Copy neighbouring elements, those of even number to one address, those of odd number to another.

    Literal integers: lanes, bits (of an element), partial (``count`` is below the ``2 * lanes`` that are copied
    otherwise).
    """
    literals = (lanes, bits, partial)
    if not all(isinstance(a, types.IntegerLiteral) for a in literals):
        return None
    width, element, is_partial = (a.literal_value for a in literals)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, *targets, count = args[len(literals) :]
        e = Emitter(builder, element, width)
        masks = [e.first(e.at(count, -v * width)) if is_partial else None for v in range(2)]
        low, high = (e.load_masked(e.at(source, v * width * e.bytes), masks[v]) for v in range(2))
        for first, target in enumerate(targets):
            copied = e.first(builder.ashr(e.at(count, 1 - first), count.type(1))) if is_partial else None
            e.store_masked(e.shuffle(low, high, range(first, 2 * width, 2)), target, copied)
        return context.get_dummy_value()

    return types.void(*literals, *(types.int64,) * 4), codegen
