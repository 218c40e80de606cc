"""The transforms of Winograd's weight gradient in registers: of the output's gradient, and of the sums."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.backends.cpu.winograd.points import Matrix, matrices
from fastconv.backends.cpu.winograd.transforms import both_axes, store_planes


def _turned(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


@intrinsic(prefer_literal=True)
def transform_gradient(typingctx, m, taps, lanes, bits, fused, source, row, target, plane):
    """Transform a square of m^2 vectors, its rows ``row`` bytes apart, into (m+taps-1)^2, ``plane`` bytes apart."""
    shape = literals(m, taps, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row, target, plane = args[5:]
        m, taps, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        rows = [e.at(source, e.times(row, i)) for i in range(m)]
        matrix = _turned(matrices(m, taps).output)
        loaded = both_axes(e, matrix, matrix, lambda i, j: e.load(e.at(rows[i], j * lanes * e.bytes)))
        store_planes(e, loaded, target, plane)
        return context.get_dummy_value()

    return types.void(m, taps, lanes, bits, fused, *(types.int64,) * 4), codegen


@intrinsic(prefer_literal=True)
def transform_sums(typingctx, m, taps, lanes, bits, fused, source, plane, target, places):
    """Transform (m+taps-1)^2 vectors into taps^2; return whether NaN or infinity was met.

    ``places`` is the address of which vector of the target each tap is, below zero for a tap that does not exist.
    """
    shape = literals(m, taps, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, plane, target, places = args[5:]
        m, taps, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        extent = m + taps - 1
        points = [source]
        for _ in range(extent**2 - 1):
            points.append(builder.add(points[-1], plane))
        doubt = e.zero
        matrix = _turned(matrices(m, taps).filter)
        for i, line in enumerate(both_axes(e, matrix, matrix, lambda i, j: e.load(points[i * extent + j]))):
            for j, value in enumerate(line):
                place = e.load_integer(e.at(places, 8 * (i * taps + j)))
                exists = builder.icmp_signed(">=", place, I64(0))
                # Zero times anything finite is zero.
                doubt = builder.select(exists, e.fma(value, e.zero, doubt), doubt)
                with builder.if_then(exists, likely=True):
                    e.store(value, e.at(target, e.times(place, lanes * e.bytes)))
        met = builder.bitcast(builder.fcmp_unordered("uno", doubt, doubt), ir.IntType(lanes))
        return builder.zext(builder.icmp_unsigned("!=", met, ir.IntType(lanes)(0)), I64)

    return types.int64(m, taps, lanes, bits, fused, *(types.int64,) * 4), codegen
