"""Vectors interleaved, and taken apart: neighbouring elements of a row are those of one tile, lanes are tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import I64, Emitter, literals


def interleaved(e: Emitter, vectors: Sequence[Any]) -> list[Any]:
    """Return as many vectors with the first lane of each, then the second of each, and so on."""
    count, lanes = len(vectors), e.lanes
    if count == 1:
        return list(vectors)
    if count % 2 == 0:
        pairs = zip(interleaved(e, vectors[::2]), interleaved(e, vectors[1::2]), strict=True)
        halves = [[lane // 2 + lane % 2 * lanes for lane in range(first, first + lanes)] for first in (0, lanes)]
        return [e.shuffle(a, b, half) for a, b in pairs for half in halves]
    return [
        _gathered(e, vectors, [divmod(place, count)[::-1] for place in range(first, first + lanes)])
        for first in range(0, count * lanes, lanes)
    ]


def dealt(e: Emitter, vectors: Sequence[Any]) -> list[Any]:
    """Undo `interleaved`."""
    count, lanes = len(vectors), e.lanes
    if count == 1:
        return list(vectors)
    if count % 2 == 0:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        even, odd = (dealt(e, [e.shuffle(a, b, range(parity, 2 * lanes, 2)) for a, b in pairs]) for parity in (0, 1))
        return [vector for pair in zip(even, odd, strict=True) for vector in pair]
    return [
        _gathered(e, vectors, [divmod(place, lanes) for place in range(first, count * lanes, count)])
        for first in range(count)
    ]


def _gathered(e: Emitter, vectors: Sequence[Any], places: Sequence[tuple[int, int]]) -> Any:
    """Return a vector whose lanes are at these places: which vector, which lane of it."""
    (_, first), *_ = places
    value = e.shuffle(vectors[0], vectors[0], [lane if which == 0 else first for which, lane in places])
    for i, other in enumerate(vectors[1:], 1):
        chosen = [e.lanes + lane if which == i else at for at, (which, lane) in enumerate(places)]
        value = e.shuffle(value, other, chosen)
    return value


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
