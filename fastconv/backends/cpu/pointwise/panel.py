"""Copying input pixels into panels: all channels of the few pixels that a tile computes, in the order it reads them.

Half formats are widened on the way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.elements import widen_one
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Whatever copies takes the same six integers: source, step of a channel, channels, target, step of a channel there,
# pixels. Panels have room for a vector more than they hold.
_SIGNATURE = types.void(*(types.int64,) * 6)


@intrinsic(prefer_literal=True)
def _copy_line(typingctx, vectors, lanes, bits, source, target, count):
    """Copy ``count`` elements and store ``vectors`` whole vectors."""
    shape = literals(vectors, lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, shape[2], shape[1])
        source, target, count = args[3:]
        for v in range(shape[0]):
            at = v * shape[1]
            vector = e.load_masked(e.at(source, at * e.bytes), e.first(builder.sub(count, I64(at))))
            e.wide.store(vector, e.at(target, at * e.wide.bytes))
        return context.get_dummy_value()

    return types.void(vectors, lanes, bits, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def _copy_piece(typingctx, every, lanes, bits, source, target, count):
    """Copy at most a vector of elements, each one or every second."""
    shape = literals(every, lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        every, lanes, bits = shape
        e = Emitter(builder, bits, lanes)
        source, target, count = args[3:]
        count = builder.select(builder.icmp_signed("<", count, I64(lanes)), count, I64(lanes))
        # What follows the last element need not exist.
        needed = builder.sub(builder.mul(count, I64(every)), I64(every - 1))
        parts = [
            e.load_masked(e.at(source, i * lanes * e.bytes), e.first(builder.sub(needed, I64(i * lanes))))
            for i in range(every)
        ]
        vector = parts[0] if every == 1 else e.shuffle(parts[0], parts[1], range(0, 2 * lanes, 2))
        e.wide.store_masked(vector, target, e.first(count))
        return context.get_dummy_value()

    return types.void(every, lanes, bits, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def _copy_whole(typingctx, every, lanes, bits, source, target):
    """Copy a vector of elements, each one or every second, and read nothing behind the last."""
    shape = literals(every, lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        every, lanes, bits = shape
        e = Emitter(builder, bits, lanes)
        source, target = args[3:]
        vector = e.load(source)
        if every == 2:
            # The second half begins with the last element of the first.
            rest = e.load(e.at(source, (lanes - 1) * e.bytes))
            picked = [2 * i if 2 * i < lanes else 2 * i + 1 for i in range(lanes)]
            vector = e.shuffle(vector, rest, picked)
        e.wide.store(vector, target)
        return context.get_dummy_value()

    return types.void(every, lanes, bits, *(types.int64,) * 2), codegen


@intrinsic(prefer_literal=True)
def _turn(typingctx, lanes, bits, table, first, count, target, step):
    """Transpose a square: ``count`` channels, from the byte ``first`` on, of as many pixels as there are lanes.

    ``table`` holds the pixels' addresses. A channel's pixels are stored as a whole vector, ``step`` bytes apart.
    """
    shape = literals(lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, first, count, target, step = args[2:]
        e = Emitter(builder, shape[1], shape[0])
        starts = [e.at(e.load_integer(e.at(table, 8 * r)), first) for r in range(e.lanes)]
        with builder.if_else(builder.icmp_signed(">=", count, I64(e.lanes))) as (whole, part):
            with whole:
                for i, vector in enumerate(e.transpose([e.load(start) for start in starts])):
                    e.wide.store(vector, e.at(target, e.times(step, i)))
            with part:
                mask = e.first(count)
                for i, vector in enumerate(e.transpose([e.load_masked(start, mask) for start in starts])):
                    with builder.if_then(builder.icmp_signed("<", I64(i), count)):
                        e.wide.store(vector, e.at(target, e.times(step, i)))
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 5), codegen


@cache
def copy_lines(vectors: int, lanes: int, bits: int) -> Any:
    """Return the copying of pixels that lie side by side, channel by channel."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(source, channel, channels, target, step, pixels):
        if sources == 0:
            return
        for _ in range(channels):
            _copy_line(vectors, lanes, bits, source, target, pixels)
            source += channel
            target += step

    return run


@cache
def copy_every(every: int, lanes: int, bits: int) -> Any:
    """Return the copying of each or every second pixel of a row, channel by channel."""
    sources, size, wide = fingerprint(), size_of(bits), size_of(computed(bits))

    @callback(_SIGNATURE)
    def run(source, channel, channels, target, step, pixels):
        if sources == 0:
            return
        for _ in range(channels):
            if pixels < lanes:
                _copy_piece(every, lanes, bits, source, target, pixels)
            else:
                for i_ in range(0, pixels, lanes):
                    i = min(i_, pixels - lanes)
                    _copy_whole(every, lanes, bits, source + i * every * size, target + i * wide)
            source += channel
            target += step

    return run


@cache
def copy_one(bits: int) -> Any:
    """Return the copying of a single pixel, channel by channel."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(source, channel, channels, target, step, pixels):
        if sources == 0:
            return
        for _ in range(channels):
            widen_one(bits, source, target)
            source += channel
            target += step

    return run


@cache
def turn_lines(lanes: int, bits: int) -> Any:
    """Return the copying of pixels whose channels lie side by side: the source is a table of their addresses."""
    sources, size, wide = fingerprint(), size_of(bits), size_of(computed(bits))

    @callback(_SIGNATURE)
    def run(table, channel, channels, target, step, pixels):
        if sources == 0:
            return
        for k in range(0, channels, lanes):
            for p in range(0, pixels, lanes):
                _turn(lanes, bits, table + 8 * p, k * size, channels - k, target + k * step + p * wide, step)

    return run
