"""Looking for elements that are not finite, which padding must not be multiplied by, or must."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.simd import I64, Emitter, literals

# Sums that are kept apart, so that an addition need not wait for the one before.
_CHAINS = 4


def trace(e: Emitter, vector: Any, total: Any) -> Any:
    """Return a sum of zeros, NaN from where on one of the vectors that it has seen is not finite."""
    # No fused multiply-add, which is a call for each element where no instruction does it.
    return e.builder.fadd(e.builder.fmul(vector, e.zero), total)


def traces(e: Emitter, vectors: Sequence[Any]) -> Any:
    """Return a vector that is NaN where one of some vectors is not finite, and zero elsewhere."""
    sums = [e.zero] * _CHAINS
    for i, vector in enumerate(vectors):
        sums[i % _CHAINS] = trace(e, vector, sums[i % _CHAINS])
    return functools.reduce(e.builder.fadd, sums)


@intrinsic(prefer_literal=True)
def special(typingctx, lanes, bits, source, count):
    """Return 1 if one of ``count`` elements is not finite, otherwise 0."""
    shape = literals(lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, element = shape
        source, count = args[2:]
        e = Emitter(builder, element, width)
        together = _CHAINS * width
        rounds = builder.sdiv(e.at(count, together - 1), I64(together))

        def add(index: Any, values: list[Any]) -> list[Any]:
            done = e.times(index, together)
            left, at = builder.sub(count, done), e.at(source, e.times(done, e.bytes))

            def load(i: int) -> Any:
                return e.load_masked(e.at(at, i * width * e.bytes), e.first(e.at(left, -i * width)))

            return [trace(e, load(i), value) for i, value in enumerate(values)]

        total, *others = e.loop(rounds, [e.zero] * _CHAINS, add)
        for other in others:
            total = builder.fadd(total, other)
        return e.any_nan(total)

    return types.int64(lanes, bits, types.int64, types.int64), codegen
