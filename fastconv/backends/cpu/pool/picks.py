"""The micro-kernel of pools whose windows differ in size or distance, or are longer than there are loops for.

The rows of a window are reduced first, as whole vectors. Then every output picks the columns of its window from these,
one after the other, by permutations. What these are is known before the first row.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.permuting import permuted
from fastconv.backends.cpu.pool.lines import Lines
from fastconv.backends.cpu.pool.reduction import Reduction, if_any
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def pool_picks(typingctx, op, vectors, few, indexed, exact, lanes, format, values):
    """Compute a vector of outputs in each of some rows; return what `pool_row` does.

    Literal integers: op, vectors (of columns that the outputs pick from, a power of two), few (``taps`` if these are
    few, otherwise 0), indexed (bytes of an index, 0 for none), exact, lanes, format (of an element).

    A tuple, since of more than thirty arguments Python makes a list, and Numba forgets that some were literals: values,
    addresses and strides in bytes: x (of the map's first row), nd and xd (how many depths, how far apart),
    starts and reads (tables: the first row of each line of outputs, and how many it reads), lines (of outputs), step_h
    (from one row to the next, in rows), xh (from row to row of the map), first (column that outputs pick from), width
    (of the input), places and counts (vectors of integers as wide as what is computed: how far from ``first`` the
    windows begin, and how many columns they have), step (from one of these to the next), taps (the most of them), flat,
    flat_d and flat_h (index of the map's first element, and what depths and rows add to it), y, yh, indices, jh, count
    (of outputs), scale, scales and powers (as in `pool_plane`).
    """
    given = (op, vectors, few, indexed, exact, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nvectors, nfew, is_indexed, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *rest, powers = cgutils.unpack_tuple(builder, args[-1])
        reduction = Reduction(Emitter(builder, element, nlanes), nop, is_indexed, bool(is_exact), powers)
        return _Picks(reduction, nvectors, nfew, rest).emit()

    return types.int64(*given, types.UniTuple(types.int64, 25)), codegen


class _Picks:
    """Emits `pool_picks`."""

    def __init__(self, reduction: Reduction, vectors: int, few: int, args: Any) -> None:
        self.reduction, self.e, self.b = reduction, reduction.e, reduction.e.builder
        self.x, self.nd, self.xd, self.starts, self.reads, self.lines, self.step_h, self.xh = args[:8]
        self.first, self.width, self.places, self.counts, self.step, self.taps = args[8:14]
        self.flat, self.flat_d, self.flat_h = args[14:17]
        self.y, self.yh, self.indices, self.jh, self.count, self.scale, self.scales = args[17:]
        self.vectors, self.few = vectors, few

    def emit(self) -> Any:
        e, b, reduction = self.e, self.b, self.reduction
        left = b.sub(self.width, self.first)
        self.masks = [e.first(e.at(left, -v * e.lanes)) for v in range(self.vectors)]
        self.stored = e.first(self.count)
        self.known = [[self._integers(self.places), self._integers(self.counts)]]
        for _ in range(1, self.few):
            self.known.append(self._next(*self.known[-1]))
        self.factor = None
        if reduction.op:
            ones = ir.Constant(e.vector, [1.0] * e.lanes)
            wide = reduction.wide
            self.factor = e.unless_zero(self.scales, [ones], lambda _: [wide.load_masked(self.scales, self.stored)])[0]
        state = [I64(0), self.starts, self.reads, self.y, self.indices, self.scale]
        return if_any(e, self.lines, state, lambda _, carried: self._line(*carried))[0]

    def _line(self, nan: Any, start: Any, reads: Any, y: Any, indices: Any, scale: Any) -> list[Any]:
        e, b, reduction = self.e, self.b, self.reduction
        row, rows = e.load_integer(start), e.load_integer(reads)
        x, flat = e.at(self.x, b.mul(row, self.xh)), e.at(self.flat, b.mul(row, self.flat_h))
        onward = b.mul(self.step_h, self.xh), b.mul(self.step_h, self.flat_h)
        lines = Lines(reduction, 0, x, self.nd, self.xd, rows, onward[0], flat, self.flat_d, onward[1])
        *parts, seen = lines.reduced(self.first, self.masks)
        width = len(reduction.border)
        total = self._picked([parts[i::width] for i in range(width)])
        if self.factor is not None:
            factor = b.fmul(reduction.wide.load_splat(scale), self.factor)
            total[0] = reduction.finish(total[0], factor, None, None)
        reduction.store(total, y, indices, self.stored)
        following = [e.at(start, 8), e.at(reads, 8), e.at(y, self.yh), e.at(indices, self.jh)]
        return [b.or_(nan, seen), *following, e.at(scale, reduction.wide.bytes)]

    def _picked(self, parts: list[list[Any]]) -> list[Any]:
        """Return the terms of the outputs: the values, and perhaps indices, of columns reduced over windows."""
        e, b, reduction = self.e, self.b, self.reduction

        def combine(total: list[Any], place: Any, left: Any) -> list[Any]:
            here = b.icmp_signed(">", left, reduction.constant([0] * e.lanes))
            term = []
            for vectors, border in zip(parts, reduction.border, strict=True):
                picked = permuted(e.wide, [b.bitcast(vector, e.vector) for vector in vectors], place)
                term.append(b.select(here, b.bitcast(picked, border.type), border))
            return reduction.combine(total, term, False) if total else term

        total: list[Any] = []
        if self.few:
            for place, left in self.known:
                total = combine(total, place, left)
            return total

        def following(_: Any, carried: list[Any]) -> list[Any]:
            place, left, *total = carried
            return [*self._next(place, left), *combine(total, place, left)]

        return e.loop(self.taps, [*self.known[0], *reduction.border], following)[2:]

    def _next(self, place: Any, left: Any) -> list[Any]:
        """Return where the windows' next elements are, and how many are left."""
        b, reduction = self.b, self.reduction
        return [b.add(place, reduction.index(self.step)), b.sub(left, reduction.constant([1] * self.e.lanes))]

    def _integers(self, address: Any) -> Any:
        b, reduction = self.b, self.reduction
        loaded = b.load(b.inttoptr(address, reduction.indices.as_pointer()))
        loaded.align = reduction.wide.bytes
        return loaded
