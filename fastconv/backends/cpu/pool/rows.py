"""The micro-kernel of pools on rows: lanes are columns, and nothing is kept but registers.

The rows of a window are reduced first, as whole vectors. Then their columns are sorted by phase: all that the first
kernel column reads at stride ``s``, then all that lie one further. Every kernel column is a phase, shifted by whole
elements into the vectors that come next, which are therefore made one round ahead.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.lines import Lines
from fastconv.backends.cpu.pool.reduction import Reduction, either, pick
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


@intrinsic(prefer_literal=True)
def pool_row(
    typingctx, op, kernel, stride, rows, indexed, exact, lanes, format, target,
    x, nd, xd, nh, xh, ahead, width, before, flat, flat_d, flat_h, y, indices, count, scale, scales, powers,
):  # fmt: skip
    """Compute one row of outputs; return an integer that is not zero if a NaN was met that a maximum may have lost.

    Literal integers: op, kernel and stride (of the columns), rows (how many a window has; 0 if ``nd`` times ``nh``),
    indexed (bytes of an index, 0 for none), exact, lanes, format (of what is read), target (format of what is stored).

    Values, addresses and strides in bytes: x (of the first row), nd and xd, nh and xh (how many rows, how far apart),
    ahead (from what is read to what is soon), width (of the input), before (padding), flat, flat_d and flat_h
    (index of the first row's first element, and
    what a step adds to it), y, indices, count (of outputs), scale (of a factor of the sums), scales (of a factor for
    each column, 0 for none), powers (as `Reduction` takes it).
    """
    given = (op, kernel, stride, rows, indexed, exact, lanes, format, target)
    known = literals(*given)
    if known is None:
        return None
    nop, nkernel, nstride, nrows, is_indexed, is_exact, nlanes, read, stored = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, read, nlanes)
        reduction = Reduction(e, nop, is_indexed, bool(is_exact), args[-1], stored)
        return _Row(reduction, nkernel, nstride, nrows, args[len(known) : -1]).emit()

    return types.int64(*given, *(types.int64,) * 17), codegen


class _Row:
    """Emits `pool_row`."""

    def __init__(self, reduction: Reduction, kernel: int, stride: int, rows: int, args: Any) -> None:
        self.reduction, self.e, self.b = reduction, reduction.e, reduction.e.builder
        self.kernel, self.stride = kernel, stride
        self.x, _, _, _, self.xh, self.ahead_by, self.width, self.before = args[:8]
        self.lines = Lines(reduction, rows, *args[:5], *args[8:11])
        self.y, self.indices, self.count, self.scale, self.scales = args[11:]
        self.ahead = kernel > stride
        self.factor = reduction.wide.load_splat(self.scale) if reduction.op else None

    def emit(self) -> Any:
        e, b, reduction = self.e, self.b, self.reduction
        groups = b.sdiv(e.at(self.count, e.lanes - 1), I64(e.lanes))
        width = len(reduction.border)

        def block(group: Any, carried: list[Any]) -> list[Any]:
            nan, *flat = carried
            before = [flat[i : i + width] for i in range(0, len(flat), width)]
            phases, seen = self._phases(group)
            if self.ahead:
                with b.if_then(b.icmp_signed(">", group, I64(0))):
                    self._store(e.at(group, -1), before, phases)
            else:
                self._store(group, phases, phases)
            kept = phases if self.ahead else []
            return [b.or_(nan, seen), *(part for term in kept for part in term)]

        start = reduction.border * self.stride if self.ahead else []
        return e.loop(e.at(groups, int(self.ahead)), [I64(0), *start], block)[0]

    def _phases(self, group: Any) -> tuple[list[list[Any]], Any]:
        """Return the terms of a group's columns, reduced over rows and sorted by phase, and whether one is NaN."""
        e, b, lanes = self.e, self.b, self.e.lanes
        span = self.stride * lanes
        first = b.sub(e.times(group, span), self.before)
        inside = b.and_(b.icmp_signed(">=", first, I64(0)), b.icmp_signed("<=", e.at(first, span), self.width))
        outside = b.icmp_signed(">=", first, self.width)
        lane = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        end = e.splat(b.trunc(self.width, I32))

        def masks() -> list[Any]:
            at = e.splat(b.trunc(first, I32))
            places = (b.add(at, b.add(lane, ir.Constant(lane.type, [v * lanes] * lanes))) for v in range(self.stride))
            return [b.icmp_unsigned("<", place, end) for place in places]

        def nothing() -> list[Any]:
            return [*self.reduction.border * self.stride, I64(0)]

        def bordered() -> list[Any]:
            if not self.ahead:
                return self.lines.reduced(first, masks())
            return either(e, outside, nothing, lambda: self.lines.reduced(first, masks()))

        def whole() -> list[Any]:
            soon = e.at(self.x, self.ahead_by, e.times(first, e.bytes))
            for v in range(self.stride):
                for r in range(2):
                    e.prefetch(e.at(soon, e.times(self.xh, r), v * lanes * e.bytes))
            return self.lines.reduced(first, [None] * self.stride)

        *flat, nan = either(e, inside, whole, bordered)
        width = len(self.reduction.border)
        terms = [flat[i : i + width] for i in range(0, len(flat), width)]
        if self.stride == 1:
            return terms, nan
        parts = list(zip(*terms, strict=True))
        places = [range(phase, span, self.stride) for phase in range(self.stride)]
        return [[pick(e, part, place) for part in parts] for place in places], nan

    def _store(self, group: Any, phases: list[list[Any]], following: list[list[Any]]) -> None:
        """Reduce over the kernel's columns, and store a group of outputs."""
        e, b, reduction = self.e, self.b, self.reduction
        total: list[Any] = []
        for k in range(self.kernel):
            phase, shift = k % self.stride, k // self.stride
            pairs = zip(phases[phase], following[phase], strict=True)
            places = range(shift, shift + e.lanes)
            term = [pick(e, pair, places) if shift else pair[0] for pair in pairs]
            total = reduction.combine(total, term, False) if total else term
        first = e.times(group, e.lanes)
        left = b.sub(self.count, first)
        y, indices = (
            e.at(self.y, e.times(first, reduction.target.bytes)),
            e.at(self.indices, e.times(first, reduction.indexed)),
        )
        scales = e.at(self.scales, e.times(first, reduction.wide.bytes))
        scales = b.select(b.icmp_signed("==", self.scales, I64(0)), I64(0), scales)

        def write(mask: Any) -> None:
            value = reduction.finish(total[0], self.factor, scales, mask)
            reduction.store([value, *total[1:]], y, indices, mask)

        with b.if_else(b.icmp_signed(">=", left, I64(e.lanes))) as (whole, part):
            with whole:
                write(None)
            with part:
                short = e.splat(b.trunc(left, I32))
                lane = ir.Constant(ir.VectorType(I32, e.lanes), list(range(e.lanes)))
                write(b.icmp_signed("<", lane, short))
