"""Vectors whose lanes come from places that are known at run time only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.backends.cpu.simd import I32, I64, Emitter

# What permutes one vector, and what permutes two, by the bytes of a vector and of an element.
_ONE = {
    (64, 4): "avx512.permvar.sf.512",
    (64, 8): "avx512.permvar.df.512",
    (32, 4): "avx2.permps",
}
_TWO = {(64, 4): "avx512.vpermi2var.ps.512", (64, 8): "avx512.vpermi2var.pd.512"}


def permuted(e: Emitter, vectors: Sequence[Any], places: Any) -> Any:
    """Return a vector of the elements at these places of some vectors laid end to end.

    Parameters
    ----------
    e : Emitter
        Of the elements as they are computed.
    vectors : sequence of vectors
        As many as a power of two.
    places : vector of integers
        As wide as the elements. Where one is negative, or too large, any element is returned.
    """
    b, shape = e.builder, (e.lanes * e.bytes, e.bytes)
    if shape not in _ONE and shape != (32, 8):
        return _looked_up(e, vectors, places)
    if len(vectors) == 1:
        return _one(e, vectors[0], places)
    if len(vectors) == 2 and shape in _TWO:
        return _call(e, _TWO[shape], [vectors[0], places, vectors[1]])
    half = len(vectors) // 2
    low, high = permuted(e, vectors[:half], places), permuted(e, vectors[half:], places)
    beyond = ir.Constant(places.type, [half * e.lanes] * e.lanes)
    none = ir.Constant(places.type, [0] * e.lanes)
    return b.select(b.icmp_signed("==", b.and_(places, beyond), none), low, high)


def _one(e: Emitter, vector: Any, places: Any) -> Any:
    shape = e.lanes * e.bytes, e.bytes
    if shape in _ONE:
        return _call(e, _ONE[shape], [vector, places])
    # Doubles in AVX2: each is two neighbouring halves.
    b = e.builder
    pairs = Emitter(b, 32, 2 * e.lanes)
    first = b.shl(places, ir.Constant(places.type, [1] * e.lanes))
    second = b.shl(places, ir.Constant(places.type, [33] * e.lanes))
    both = b.or_(b.or_(first, second), ir.Constant(places.type, [1 << 32] * e.lanes))
    halves = [b.bitcast(vector, pairs.vector), b.bitcast(both, ir.VectorType(I32, pairs.lanes))]
    return b.bitcast(_call(pairs, _ONE[32, 4], halves), vector.type)


def _call(e: Emitter, name: str, arguments: Sequence[Any]) -> Any:
    kind = ir.FunctionType(e.vector, [argument.type for argument in arguments])
    return e.builder.call(cgutils.get_or_insert_function(e.builder.module, kind, f"llvm.x86.{name}"), arguments)


def _looked_up(e: Emitter, vectors: Sequence[Any], places: Any) -> Any:
    """Return what `permuted` does where no instruction does it: from memory, one by one."""
    b = e.builder
    room, size = e.room(len(vectors)), len(vectors) * e.lanes
    for i, vector in enumerate(vectors):
        e.store(vector, e.at(room, i * e.lanes * e.bytes))
    inside = b.and_(places, ir.Constant(places.type, [size - 1] * e.lanes))
    result = ir.Constant(e.vector, ir.Undefined)
    for lane in range(e.lanes):
        place = b.extract_element(inside, I32(lane))
        place = place if place.type == I64 else b.zext(place, I64)
        result = b.insert_element(result, e.load_scalar(e.at(room, e.times(place, e.bytes))), I32(lane))
    return result
