"""Lines of the input taken apart: neighbouring elements are those of one tile, lanes are tiles."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.shuffles import dealt
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def _deal(typingctx, ways, lanes, bits, source, count, target, plane):
    """Deal ``count`` times ``ways`` neighbouring elements, at most vectors, to lines ``plane`` bytes apart."""
    shape = literals(ways, lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, target, plane = args[3:]
        ways, lanes, bits = shape
        e = Emitter(builder, bits, lanes)
        there = builder.mul(count, I64(ways))
        read = [
            e.load_masked(e.at(source, v * lanes * e.bytes), e.first(builder.sub(there, I64(v * lanes))))
            for v in range(ways)
        ]
        mask = e.first(count)
        for value in dealt(e, read):
            e.store_masked(value, target, mask)
            target = builder.add(target, plane)
        return context.get_dummy_value()

    return types.void(ways, lanes, bits, *(types.int64,) * 4), codegen


@cache
def dealing(ways: int, lanes: int, bits: int) -> Any:
    """Return what is compiled to deal a line: source, elements for each, target, bytes from one target to the next."""
    size = bits // 8
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 4))
    def run(source, count, target, plane):
        if sources == 0:
            return
        for t in range(0, count, lanes):
            _deal(ways, lanes, bits, source + t * ways * size, min(lanes, count - t), target + t * size, plane)

    return run
