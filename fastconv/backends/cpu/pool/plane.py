"""The micro-kernel of pools on narrow maps: many rows at once, each of a few vectors, all bounds worked out before.

As `pool_row`, but unrolled over the columns: on maps of 7 to 64 columns what goes around the vectors costs more
than they do.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.reduction import Reduction, if_any, pick
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


@intrinsic(prefer_literal=True)
def pool_plane(
    typingctx, op, kernel, stride, groups, rows, indexed, lanes, format,
    x, xh, step, nh, width, before, flat, flat_h, flat_step, y, yh, indices, jh, lines, safe, count,
    scale, scales, powers,
):  # fmt: skip
    """Compute rows of outputs whose windows all have ``nh`` rows; return what `pool_row` does.

    Literal integers: op, kernel and stride (of the columns), groups (vectors of outputs of a row), rows (``nh``
    if it is known, otherwise 0), indexed (bytes of an index, 0 for none), lanes, format (of an element).

    Values, addresses and strides in bytes: x (first row of the first window), xh (from row to row of a window), step
    (from window to window), nh (rows of a window), width (of the input), before (padding), flat, flat_h and
    flat_step (index of the first
    element, and what these two steps add to it), y, yh, indices, jh, lines (rows of outputs), safe (how many of these
    may be stored as whole vectors, since what lies behind is written later), count (outputs of a row),
    scale (of one factor of the sums for each row), scales (of a factor for each column, 0 for none), powers (as
    `Reduction` takes it).
    """
    given = (op, kernel, stride, groups, rows, indexed, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nkernel, nstride, ngroups, nrows, is_indexed, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, element, nlanes)
        reduction = Reduction(e, nop, is_indexed, False, args[-1])
        return _Plane(reduction, (nkernel, nstride, ngroups, nrows), args[len(known) : -1]).emit()

    return types.int64(*given, *(types.int64,) * 19), codegen


class _Plane:
    """Emits `pool_plane`."""

    def __init__(self, reduction: Reduction, shape: tuple[int, ...], args: Any) -> None:
        self.reduction, self.e, self.b = reduction, reduction.e, reduction.e.builder
        self.kernel, self.stride, self.groups, self.rows = shape
        self.x, self.xh, self.step, self.nh, self.width, self.before = args[:6]
        self.flat, self.flat_h, self.flat_step = args[6:9]
        self.y, self.yh, self.indices, self.jh, self.lines, self.safe, self.count, self.scale, self.scales = args[9:]

    def emit(self) -> Any:
        e, b, reduction = self.e, self.b, self.reduction
        lanes, vectors = e.lanes, self.groups * self.stride
        kind = ir.VectorType(I32, lanes)
        column = b.sub(ir.Constant(kind, list(range(lanes))), e.splat(b.trunc(self.before, I32)))
        end = e.splat(b.trunc(self.width, I32))
        self.columns = [b.add(column, ir.Constant(kind, [v * lanes] * lanes)) for v in range(vectors)]
        self.masks = [b.icmp_unsigned("<", place, end) for place in self.columns]
        stored = e.splat(b.trunc(self.count, I32))
        lane = [ir.Constant(kind, list(range(g * lanes, (g + 1) * lanes))) for g in range(self.groups)]
        self.stored = [b.icmp_signed("<", places, stored) for places in lane]
        self.factors = [None] * self.groups
        if reduction.op:
            ones = [ir.Constant(e.vector, [1.0] * lanes)] * self.groups
            wide = reduction.wide
            at = [e.at(self.scales, g * lanes * wide.bytes) for g in range(self.groups)]
            self.factors = e.unless_zero(
                self.scales, ones, lambda _: [wide.load_masked(a, m) for a, m in zip(at, self.stored, strict=True)]
            )
        first = e.at(self.x, e.times(b.sub(I64(0), self.before), e.bytes))
        state = [I64(0), first, self.flat, self.y, self.indices, self.scale]
        state = if_any(e, self.safe, state, lambda _, carried: self._line(carried, [None] * self.groups))
        left = b.sub(self.lines, self.safe)
        return if_any(e, left, state, lambda _, carried: self._line(carried, self.stored))[0]

    def _line(self, carried: list[Any], stored: list[Any]) -> list[Any]:
        e, b, reduction = self.e, self.b, self.reduction
        nan, x, flat, y, indices, scale = carried
        terms, seen = self._reduced(x, flat)
        phases = []
        span = self.stride * e.lanes
        for g in range(self.groups):
            parts = list(zip(*terms[g * self.stride : (g + 1) * self.stride], strict=True))
            places = [range(phase, span, self.stride) for phase in range(self.stride)]
            phases.append([[pick(e, part, place) for part in parts] for place in places])
        phases.append([reduction.border] * self.stride)
        factor = reduction.wide.load_splat(scale) if reduction.op else None
        for g in range(self.groups):
            total: list[Any] = []
            for k in range(self.kernel):
                phase, shift = k % self.stride, k // self.stride
                pairs = zip(phases[g][phase], phases[g + 1][phase], strict=True)
                term = [pick(e, pair, range(shift, shift + e.lanes)) if shift else pair[0] for pair in pairs]
                total = reduction.combine(total, term, False) if total else term
            if reduction.op:
                total[0] = reduction.finish(total[0], b.fmul(factor, self.factors[g]), None, None)
            first = g * e.lanes
            reduction.store(total, e.at(y, first * e.bytes), e.at(indices, first * reduction.indexed), stored[g])
        following = [e.at(x, self.step), e.at(flat, self.flat_step), e.at(y, self.yh), e.at(indices, self.jh)]
        return [b.or_(nan, seen), *following, e.at(scale, reduction.wide.bytes)]

    def _reduced(self, x: Any, flat: Any) -> tuple[list[list[Any]], Any]:
        """Return the terms of all vectors of columns, reduced over a window's rows, and whether one is NaN."""
        reduction = self.reduction
        width = len(reduction.border)
        if self.rows:
            terms, loaded = self._row(x, flat)
            for r in range(1, self.rows):
                below, more = self._row(
                    self.e.at(x, self.e.times(self.xh, r)), self.e.at(flat, self.e.times(self.flat_h, r))
                )
                terms = [reduction.combine(a, c) for a, c in zip(terms, below, strict=True)]
                loaded += more
            return terms, reduction.has_nan(loaded)

        def line(_: Any, carried: list[Any]) -> list[Any]:
            x, flat, nan, *old = carried
            new, loaded = self._row(x, flat)
            pairs = zip((old[i : i + width] for i in range(0, len(old), width)), new, strict=True)
            terms = [part for a, c in pairs for part in reduction.combine(a, c, False)]
            e = self.e
            return [e.at(x, self.xh), e.at(flat, self.flat_h), self.b.or_(nan, reduction.has_nan(loaded)), *terms]

        start = [x, flat, I64(0), *reduction.border * len(self.masks)]
        _, _, nan, *terms = if_any(self.e, self.nh, start, line)
        return [terms[i : i + width] for i in range(0, len(terms), width)], nan

    def _row(self, x: Any, flat: Any) -> tuple[list[list[Any]], list[Any]]:
        """Return the terms of all vectors of columns of a row, and their values."""
        e, b, reduction = self.e, self.b, self.reduction
        base = reduction.index(flat) if reduction.indexed else None
        terms = []
        for v, mask in enumerate(self.masks):
            terms.append([reduction.load(e.at(x, v * e.lanes * e.bytes), mask)])
            if base is not None:
                column = self.columns[v] if reduction.integer == I32 else b.sext(self.columns[v], reduction.indices)
                terms[-1].append(b.select(mask, b.add(base, column), reduction.border[1]))
        return terms, [term[0] for term in terms]
