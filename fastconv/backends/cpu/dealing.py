"""Lines taken apart: neighbouring elements go to a line each."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.shuffles import dealt
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def _deal(typingctx, ways, lanes, bits, partial, source, count, target, plane):
    """Deal ``ways`` vectors, or the ``count`` elements that they begin with if ``partial``; see `deal`."""
    shape = literals(ways, lanes, bits, partial)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, target, plane = args[4:]
        ways, lanes, bits, is_partial = shape
        e = Emitter(builder, bits, lanes)

        def mask(count: Any) -> Any:
            return e.first(count) if is_partial else None

        read = [e.load_masked(e.at(source, v * lanes * e.bytes), mask(e.at(count, -v * lanes))) for v in range(ways)]
        kept = mask(builder.udiv(e.at(count, ways - 1), I64(ways)))
        for value in dealt(e, read):
            e.store_masked(value, target, kept)
            target = builder.add(target, plane)
        return context.get_dummy_value()

    return types.void(ways, lanes, bits, partial, *(types.int64,) * 4), codegen


@inlined
def deal(ways, lanes, bits, source, count, target, plane):
    """Deal ``count`` neighbouring elements to ``ways`` lines ``plane`` bytes apart, and zeros for a turn's missing."""
    size, turn = bits // 8, ways * lanes
    whole = count // turn
    rest = count - whole * turn
    for _ in range(whole):
        _deal(ways, lanes, bits, 0, source, turn, target, plane)
        source, target = source + turn * size, target + lanes * size
    if rest > 0:
        _deal(ways, lanes, bits, 1, source, rest, target, plane)


@cache
def dealing(ways: int, lanes: int, bits: int) -> Any:
    """Return what is compiled to deal a line: source, elements for each, target, bytes from one target to the next."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 4))
    def run(source, count, target, plane):
        if sources == 0:
            return
        deal(ways, lanes, bits, source, count * ways, target, plane)

    return run
