"""The micro-kernel of pools' gradients on maps: rows of windows go by, one after the other.

Lanes are blocks of as many elements as the stride: what elements ``s`` apart receive lies side by side in a vector, a
*phase*. The windows that reach a block are neighbours of each other, so they are loaded as vectors that begin at
different windows. An average sends every element the same, a maximum its gradient or nothing. Rows that later windows
still reach stay in registers, each result is written once, and what depends on columns alone is worked out before.

Vectors may end beyond their row: groups of blocks are done from the last to the first, so that what is written there
is written again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import Indices, index_type, narrowed
from fastconv.backends.cpu.pool.reduction import MAX, if_any, pick
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


@intrinsic(prefer_literal=True)
def spread_rows(
    typingctx, op, kernel, stride, phase, along, index, lanes, format,
    y, yh, indices, jh, windows, groups, above, rows, last, x, xh, width, height, before, safe, scale, scales, line,
    waiting,
):  # fmt: skip
    """Compute the gradient that some rows of windows complete, in all groups of columns.

    Literal integers: op (``MAX`` by indices, otherwise an average), kernel and stride (of rows and columns, the
    kernel at least as large), phase (the padding before columns, modulo the stride), along (do the groups of one row,
    then those of the next; else all rows of one group), index (bytes of one), lanes (blocks of a group),
    format (of an element).

    Values, addresses and strides in bytes: y and indices (of the first of the rows), yh and jh (from row to row),
    windows (of a row), groups (that cover a row of the map), above (number of the row of the map that the first row of
    windows begins at), rows (how many), last (whether there are no more), x (gradient of the map), xh, width and height
    (of it), before (padding), safe (rows of the map that may be stored as whole vectors, since what lies behind is
    written later), scale (of a factor for each row), scales (of one for each column, 0 for none), line (scratch for the
    rows that wait, as many vectors as these have: zeros at first), waiting (from one group's to the next).
    """
    given = (op, kernel, stride, phase, along, index, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nkernel, nstride, nphase, is_along, size, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(Emitter(builder, element, nlanes), nop, nkernel, nstride, nphase, size, args[len(known) :])
        (rows.emit_along if is_along else rows.emit_down)()
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 19), codegen


class _Rows:
    """Emits `spread_rows`."""

    def __init__(self, e: Emitter, op: int, kernel: int, stride: int, phase: int, size: int, args: Any) -> None:
        self.e, self.b, self.kernel, self.stride, self.phase = e, e.builder, kernel, stride, phase
        self.wide = e.wide
        self.y, self.yh, self.indices, self.jh, self.windows, self.groups, self.above, self.rows = args[:8]
        self.last, self.x, self.xh, self.width, self.height, self.before, self.safe = args[8:15]
        self.scale, self.scales, self.line, self.waiting = args[15:]
        self.routed, self.stored = op == MAX, Indices(e, size)
        self.integer = index_type(e)
        self.open = kernel - stride  # rows that the next windows reach too
        # Windows that reach a block, counted from the one that begins, but for ``phase``, where it does.
        self.reach = range((phase - kernel) // stride + 1, (phase + stride - 1) // stride + 1)
        self.lane = ir.Constant(ir.VectorType(I32, e.lanes), list(range(e.lanes)))
        # What indices are compared with, counted from a block's first element.
        self.codes = [
            [e.splat(narrowed(e, e.at(e.times(self.width, r), c))) for c in range(stride)] for r in range(kernel)
        ]

    @property
    def _state(self) -> list[Any]:
        """What changes from row to row of windows: the row of the map that it begins at, and addresses."""
        return [self.above, self.y, self.indices, self.scale]

    def _each_group(self, do: Callable[[Any, list[Any]], list[Any]], state: list[Any]) -> list[Any]:
        """Emit a loop over the groups, the last one first."""
        e, b = self.e, self.b

        def group(index: Any, carried: list[Any]) -> list[Any]:
            number = b.sub(b.sub(self.groups, I64(1)), index)
            self._begin(e.times(number, e.lanes))
            return do(e.at(self.line, b.mul(number, self.waiting)), carried)

        return e.loop(self.groups, state, group)

    def emit_down(self) -> None:
        """Do all rows of one group: those that wait stay in registers."""

        def group(line: Any, _: list[Any]) -> list[Any]:
            row, _, _, _, *waiting = self.e.loop(self.rows, self._state + self._waiting(line), self._round)
            self._keep(waiting, line)
            with self.b.if_then(self.b.icmp_signed("!=", self.last, I64(0))):
                self._end(row, waiting)
            return []

        self._each_group(group, [])

    def emit_along(self) -> None:
        """Do the groups of one row after the other, near the order of memory."""
        e, b = self.e, self.b

        def row(_: Any, state: list[Any]) -> list[Any]:
            def columns(line: Any, _: list[Any]) -> list[Any]:
                following = self._round(None, state + self._waiting(line))
                self._keep(following[len(state) :], line)
                return following[: len(state)]

            return self._each_group(columns, state)

        def end(line: Any, _: list[Any]) -> list[Any]:
            self._end(below, self._waiting(line))
            return []

        below, *_ = e.loop(self.rows, self._state, row)
        with b.if_then(b.icmp_signed("!=", self.last, I64(0))):
            self._each_group(end, [])

    def _begin(self, first: Any) -> None:
        """Work out what depends on the columns alone, from the number of the first lane's block."""
        e, b = self.e, self.b
        self.column = e.times(first, self.stride)
        self._prepare_stores()
        start = e.at(first, b.sdiv(self.before, I64(self.stride)))
        starts = [e.at(start, shift) for shift in self.reach]
        self.masks = [self._inside(start, self.windows) for start in starts]
        self.places = [e.times(start, e.bytes) for start in starts]
        if self.routed:
            self.entry = e.times(starts[-1], self.stored.bytes)
            self.before_it = [self._one(start) for start in starts[-2::-1]]
            lanes = ir.Constant(ir.VectorType(self.integer, e.lanes), [self.stride * lane for lane in range(e.lanes)])
            self.origin = b.add(e.splat(narrowed(e, self.column)), lanes)
        else:
            self._prepare_factors(starts)

    def _one(self, window: Any) -> tuple[Any, Any]:
        """Return where in a row a window's index is, and what is added to it: of no window, what none has."""
        e, b = self.e, self.b
        real = b.icmp_unsigned("<", window, self.windows)
        none = I64(-(2 ** (self.integer.width - 1)))
        return e.times(b.select(real, window, I64(0)), self.stored.bytes), b.select(real, I64(0), none)

    def _waiting(self, line: Any) -> list[Any]:
        e = self.e
        return [self.wide.load(e.at(line, i * e.lanes * self.wide.bytes)) for i in range(self.open * self.stride)]

    def _keep(self, waiting: list[Any], line: Any) -> None:
        for i, value in enumerate(waiting):
            self.wide.store(value, self.e.at(line, i * self.e.lanes * self.wide.bytes))

    def _end(self, row: Any, waiting: list[Any]) -> None:
        """Store what waits, and zeros below it."""
        e, stride = self.e, self.stride
        self._store(row, [waiting[r * stride : (r + 1) * stride] for r in range(self.open)])
        row = e.at(row, self.open)

        def clear(_: Any, values: list[Any]) -> list[Any]:
            self._store(values[0], [[e.zero] * stride])
            return [e.at(values[0], 1)]

        if_any(e, self.b.sub(self.height, row), [row], clear)

    def _inside(self, first: Any, count: Any) -> Any:
        """Return a mask of the lanes that are, counted from ``first``, at least 0 and below a count."""
        e, b = self.e, self.b
        place = b.add(e.splat(b.trunc(first, I32)), self.lane)
        return b.icmp_unsigned("<", place, e.splat(b.trunc(count, I32)))

    def _prepare_stores(self) -> None:
        """Work out, for each of the vectors that a row is stored as, what of it lies in the map."""
        e, b = self.e, self.b
        self.target = e.at(self.x, e.times(self.column, e.bytes))
        self.some, self.masked = [], []
        for v in range(self.stride):
            column = e.at(self.column, v * e.lanes)
            self.some.append(b.icmp_signed("<", column, self.width))
            self.masked.append(self._inside(column, self.width))
        within = b.icmp_signed("<=", e.at(self.column, self.stride * e.lanes), self.width)
        # Up to this row of the map whole vectors may be stored.
        self.plain = b.select(within, self.height, self.safe)

    def _prepare_factors(self, windows: list[Any]) -> None:
        e = self.e
        ones = [ir.Constant(e.vector, [1.0] * e.lanes)] * len(windows)
        factors = [e.at(self.scales, e.times(window, self.wide.bytes)) for window in windows]
        pairs = list(zip(factors, self.masks, strict=True))
        self.factors = e.unless_zero(
            self.scales, ones, lambda _: [self.wide.load_masked(at, mask) for at, mask in pairs]
        )

    def _round(self, _: Any, state: list[Any]) -> list[Any]:
        """Do a row of windows, and store the rows that no later window reaches."""
        e, stride = self.e, self.stride
        row, y, indices, scale, *waiting = state
        rows: list[list[Any]] = [waiting[r * stride : (r + 1) * stride] for r in range(self.open)]
        rows += [[None] * stride for _ in range(stride)]
        if self.routed:
            self._route(rows, y, indices, row)
        else:
            self._share(rows, y, self.wide.load_splat(scale))
        self._store(row, rows[:stride])
        following = [e.at(row, stride), e.at(y, self.yh), e.at(indices, self.jh), e.at(scale, self.wide.bytes)]
        return [*following, *(phase for kept in rows[stride:] for phase in kept)]

    def _taps(self, phase: int) -> list[int]:
        """Return which of the windows that reach a block read its elements of a phase."""
        columns = [phase + self.phase - self.stride * shift for shift in self.reach]
        return [i for i, column in enumerate(columns) if 0 <= column < self.kernel]

    def _route(self, rows: list[list[Any]], y: Any, indices: Any, row: Any) -> None:
        e, b = self.e, self.b
        base = b.add(self.origin, e.splat(narrowed(e, b.mul(row, self.width))))
        # Indices are loaded once, and moved on by a lane for the windows before.
        chosen = [self.stored.load(e.at(indices, self.entry), self.masks[-1])]
        for entry, more in self.before_it:
            index = b.add(self.stored.load_one(e.at(indices, entry)), more)
            pair = e.splat(narrowed(e, index)), chosen[0]
            chosen.insert(0, pick(e, pair, range(e.lanes - 1, 2 * e.lanes - 1)))
        values = [e.load_masked(e.at(y, place), mask) for place, mask in zip(self.places, self.masks, strict=True)]
        windows = [(value, b.sub(code, base)) for value, code in zip(values, chosen, strict=True)]
        for r in range(self.kernel):
            for phase in range(self.stride):
                total = rows[r][phase]
                for value, code in (windows[i] for i in self._taps(phase)):
                    # Added where it is the one, and not elsewhere: it may be infinite.
                    new = value if total is None else b.fadd(total, value)
                    here = b.icmp_signed("==", code, self.codes[r][phase])
                    total = b.select(here, new, e.zero if total is None else total)
                rows[r][phase] = total

    def _share(self, rows: list[list[Any]], y: Any, scale: Any) -> None:
        e, b = self.e, self.b
        windows = [
            b.fmul(e.load_masked(e.at(y, at), mask), b.fmul(scale, factor))
            for at, mask, factor in zip(self.places, self.masks, self.factors, strict=True)
        ]
        for phase in range(self.stride):
            first, *others = (windows[i] for i in self._taps(phase))
            total = reduce(b.fadd, others, first)
            for row in rows:
                row[phase] = total if row[phase] is None else b.fadd(row[phase], total)

    def _store(self, row: Any, rows: list[list[Any]]) -> None:
        """Store neighbouring rows of the gradient, as far as they lie in the map."""
        if not rows:
            return
        e, b, lanes = self.e, self.b, self.e.lanes
        places = [
            [p % self.stride * lanes + p // self.stride for p in range(v * lanes, (v + 1) * lanes)]
            for v in range(self.stride)
        ]
        result = [[pick(e, phases, place) for place in places] for phases in rows]
        target = e.at(self.target, b.mul(row, self.xh))
        targets = [e.at(target, e.times(self.xh, r)) for r in range(len(rows))]
        plain = b.icmp_signed("<=", e.at(row, len(rows)), self.plain)
        plain = b.and_(plain, b.icmp_signed(">=", row, I64(0)))
        with b.if_else(plain, likely=True) as (whole, part):
            # In the order of memory: what lies behind a row is the next one.
            with whole, b.if_else(self.some[-1], likely=True) as (every, some):
                for branch, asked in ((every, False), (some, True)):
                    with branch:
                        for (vectors, at), v in product(zip(result, targets, strict=True), range(self.stride)):
                            with b.if_then(self.some[v]) if asked else nullcontext():
                                e.store(vectors[v], e.at(at, v * lanes * e.bytes))
            with part:
                for r, (vectors, at) in enumerate(zip(result, targets, strict=True)):
                    with b.if_then(b.icmp_unsigned("<", e.at(row, r), self.height)):
                        for v in range(self.stride):
                            with b.if_then(self.some[v]):
                                e.store_masked(vectors[v], e.at(at, v * lanes * e.bytes), self.masked[v])
