"""The micro-kernels of unfold and fold: rows copied as bytes, and a row gathered from all that goes there."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.reduction import if_any
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals

# Bytes of an element at least.
_LEAST = 2


@intrinsic(prefer_literal=True)
def copy_rows(typingctx, vector, source, source_step, target, target_step, rows, count):
    """Copy rows of bytes, at least two each.

    Literal integer: vector (bytes of a register).

    Values, addresses and strides in bytes: source, source_step (from row to row), target, target_step, rows (at least
    one), count (bytes of a row). What a row has beyond whole registers is copied by one that overlaps: nothing is
    read or written beside the rows.
    """
    known = literals(vector)
    if known is None:
        return None
    (widest,) = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _emit_copies(Emitter(builder, 32, 1), widest, *args[1:])
        return context.get_dummy_value()

    return types.void(vector, *(types.int64,) * 6), codegen


def _emit_copies(
    e: Emitter, piece: int, source: Any, source_step: Any, target: Any, target_step: Any, rows: Any, count: Any
) -> None:
    """Emit the copy by pieces of so many bytes, or by smaller ones for rows that are shorter."""
    b = e.builder
    kind = ir.VectorType(ir.IntType(8), piece).as_pointer()

    def move(to: Any, of: Any) -> None:
        loaded = b.load(b.inttoptr(of, kind))
        loaded.align = 1
        b.store(loaded, b.inttoptr(to, kind)).align = 1

    def copy() -> None:
        last = b.sub(count, I64(piece))
        whole = b.sdiv(e.at(last, piece - 1), I64(piece))

        def row(_: Any, at: list[Any]) -> list[Any]:
            def middle(_: Any, places: list[Any]) -> list[Any]:
                move(*places)
                return [e.at(place, piece) for place in places]

            if_any(e, whole, at, middle)
            move(*(b.add(place, last) for place in at))
            return [b.add(at[0], target_step), b.add(at[1], source_step)]

        e.loop(rows, [target, source], row)

    if piece == _LEAST:
        copy()
        return
    with b.if_else(b.icmp_signed(">=", count, I64(piece))) as (long, short):
        with long:
            copy()
        with short:
            _emit_copies(e, piece // 2, source, source_step, target, target_step, rows, count)


@intrinsic(prefer_literal=True)
def gather_row(
    typingctx, vectors, narrows, lanes, format,
    columns, step, ahead, depths, ndepths, rows, nrows, taps, ntaps, first, width, target, count,
):  # fmt: skip
    """Sum what neighbouring elements of a row, in one phase, are read by.

    Literal integers: vectors (of elements), narrows (the target has the columns' format; otherwise that which is
    computed in, and has room for whole vectors), lanes, format (of the columns).

    Values, addresses and strides in bytes: columns (of the channel), step (from kernel position to kernel position),
    ahead (what is so far on is asked for), depths, rows and taps (tables of two words each, with at least one entry:
    how many kernel positions to go, and for depths and rows the bytes to go, for taps the shift), first (window that
    begins at the first element if the shift is zero), width (windows of a row), target, count (elements, at least
    one).
    """
    given = (vectors, narrows, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nvectors, is_narrow, nlanes, stored = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        columns, step, ahead, depths, ndepths, rows, nrows, taps, ntaps, first, width, target, count = args[
            len(known) :
        ]
        b, e = builder, Emitter(builder, stored, nlanes)
        lane = ir.Constant(ir.VectorType(I32, nlanes), list(range(nlanes)))
        end = e.splat(b.trunc(width, I32))

        def entry(table: Any, index: Any) -> tuple[Any, Any]:
            at = e.at(table, e.times(index, 16))
            return b.mul(e.load_integer(at), step), e.load_integer(e.at(at, 8))

        def tap(index: Any, at: Any, sums: list[Any]) -> list[Any]:
            onward, shift = entry(taps, index)
            place = b.sub(first, shift)
            at = e.at(at, onward, e.times(place, e.bytes))
            here = b.add(e.splat(b.trunc(place, I32)), lane)
            result = []
            for v, total in enumerate(sums):
                inside = b.icmp_unsigned("<", b.add(here, _all(here.type, v * nlanes)) if v else here, end)
                e.prefetch(e.at(at, ahead, v * nlanes * e.bytes), level=2)
                result.append(b.fadd(total, e.load_masked(e.at(at, v * nlanes * e.bytes), inside)))
            return result

        def row(index: Any, at: Any, sums: list[Any]) -> list[Any]:
            at = e.at(at, *entry(rows, index))
            return e.loop(ntaps, sums, lambda i, s: tap(i, at, s))

        def depth(index: Any, sums: list[Any]) -> list[Any]:
            at = e.at(columns, *entry(depths, index))
            return e.loop(nrows, sums, lambda i, s: row(i, at, s))

        out = e if is_narrow else e.wide
        for v, total in enumerate(e.loop(ndepths, [e.zero] * nvectors, depth)):
            # Whole vectors are at hand for who reads them next, other than masked ones.
            mask = e.first(e.at(count, -v * nlanes)) if is_narrow else None
            out.store_masked(total, out.at(target, v * nlanes * out.bytes), mask)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 13), codegen


@intrinsic(prefer_literal=True)
def turn(typingctx, lanes, format, source, source_step, count, target, target_step, length):
    """Transpose a block: ``count`` lines of ``length`` elements, both between one and ``lanes``.

    Literal integers: lanes, format (of the target; the source has that which is computed in).

    Values, addresses and strides in bytes: source, source_step (from line to line), count, target, target_step (from
    line to line there, where there are ``length`` of ``count`` elements).
    """
    given = (lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nlanes, stored = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, source_step, count, target, target_step, length = args[len(known) :]
        b, e = builder, Emitter(builder, stored, nlanes)
        lines = [e.at(source, b.mul(source_step, I64(i))) for i in range(nlanes)]
        targets = [e.at(target, b.mul(target_step, I64(i))) for i in range(nlanes)]
        full = b.and_(b.icmp_signed("==", count, I64(nlanes)), b.icmp_signed("==", length, I64(nlanes)))
        with b.if_else(full, likely=True) as (whole, part):
            with whole:
                for to, vector in zip(targets, e.transpose([e.wide.load(line) for line in lines]), strict=True):
                    e.store(vector, to)
            with part:
                inside, stored_lanes = e.first(length), e.first(count)
                # What is beyond the last line is not stored: the first is read in its place.
                real = [b.select(b.icmp_signed("<", I64(i), count), line, source) for i, line in enumerate(lines)]
                loaded = [e.wide.load_masked(line, inside) for line in real]
                for i, (to, vector) in enumerate(zip(targets, e.transpose(loaded), strict=True)):
                    with b.if_then(b.icmp_signed("<", I64(i), length)):
                        e.store_masked(vector, to, stored_lanes)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 6), codegen


@intrinsic(prefer_literal=True)
def every_other(typingctx, lanes, bits, source, target, count):
    """Copy ``count`` elements, at least one, that are two apart to where they are neighbours."""
    given = (lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, count = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        step = nlanes * e.bytes

        def vector(index: Any, _: list[Any]) -> list[Any]:
            left = b.sub(count, e.times(index, nlanes))
            at, to = e.at(source, e.times(index, 2 * step)), e.at(target, e.times(index, step))
            read = e.at(left, left, -1)
            pair = [e.load_masked(e.at(at, v * step), e.first(e.at(read, -v * nlanes))) for v in range(2)]
            e.store_masked(e.shuffle(pair[0], pair[1], range(0, 2 * nlanes, 2)), to, e.first(left))
            return []

        e.loop(b.sdiv(e.at(count, nlanes - 1), I64(nlanes)), [], vector)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 3), codegen


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)
