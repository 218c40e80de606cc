"""The micro-kernel of pools' gradients on maps: lanes are the windows of a row, and rows go by, one after the other.

A window sends to every element that it reads: an average the same, a maximum its gradient or nothing. What elements
``s`` apart receive lies side by side in a vector, a *phase*; rows that later windows still reach stay in registers.
So each value is read once and each result is written once, and what depends on columns alone is worked out before.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.reduction import MAX, if_any, index_type, narrowed, pick
from fastconv.backends.cpu.pool.spread import load_indices
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


@intrinsic(prefer_literal=True)
def spread_rows(
    typingctx, op, kernel, stride, along, lanes, format,
    y, yh, indices, jh, windows, first, groups, above, rows, last, x, xh, width, height, before, safe, scale, scales,
    line,
):  # fmt: skip
    """Compute the gradient that some rows of windows complete, in the columns that groups of windows begin at.

    Literal integers: op (``MAX`` by indices, otherwise an average), kernel and stride (of rows and columns, the
    kernel at least as large), along (do the groups of one row, then those of the next; else there is one group), lanes
    (windows of a group), format (of an element).

    Values, addresses and strides in bytes: y and indices (of the first of the rows), yh and jh (from row to row),
    windows (of a row), first (number of the first lane's window), groups (how many), above (number of the row of the
    map that the first row of windows begins at), rows (how many), last (whether there are no more), x (gradient of the
    map), xh, width and height (of it), before (padding), safe (rows of the map that may be stored as whole vectors,
    since what lies behind is written later), scale (of a factor for each row), scales (of one for each column, 0 for
    none), line (scratch for the rows that wait, as many vectors as these have: zeros at first).
    """
    given = (op, kernel, stride, along, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nkernel, nstride, is_along, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows = _Rows(Emitter(builder, element, nlanes), nop, nkernel, nstride, args[len(known) :])
        (rows.emit_along if is_along else rows.emit_down)()
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 19), codegen


class _Rows:
    """Emits `spread_rows`."""

    def __init__(self, e: Emitter, op: int, kernel: int, stride: int, args: Any) -> None:
        self.e, self.b, self.kernel, self.stride = e, e.builder, kernel, stride
        self.wide = e.wide
        self.y, self.yh, self.indices, self.jh, self.windows, self.first, self.groups, self.above, self.rows = args[:9]
        self.last, self.x, self.xh, self.width, self.height, self.before, self.safe = args[9:16]
        self.scale, self.scales, self.line = args[16:]
        self.routed = op == MAX
        self.integer = index_type(e)
        self.open = kernel - stride  # rows that the next windows reach too
        self.reach = -(-kernel // stride)  # windows of a row that read an element
        self.lane = ir.Constant(ir.VectorType(I32, e.lanes), list(range(e.lanes)))
        # What a window's index is compared with, counted from its first element.
        self.codes = [
            [e.splat(narrowed(e, e.at(e.times(self.width, r), c))) for c in range(kernel)] for r in range(kernel)
        ]

    @property
    def _state(self) -> list[Any]:
        """What changes from row to row of windows: the row of the map that it begins at, and addresses."""
        return [self.above, self.y, self.indices, self.scale]

    def emit_down(self) -> None:
        """Do all rows of one group: those that wait stay in registers."""
        self._begin(self.first)
        waiting = self._waiting(self.line)
        row, _, _, _, *waiting = self.e.loop(self.rows, self._state + waiting, self._round)
        self._keep(waiting, self.line)
        with self.b.if_then(self.b.icmp_signed("!=", self.last, I64(0))):
            self._end(row, waiting)

    def emit_along(self) -> None:
        """Do the groups of one row after the other, in the order of memory."""
        e, b = self.e, self.b
        kept = self.open * self.stride * e.lanes * self.wide.bytes

        def group(index: Any) -> Any:
            self._begin(e.at(self.first, e.times(index, e.lanes)))
            return e.at(self.line, e.times(index, kept))

        def row(_: Any, state: list[Any]) -> list[Any]:
            def columns(index: Any, following: list[Any]) -> list[Any]:
                line = group(index)
                following = self._round(index, state + self._waiting(line))
                self._keep(following[len(state) :], line)
                return following[: len(state)]

            return e.loop(self.groups, state, columns)

        def end(index: Any, _: list[Any]) -> list[Any]:
            self._end(below, self._waiting(group(index)))
            return []

        below, *_ = e.loop(self.rows, self._state, row)
        with b.if_then(b.icmp_signed("!=", self.last, I64(0))):
            e.loop(self.groups, [], end)

    def _begin(self, first: Any) -> None:
        """Work out what depends on the columns alone."""
        e, b, stride = self.e, self.b, self.stride
        # Vectors are stored from where the map begins if windows are one apart; else from where the first one does.
        if stride == 1:
            self.start, self.column = b.add(first, self.before), first
        else:
            self.start, self.column = first, b.sub(e.times(first, stride), self.before)
        self._prepare_stores()
        self.mask = self._inside(self.start, self.windows)
        (self._prepare_codes if self.routed else self._prepare_factors)()

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
        self.some, self.stored = [], []
        whole = b.icmp_signed(">=", self.column, I64(0))
        for v in range(self.stride):
            column = e.at(self.column, v * e.lanes)
            self.some.append(b.icmp_signed("<", column, self.width))
            self.stored.append(self._inside(column, self.width))
        within = b.icmp_signed("<=", e.at(self.column, self.stride * e.lanes), self.width)
        # Up to this row of the map whole vectors may be stored.
        self.plain = b.select(whole, b.select(within, self.height, self.safe), I64(0))

    def _prepare_codes(self) -> None:
        """Make the index of the windows' first elements, but for their row, and find the windows before them."""
        e, b = self.e, self.b
        kind = ir.VectorType(self.integer, e.lanes)
        origin = b.sub(e.times(self.start, self.stride), self.before)
        lanes = ir.Constant(kind, [self.stride * lane for lane in range(e.lanes)])
        self.origin = b.add(e.splat(narrowed(e, origin)), lanes)
        # The windows before the first lane's, which send here too: what is added to an index, of a code that none has
        # if there is no such window.
        self.earlier = []
        for m in range(1, self.reach):
            window = b.sub(self.start, I64(m))
            real = b.icmp_unsigned("<", window, self.windows)
            at = b.select(real, window, I64(0))
            none = I64(-(2 ** (self.integer.width - 1)))
            base = b.select(real, b.sub(self.before, e.times(window, self.stride)), none)
            self.earlier.append((e.times(at, e.bytes), e.times(at, 8), base))

    def _prepare_factors(self) -> None:
        e, b = self.e, self.b
        self.masks = [self._inside(b.sub(self.start, I64(m)), self.windows) for m in range(self.reach)]
        windows = [b.sub(self.start, I64(m)) for m in range(self.reach)]
        self.places = [e.times(window, e.bytes) for window in windows]
        ones = [ir.Constant(e.vector, [1.0] * e.lanes)] * self.reach
        factors = [e.at(self.scales, e.times(window, self.wide.bytes)) for window in windows]
        pairs = list(zip(factors, self.masks, strict=True))
        self.factors = e.unless_zero(
            self.scales, ones, lambda _: [self.wide.load_masked(at, mask) for at, mask in pairs]
        )

    def _round(self, _: Any, state: list[Any]) -> list[Any]:
        """Do a row of windows, and store the rows that no later window reaches."""
        e, stride = self.e, self.stride
        row, y, indices, scale, *waiting = state
        rows = [waiting[r * stride : (r + 1) * stride] for r in range(self.open)]
        rows += [[None] * stride for _ in range(stride)]
        if self.routed:
            self._route(rows, y, indices, row)
        else:
            self._share(rows, y, self.wide.load_splat(scale))
        self._store(row, rows[:stride])
        following = [e.at(row, stride), e.at(y, self.yh), e.at(indices, self.jh), e.at(scale, self.wide.bytes)]
        return [*following, *(phase for kept in rows[stride:] for phase in kept)]

    def _route(self, rows: list[list[Any]], y: Any, indices: Any, row: Any) -> None:
        e, b = self.e, self.b
        value = e.load_masked(e.at(y, e.times(self.start, e.bytes)), self.mask)
        chosen = load_indices(e, e.at(indices, e.times(self.start, 8)), self.mask)
        begin = b.mul(row, self.width)
        code = b.sub(chosen, b.add(self.origin, e.splat(narrowed(e, begin))))
        windows = [(value, code)]
        for place, entry, base in self.earlier:
            index = b.add(e.load_integer(e.at(indices, entry)), b.sub(base, begin))
            pairs = (e.load_splat(e.at(y, place)), value), (e.splat(narrowed(e, index)), code)
            value, code = (pick(e, pair, range(e.lanes - 1, 2 * e.lanes - 1)) for pair in pairs)
            windows.append((value, code))
        for r in range(self.kernel):
            for c in range(self.kernel):
                value, code = windows[c // self.stride]
                old = rows[r][c % self.stride]
                # Added where it is the one, and not elsewhere: it may be infinite.
                new = value if old is None else b.fadd(old, value)
                here = b.icmp_signed("==", code, self.codes[r][c])
                rows[r][c % self.stride] = b.select(here, new, e.zero if old is None else old)

    def _share(self, rows: list[list[Any]], y: Any, scale: Any) -> None:
        e, b = self.e, self.b
        windows = [
            b.fmul(e.load_masked(e.at(y, at), mask), b.fmul(scale, factor))
            for at, mask, factor in zip(self.places, self.masks, self.factors, strict=True)
        ]
        for phase in range(self.stride):
            total = windows[0]
            for c in range(phase + self.stride, self.kernel, self.stride):
                total = b.fadd(total, windows[c // self.stride])
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
            with whole:
                # In the order of memory: what lies behind a row is the next one.
                for vectors, at in zip(result, targets, strict=True):
                    for v in range(self.stride):
                        with b.if_then(self.some[v], likely=True):
                            e.store(vectors[v], e.at(at, v * lanes * e.bytes))
            with part:
                for r, (vectors, at) in enumerate(zip(result, targets, strict=True)):
                    with b.if_then(b.icmp_unsigned("<", e.at(row, r), self.height)):
                        for v in range(self.stride):
                            with b.if_then(self.some[v]):
                                e.store_masked(vectors[v], e.at(at, v * lanes * e.bytes), self.stored[v])
