"""Weights as the direct micro-kernel reads them: block of output channels, input channel, kernel position, lane."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import fingerprint, function
from fastconv.backends.cpu.simd import I64, Emitter


@intrinsic(prefer_literal=True)
def _turn(typingctx, lanes, bits, source, stride, rows, count, target, offsets):
    """Transpose a square: ``count`` elements of ``rows`` rows, ``stride`` bytes apart, both at most ``lanes``.

    Element ``e`` of all rows becomes a vector, zero beyond ``rows``, at ``target + offsets[e]``.
    """
    if not isinstance(lanes, types.IntegerLiteral) or not isinstance(bits, types.IntegerLiteral):
        return None
    width, element = lanes.literal_value, bits.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, rows, count, target, offsets = args[2:]
        e = Emitter(builder, element, width)
        mask = e.first(count)

        def load(row: int) -> Any:
            there = builder.zext(builder.icmp_signed("<", I64(row), rows), I64)
            address = e.at(source, e.times(stride, row))
            return e.unless_zero(there, [e.zero], lambda _: [e.load_masked(address, mask)])[0]

        loaded = [load(row) for row in range(width)]
        for i, vector in enumerate(e.transpose(loaded)):
            with builder.if_then(builder.icmp_signed("<", I64(i), count)):
                e.store(vector, e.at(target, e.load_integer(e.at(offsets, 8 * i))))
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 6), codegen


@cache
def pack_kernel(bits: int, lanes: int) -> Any:
    """Return the compiled packing for an element's bits and a vector's lanes.

    ``pack(w, stride, groups, outputs, terms, block, places, packed, offsets, tail_offsets)``: the weight at
    address ``w`` has a row of ``terms`` adjacent elements for each output channel, rows ``stride`` bytes apart. The
    channels of a group go into blocks of ``block`` lanes, the last smaller by whole vectors. ``offsets[e]`` says where in a block
    the first vector of element ``e`` goes; ``tail_offsets`` says so for the last. A block has room for ``places`` of
    them, at least ``terms``.
    """
    size = bits // 8
    vector = lanes * size

    sources = fingerprint()

    @function(types.void(*(types.int64,) * 10))
    def pack(w, stride, groups, outputs, terms, block, places, packed, offsets, tail_offsets):
        if sources == 0:
            return
        target = packed
        for g in range(groups):
            for first in range(0, outputs, block):
                there = min(block, outputs - first)
                vectors = (there + lanes - 1) // lanes
                table = offsets if first + block < outputs else tail_offsets
                source = w + (g * outputs + first) * stride
                for v in range(vectors):
                    rows = min(lanes, there - v * lanes)
                    for e in range(0, terms, lanes):
                        _turn(
                            lanes,
                            bits,
                            source + v * lanes * stride + e * size,
                            stride,
                            rows,
                            min(lanes, terms - e),
                            target + v * vector,
                            table + 8 * e,
                        )
                target += places * vectors * vector

    return pack
