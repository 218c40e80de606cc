"""The micro-kernel of gradients of averages and norms whose windows differ, or are longer than there are loops for.

As `fastconv.backends.cpu.pool.picks` the other way round: what the windows of some rows send is summed in vectors, and
every element of the gradient picks from these the windows that read its column. Rows that the same windows read are
alike, and computed once.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.permuting import permuted
from fastconv.backends.cpu.pool.cover import FIRST, received, sent
from fastconv.backends.cpu.pool.indices import index_type
from fastconv.backends.cpu.pool.reduction import if_any
from fastconv.backends.cpu.simd import Emitter, literals

# Words of an entry of the table of rows.
ENTRY = 4


@intrinsic(prefer_literal=True)
def share_rows(
    typingctx, norm, vectors, few, fused, lanes, format,
    dy, nd, yd, yh, windows, alike, entries, scale, scale_d, scales, roots, powers,
    firsts, places, counts, taps, x, dx, xh, width,
):  # fmt: skip
    """Compute rows of the gradient.

    Literal integers: norm, vectors (of windows that a vector of elements picks from, a power of two), few (``taps`` if
    these are few, otherwise 0), fused (multiply-add exists), lanes, format (of an element).

    Values, addresses and strides in bytes: dy (of the first row of windows), nd and yd (how many depths, how far
    apart), yh (from row to row), windows (of a row), alike (a table of rows that the same windows read: the first,
    how many, the first row of windows and how many of these), entries (of it), scale and scale_d, scales, roots and
    powers (as `weigh_rows` takes them), firsts, places and counts (the table `windows.picks`, the latter two as wide as
    what is computed), taps (the most windows that read an element), x (elements that the pool has read), dx, xh (from
    row to row of both), width (of them).
    """
    given = (norm, vectors, few, fused, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    which, nvectors, nfew, has_fma, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, element, nlanes, bool(has_fma))
        _Shares(e, which, nvectors, nfew, args[len(known) :]).emit()
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 20), codegen


class _Shares:
    """Emits `share_rows`."""

    def __init__(self, e: Emitter, norm: int, vectors: int, few: int, args: Any) -> None:
        self.e, self.b, self.norm, self.vectors, self.few = e, e.builder, norm, vectors, few
        self.dy, self.nd, self.yd, self.yh, self.windows, self.alike, self.entries = args[:7]
        self.scale, self.scale_d, self.scales, self.roots, self.powers = args[7:12]
        self.firsts, self.places, self.counts, self.taps, self.x, self.dx, self.xh, self.width = args[12:]
        self.integers = ir.VectorType(index_type(e), e.lanes)

    def emit(self) -> None:
        e, b = self.e, self.b
        groups = b.sdiv(e.at(self.width, e.lanes - 1), ir.IntType(64)(e.lanes))

        def entry(index: Any, _: list[Any]) -> list[Any]:
            at = e.at(self.alike, e.times(index, 8 * ENTRY))
            rows = [e.load_integer(e.at(at, 8 * i)) for i in range(ENTRY)]
            e.loop(groups, [], lambda group, _: self._group(group, *rows))
            return []

        if_any(e, self.entries, [], entry)

    def _group(self, group: Any, row: Any, rows: Any, window: Any, windows: Any) -> list[Any]:
        """Do a vector of columns in rows that are alike."""
        e, b = self.e, self.b
        total = self._picked(group, self._line(e.load_integer(e.at(self.firsts, e.times(group, 8))), window, windows))
        column = e.times(group, e.lanes)
        place = e.at(b.mul(row, self.xh), e.times(column, e.bytes))
        left = b.sub(self.width, column)

        def store(mask: Any) -> None:
            def one(_: Any, at: list[Any]) -> list[Any]:
                value = total
                if self.norm > FIRST:
                    value = received(e, self.norm, total, e.load_masked(e.at(self.x, at[0]), mask), self.powers)
                e.store_masked(value, e.at(self.dx, at[0]), mask)
                return [b.add(at[0], self.xh)]

            e.loop(rows, [place], one)

        with b.if_else(b.icmp_signed(">=", left, left.type(e.lanes)), likely=True) as (whole, part):
            with whole:
                store(None)
            with part:
                store(e.first(left))
        return []

    def _line(self, first: Any, window: Any, windows: Any) -> list[Any]:
        """Return what windows from one on send: the sums of their rows."""
        e, b, wide = self.e, self.b, self.e.wide
        left = b.sub(self.windows, first)
        masks = [e.first(e.at(left, -v * e.lanes)) for v in range(self.vectors)]

        def row(d: Any, h: Any, sums: list[Any]) -> list[Any]:
            at = e.at(b.mul(d, self.yd), b.mul(e.at(window, h), self.yh), e.times(first, e.bytes))
            factor = e.at(self.scale, b.mul(d, self.scale_d), e.times(e.at(window, h), wide.bytes))
            factor, result = wide.load_splat(factor), []
            for v, (total, mask) in enumerate(zip(sums, masks, strict=True)):
                place = e.at(at, v * e.lanes * e.bytes)
                value = e.load_masked(e.at(self.dy, place), mask)
                if self.norm:
                    value = sent(e, self.norm, value, e.load_masked(e.at(self.roots, place), mask), self.powers)
                result.append(e.fma(value, factor, total))
            return result

        sums = if_any(
            e, self.nd, [e.zero] * self.vectors, lambda d, s: if_any(e, windows, s, lambda h, s: row(d, h, s))
        )
        columns = e.at(self.scales, e.times(first, wide.bytes))

        def weighed(sums: list[Any]) -> list[Any]:
            at = [e.at(columns, v * e.lanes * wide.bytes) for v in range(self.vectors)]
            factors = [wide.load_masked(place, mask) for place, mask in zip(at, masks, strict=True)]
            return [b.fmul(total, factor) for total, factor in zip(sums, factors, strict=True)]

        return e.unless_zero(self.scales, sums, weighed)

    def _picked(self, group: Any, line: list[Any]) -> Any:
        """Return the sums over the windows that read each column."""
        e, b = self.e, self.b
        at = e.times(group, e.lanes * e.wide.bytes)
        one, none = (ir.Constant(self.integers, [value] * e.lanes) for value in (1, 0))

        def tap(_: Any, carried: list[Any]) -> list[Any]:
            place, left, total = carried
            term = b.select(b.icmp_signed(">", left, none), permuted(e.wide, line, place), e.zero)
            return [b.add(place, one), b.sub(left, one), b.fadd(total, term)]

        state = [self._integers(e.at(self.places, at)), self._integers(e.at(self.counts, at)), e.zero]
        if not self.few:
            return e.loop(self.taps, state, tap)[2]
        for _ in range(self.few):
            state = tap(None, state)
        return state[2]

    def _integers(self, address: Any) -> Any:
        loaded = self.b.load(self.b.inttoptr(address, self.integers.as_pointer()))
        loaded.align = self.e.wide.bytes
        return loaded
