"""The transforms of a vector of tiles, and the way of its outputs into rows of the output."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.shuffles import interleaved
from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.backends.cpu.winograd.points import matrices
from fastconv.backends.cpu.winograd.transforms import both_axes, store_planes

#: Words of a run of tiles: how far its vector's outputs are from the output's beginning, and how many rows there are of
#: them; where the run's own begin and end in a row, in bytes; then the mask of each vector of a row.
RUN_HEAD = 4


@intrinsic(prefer_literal=True)
def transform_input(typingctx, extent, lanes, bits, fused, source, places, target, plane):
    """Transform a square of extent^2 vectors into as many, ``plane`` bytes apart.

    A table has how far from the source each of them lies.
    """
    shape = literals(extent, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, places, target, plane = args[4:]
        extent, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))

        def load(i: int, j: int) -> Any:
            return e.load(e.at(source, e.load_integer(e.at(places, 8 * (i * extent + j)))))

        matrix = matrices(1, extent).data  # it depends on the points alone, not on how many are taps
        store_planes(e, both_axes(e, matrix, matrix, load), target, plane)
        return context.get_dummy_value()

    return types.void(extent, lanes, bits, fused, *(types.int64,) * 4), codegen


@intrinsic(prefer_literal=True)
def transform_output(
    typingctx, m, extent, lanes, bits, fused, source, plane, runs, count, y, yh, bias, residual, activation, last
):
    """Transform extent^2 vectors, ``plane`` bytes apart, into squares of m^2 outputs, and store these.

    Neighbouring lanes are neighbouring tiles of ``count`` runs, each a part of one row of tiles. Values and addresses:
    y, yh (the channel's output, bytes of a row of it), bias (0 for none), residual (how far from y it lies, 0 for
    none), activation (0 for none) and ``last``, one after the residual. Return whether NaN or infinity was met.
    """
    shape = literals(m, extent, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, plane, runs, count, y, yh, bias, residual, activation, last = args[5:]
        m, extent, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        (start,) = e.unless_zero(bias, [e.zero], lambda _: [e.load_splat(bias)])

        def load(i: int, j: int) -> Any:
            return e.load(e.at(source, e.times(plane, i * extent + j)))

        doubt, rows = e.zero, []
        matrix = matrices(m, extent - m + 1).output
        for row in both_axes(e, matrix, matrix, load):
            row = [builder.fadd(value, start) for value in row]
            # Zero times anything finite is zero; before activation, which could hide it.
            for value in row:
                doubt = e.fma(value, e.zero, doubt)
            rows += interleaved(e, row)
        rows = e.unless_zero(activation, rows, lambda values: activate(e, values, activation))

        def store(value: Any, address: Any, mask: Any) -> None:
            def add(values: list[Any]) -> list[Any]:
                total = [builder.fadd(values[0], e.load_masked(e.at(address, residual), mask))]
                return e.unless_zero(last, total, lambda v: activate(e, v, last))

            e.store_masked(e.unless_zero(residual, [value], add)[0], address, mask)

        def run(_: Any, values: list[Any]) -> list[Any]:
            (entry,) = values
            address, height = e.at(y, e.load_integer(entry)), e.load_integer(e.at(entry, 8))
            masks = [_lanes(e, e.load_integer(e.at(entry, 8 * (RUN_HEAD + v)))) for v in range(m)]
            for i in range(m):
                with builder.if_then(builder.icmp_signed("<", I64(i), height), likely=True):
                    for v, mask in enumerate(masks):
                        store(rows[i * m + v], e.at(address, v * lanes * e.bytes), mask)
                address = builder.add(address, yh)
            return [e.at(entry, 8 * (RUN_HEAD + m))]

        with builder.if_then(builder.icmp_signed(">", count, I64(0)), likely=True):
            e.loop(count, [runs], run)
        return e.any_nan(doubt)

    return types.int64(m, extent, lanes, bits, fused, *(types.int64,) * 10), codegen


def _lanes(e: Emitter, mask: Any) -> Any:
    """Return the mask of lanes that the lowest bits of an integer are."""
    bits = ir.IntType(e.lanes)
    return e.builder.bitcast(e.builder.trunc(mask, bits), ir.VectorType(ir.IntType(1), e.lanes))
