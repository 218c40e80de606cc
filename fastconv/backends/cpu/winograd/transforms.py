"""The transforms of Winograd's convolution in registers. Lanes are channels: an instruction does all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.shuffles import dealt
from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.backends.cpu.winograd.points import Matrix, matrices


@intrinsic(prefer_literal=True)
def gather_lanes(typingctx, lanes, bits, source, stride, rows, count, target, ahead):
    """Transpose ``count`` adjacent elements of ``rows`` rows, ``stride`` bytes apart: each element becomes a vector.

    Both are at most ``lanes``. Always ``lanes`` vectors are written; beyond ``rows`` their lanes repeat the last row.
    What lies ``ahead`` bytes further is fetched meanwhile.
    """
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, rows, count, target, ahead = args[2:]
        e = Emitter(builder, element, width)
        mask, last = e.first(count), builder.sub(rows, I64(1))
        loaded, address = [], source
        for row in range(width):
            loaded.append(e.load_masked(address, mask))
            e.prefetch(e.at(address, ahead))
            more = builder.icmp_signed("<", I64(row), last)
            address = builder.add(address, builder.select(more, stride, I64(0)))
        for i, vector in enumerate(e.transpose(loaded)):
            e.store(vector, e.at(target, i * width * e.bytes))
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 6), codegen


def separates(taps: int, lanes: int) -> bool:
    """Whether `separate_taps` takes fewer shuffles than `gather_lanes`."""
    return taps * (taps - 1) < lanes * math.log2(lanes)


@intrinsic(prefer_literal=True)
def separate_taps(typingctx, taps, lanes, bits, source, target, ahead):
    """Do what `gather_lanes` does for rows of as many elements as there are taps, all of them adjacent.

    No more vectors are written than there are taps.
    """
    known = literals(taps, lanes, bits)
    if known is None:
        return None
    vectors, width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, ahead = args[3:]
        e = Emitter(builder, element, width)
        places = [i * width * e.bytes for i in range(vectors)]
        loaded = [e.load(e.at(source, place)) for place in places]
        for place in places:
            e.prefetch(e.at(source, ahead, place))
        for vector, place in zip(dealt(e, loaded), places, strict=True):
            e.store(vector, e.at(target, place))
        return context.get_dummy_value()

    return types.void(taps, lanes, bits, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def scatter_lanes(typingctx, lanes, bits, source, count, target, stride, rows, residual, activation):
    """Undo `gather_lanes`: ``count`` vectors become ``rows`` rows of adjacent elements, ``stride`` bytes apart.

    What lies ``residual`` bytes from the target is added, then the activation at that address applied; 0 for neither.
    """
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, target, stride, rows, residual, activation = args[2:]
        e = Emitter(builder, element, width)
        mask, address = e.first(count), target
        # Vectors beyond the count are of no use and do no harm: the strip that they are read from is long enough.
        loaded = [e.load(e.at(source, i * width * e.bytes)) for i in range(width)]
        for row, vector in enumerate(e.transpose(loaded)):
            with builder.if_then(builder.icmp_signed("<", I64(row), rows)):
                e.store_masked(_completed(e, vector, address, mask, residual, activation), address, mask)
            address = builder.add(address, stride)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 7), codegen


def _completed(e: Emitter, vector: Any, address: Any, mask: Any, residual: Any, activation: Any) -> Any:
    """Return what is to be stored at an address: with what lies ``residual`` bytes from there added, and activated."""

    def add(values: list[Any]) -> list[Any]:
        total = [e.builder.fadd(values[0], e.load_masked(e.at(address, residual), mask))]
        return e.unless_zero(activation, total, lambda s: activate(e, s, activation))

    return e.unless_zero(residual, [vector], add)[0]


@intrinsic(prefer_literal=True)
def store_lanes(typingctx, lanes, bits, source, target, written, residual, activation):
    """Copy the first ``written`` lanes of a vector, completed as `scatter_lanes` does it."""
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, written, residual, activation = args[2:]
        e = Emitter(builder, element, width)
        mask = e.first(written)
        e.store_masked(_completed(e, e.load(source), target, mask, residual, activation), target, mask)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 5), codegen


@intrinsic(prefer_literal=True)
def copy_lanes(typingctx, lanes, bits, source, target, read):
    """Copy a vector of which the first ``read`` lanes exist; the others become zero."""
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, read = args[2:]
        e = Emitter(builder, element, width)
        e.store(e.load_masked(source, e.first(read)), target)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def transform_filter(typingctx, mh, mw, eh, ew, lanes, bits, fused, source, places, target, plane):
    """Transform vectors of a filter into one for each point, ``plane`` bytes apart.

    ``places`` is the address of which vector each tap is, below zero for a tap that does not exist.
    """
    shape = literals(mh, mw, eh, ew, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, places, target, plane = args[7:]
        mh, mw, eh, ew, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        width, kh, kw = lanes * e.bytes, eh - mh + 1, ew - mw + 1

        def tap(i: int, j: int) -> Any:
            place = e.load_integer(e.at(places, 8 * (i * kw + j)))
            exists = builder.icmp_signed(">=", place, I64(0))
            value = e.load(e.at(source, e.times(builder.select(exists, place, I64(0)), width)))
            return builder.select(exists, value, e.zero)

        store_planes(e, both_axes(e, matrices(mh, kh).filter, matrices(mw, kw).filter, tap), target, plane)
        return context.get_dummy_value()

    return types.void(mh, mw, eh, ew, lanes, bits, fused, *(types.int64,) * 4), codegen


@intrinsic(prefer_literal=True)
def transform_input(typingctx, eh, ew, step, lanes, bits, fused, source, row, target, plane):
    """Transform eh x ew vectors into one for each point, ``plane`` bytes apart.

    Their rows are ``row`` bytes apart, their columns ``step`` vectors.
    """
    shape = literals(eh, ew, step, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, row, target, plane = args[6:]
        eh, ew, step, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        rows = [e.at(source, e.times(row, i)) for i in range(eh)]
        both = matrices(1, eh).data, matrices(1, ew).data  # they depend on the points alone, not on how many are taps
        result = both_axes(e, *both, lambda i, j: e.load(e.at(rows[i], j * step * lanes * e.bytes)))
        store_planes(e, result, target, plane)
        return context.get_dummy_value()

    return types.void(eh, ew, step, lanes, bits, fused, *(types.int64,) * 4), codegen


@intrinsic(prefer_literal=True)
def transform_output(
    typingctx, mh, mw, eh, ew, lanes, bits, fused, source, plane, target, row, bias, channels, activation
):  # fmt: skip
    """Transform a vector for each point into mh x mw, add bias, activate; return whether NaN or infinity was met.

    Strides as in `transform_input`. Of the bias, ``channels`` values exist; addresses of 0 for no bias and no
    activation (slope below zero, floor, cap).
    """
    shape = literals(mh, mw, eh, ew, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, plane, target, row, bias, channels, activation = args[7:]
        mh, mw, eh, ew, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        (start,) = e.unless_zero(bias, [e.zero], lambda _: [e.load_masked(bias, e.first(channels))])
        # They come from the second-level cache: the sooner all are asked for, the better.
        down, across = matrices(mh, eh - mh + 1).output, matrices(mw, ew - mw + 1).output
        points, address = [], source
        for _ in range(len(down[0]) * len(across[0])):
            points.append(e.load(address))
            address = builder.add(address, plane)
        rows = both_axes(e, down, across, lambda i, j: points[i * len(across[0]) + j])
        result = [[builder.fadd(v, start) for v in line] for line in rows]
        # Zero times anything finite is zero; before activation, which could hide it.
        doubt = e.zero
        for line in result:
            for v in line:
                doubt = e.fma(v, e.zero, doubt)
        flat = e.unless_zero(activation, [v for line in result for v in line], lambda s: activate(e, s, activation))
        for i in range(mh):
            for j in range(mw):
                e.store(flat[i * mw + j], e.at(target, e.times(row, i), j * lanes * e.bytes))
        met = builder.bitcast(builder.fcmp_unordered("uno", doubt, doubt), ir.IntType(lanes))
        return builder.zext(builder.icmp_unsigned("!=", met, ir.IntType(lanes)(0)), I64)

    return types.int64(mh, mw, eh, ew, lanes, bits, fused, *(types.int64,) * 7), codegen


def store_planes(e: Emitter, rows: Iterable[list[Any]], target: Any, plane: Any) -> None:
    """Store vectors one after another, ``plane`` bytes apart."""
    for line in rows:
        for vector in line:
            e.store(vector, target)
            target = e.builder.add(target, plane)


def both_axes(e: Emitter, down: Matrix, across: Matrix, load: Callable[[int, int], Any]) -> Iterator[list[Any]]:
    """Yield the rows of ``down @ loaded @ across.T``.

    A square does not fit into registers: each column is loaded when its turn comes, and each row of the result is
    to be used before the next is emitted.
    """
    rows, columns = range(len(down[0])), range(len(across[0]))
    transformed = [_multiply(e, down, [load(i, j) for i in rows]) for j in columns]
    for row in zip(*transformed, strict=True):
        yield _multiply(e, across, row)


def _multiply(e: Emitter, matrix: Matrix, values: Sequence[Any]) -> list[Any]:
    """Return ``matrix @ values``, in few instructions: points of either sign share their even and odd parts."""
    matrix, values = _pair_columns(e, matrix, values)
    result: list[Any] = [None] * len(matrix)
    for r, row in enumerate(matrix):
        if result[r] is not None:
            continue
        twin = next((s for s in range(r + 1, len(matrix)) if _mirrored(row, matrix[s])), None)
        if twin is None:
            result[r] = _dot(e, row, values)
            continue
        same = _dot(e, [a if a == b else 0.0 for a, b in zip(row, matrix[twin], strict=True)], values)
        other = _dot(e, [a if a != b else 0.0 for a, b in zip(row, matrix[twin], strict=True)], values)
        result[r], result[twin] = e.builder.fadd(same, other), e.builder.fsub(same, other)
    return result


def _mirrored(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two rows are alike but for signs, some of which differ."""
    alike = all(abs(u) == abs(v) for u, v in zip(a, b, strict=True))
    signs = {u == v for u, v in zip(a, b, strict=True) if u}
    return alike and signs == {True, False}


def _pair_columns(e: Emitter, matrix: Matrix, values: Sequence[Any]) -> tuple[Matrix, list[Any]]:
    """Replace each two values that are used alike but for signs by their sum and their difference."""
    columns, new = [list(c) for c in zip(*matrix, strict=True)], list(values)
    for c, column in enumerate(columns):
        twin = next((d for d in range(c + 1, len(columns)) if _mirrored(column, columns[d])), None)
        if twin is not None:
            b, other = e.builder, columns[twin]
            new[c], new[twin] = b.fadd(new[c], new[twin]), b.fsub(new[c], new[twin])
            columns[twin] = [u if u != v else 0.0 for u, v in zip(column, other, strict=True)]
            columns[c] = [u if u == v else 0.0 for u, v in zip(column, other, strict=True)]
    return tuple(zip(*columns, strict=True)), new


def _dot(e: Emitter, row: Sequence[float], values: Sequence[Any]) -> Any:
    """Sum the products whose factor is not zero, a factor of one first."""
    b = e.builder
    terms = sorted(((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda term: term[0] != 1)
    (factor, value), *rest = terms
    total = value if factor == 1 else b.fmul(value, _constant(e, factor))
    for factor, value in rest:
        if abs(factor) == 1:
            total = b.fadd(total, value) if factor == 1 else b.fsub(total, value)
        else:
            total = e.fma(value, _constant(e, factor), total)
    return total


def _constant(e: Emitter, value: float) -> Any:
    return ir.Constant(e.vector, [value] * e.lanes)


@intrinsic
def will_write(typingctx, address):
    """Bring a line near that will be written soon."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder, 32, 4).prefetch(args[0], write=True)
        return context.get_dummy_value()

    return types.void(types.int64), codegen
