"""The micro-kernel of a matrix product: a few rows by a few vectors of sums, held in registers.

One operand is read a scalar a row, which is broadcast, the other whole vectors. Either may be the weight: rows are
output channels and lanes are pixels, or the other way round.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.pointwise.work import ROWS_ARE_CHANNELS, TURNED
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def _product(
    typingctx, rows, vectors, lanes, bits, fused, form, kept, apart,
    a, a_row, a_step, b, b_step, depth, y, step, count, bias, residual, activation, ahead, ahead_step, panel,
):  # fmt: skip
    """Compute ``rows`` by ``vectors * lanes`` sums of ``depth`` products.

    Literal integers: rows, vectors, lanes, bits (format of the output), fused (multiply-add exists), form (how to
    store), kept (0, or that the pixels are copied into a panel on the way: elements from a channel to the next there),
    apart (whether a product's scalars lie ``a_row`` bytes apart, and not side by side).

    Values: a (address), a_row, b (address; vectors side by side), a_step, b_step (bytes to the next product), depth
    (products), y, step (bytes between the rows of y, or, turned, its channels), count (lanes that exist), bias,
    residual (lies like y) and activation (addresses, 0 for none), ahead (address to prefetch from, some cache lines and
    ``ahead_step`` bytes further each product), panel (address).
    """
    given = (rows, vectors, lanes, bits, fused, form, kept, apart)
    shape = literals(*given)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _Tile(builder, *shape).emit(*args[len(shape) :])
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 15), codegen


class _Tile:
    """Emits one tile; sums are a list, row by row and vector by vector."""

    def __init__(
        self, builder: Any, rows: int, vectors: int, lanes: int, bits: int, fused: int, form: int, kept: int, apart: int
    ) -> None:
        # What is computed; and what bias, residual and output are in memory.
        self.outer = Emitter(builder, bits, lanes, bool(fused))
        self.e = self.outer.wide
        self.rows, self.vectors, self.form, self.kept, self.apart = rows, vectors, form, kept, apart
        self.width = lanes * self.e.bytes
        # A wide tile is of few output channels, of which no second block would ask for the rest of the next pixels.
        self.lines = max(2, vectors * self.width // LINE) if form == ROWS_ARE_CHANNELS else 2

    def emit(
        self, a: Any, a_row: Any, a_step: Any, b: Any, b_step: Any, depth: Any, y: Any, step: Any, count: Any,
        bias: Any, residual: Any, activation: Any, ahead: Any, ahead_step: Any, panel: Any,
    ) -> None:  # fmt: skip
        """Emit the whole tile. Only the last vector may have lanes that do not exist."""
        e = self.e
        self._await(y, step)
        last = e.builder.sub(count, I64((self.vectors - 1) * e.lanes))
        sums = self._start(bias, last)
        scalars = [e.times(a_row, r) if self.apart else I64(r * e.bytes) for r in range(self.rows)]
        sums = self._multiply(sums, (a, b, ahead), (a_step, b_step, ahead_step), depth, panel, scalars)
        is_whole = e.builder.icmp_signed(">=", last, I64(e.lanes))
        with e.builder.if_else(is_whole, likely=True) as (whole, part):
            with whole:
                self._finish(sums, y, step, None, residual, activation)
            with part:
                self._finish(sums, y, step, last, residual, activation)

    def _await(self, y: Any, step: Any) -> None:
        """Ask for what will be written: an output that is not in a cache would hold up the stores."""
        e = self.outer
        turned = self.form == TURNED
        count, length = (self.vectors * e.lanes, self.rows * e.bytes) if turned else (self.rows, 0)
        length = length or self.vectors * e.lanes * e.bytes
        for i in range(count):
            for offset in {*range(0, length, 64), length - e.bytes}:
                e.prefetch(e.at(y, e.times(step, i), offset), write=True)

    def _start(self, bias: Any, last: Any) -> list[Any]:
        e = self.outer

        def by_row(_: Any) -> list[Any]:
            return [e.load_splat(e.at(bias, r * e.bytes)) for r in range(self.rows)]

        def by_lane(_: Any) -> list[Any]:
            masks = [None] * (self.vectors - 1) + [e.first(last)]
            return [e.load_masked(e.at(bias, v * e.lanes * e.bytes), mask) for v, mask in enumerate(masks)]

        if self.form == ROWS_ARE_CHANNELS:
            start = e.unless_zero(bias, [e.zero] * self.rows, by_row)
            return [value for value in start for _ in range(self.vectors)]
        return e.unless_zero(bias, [e.zero] * self.vectors, by_lane) * self.rows

    def _multiply(
        self, sums: list[Any], starts: tuple[Any, ...], steps: tuple[Any, ...], depth: Any, panel: Any,
        scalars: list[Any],
    ) -> Any:  # fmt: skip
        e = self.e

        def term(_: Any, values: list[Any]) -> list[Any]:
            a, b, ahead, panel, *total = values
            for line in range(self.lines):
                e.prefetch(e.at(ahead, line * LINE), level=2)
            loaded = [e.load(e.at(b, v * self.width)) for v in range(self.vectors)]
            self._keep(a, loaded, panel)
            for r, scalar in enumerate(scalars):
                factor = e.load_splat(e.at(a, scalar))
                for v, value in enumerate(loaded):
                    total[r * self.vectors + v] = e.fma(factor, value, total[r * self.vectors + v])
            following = [e.at(at, step) for at, step in zip((a, b, ahead), steps, strict=True)]
            return [*following, e.at(panel, self.kept * e.bytes), *total]

        return e.loop(depth, [*starts, panel, *sums], term)[4:]

    def _keep(self, a: Any, loaded: list[Any], panel: Any) -> None:
        """Copy the pixels of a product into the panel, by whole vectors: what is too much is written over later."""
        e = self.e
        if not self.kept:
            return
        if self.form != ROWS_ARE_CHANNELS:
            counts = [min(e.lanes, self.rows - first) for first in range(0, self.rows, e.lanes)]
            masks = [None if count == e.lanes else e.first(count) for count in counts]
            loaded = [e.load_masked(e.at(a, i * self.width), mask) for i, mask in enumerate(masks)]
        for i, vector in enumerate(loaded):
            e.store(vector, e.at(panel, i * self.width))

    def _finish(self, sums: list[Any], y: Any, step: Any, last: Any, residual: Any, activation: Any) -> None:
        e = self.e
        turned = self.form == TURNED
        load, store = (self._load_turned, self._store_turned) if turned else (self._load, self._store)

        def add(values: list[Any]) -> list[Any]:
            return [e.builder.fadd(u, v) for u, v in zip(values, load(residual, step, last), strict=True)]

        sums = e.unless_zero(residual, sums, add)
        sums = e.unless_zero(activation, sums, lambda s: activate(e, s, activation))
        store(sums, y, step, last)

    # ----------------------------------------------------------------------- an array whose lanes lie side by side

    def _places(self, y: Any, step: Any, last: Any) -> list[tuple[Any, Any]]:
        """Return the address and the mask of every vector."""
        e = self.outer
        masks = [None] * (self.vectors - 1) + [None if last is None else e.first(last)]
        return [
            (e.at(y, e.times(step, r), v * e.lanes * e.bytes), mask)
            for r in range(self.rows)
            for v, mask in enumerate(masks)
        ]

    def _load(self, y: Any, step: Any, last: Any) -> list[Any]:
        return [self.outer.load_masked(address, mask) for address, mask in self._places(y, step, last)]

    def _store(self, sums: list[Any], y: Any, step: Any, last: Any) -> None:
        for value, (address, mask) in zip(sums, self._places(y, step, last), strict=True):
            self.outer.store_masked(value, address, mask)

    # ------------------------------------------------------------------------ an array whose rows lie side by side

    def _squares(self) -> list[tuple[int, int, int]]:
        """Return (vector, first row, rows) of what is transposed at once."""
        lanes = self.e.lanes
        starts = range(0, self.rows, lanes)
        return [(v, first, min(lanes, self.rows - first)) for v in range(self.vectors) for first in starts]

    def _load_turned(self, y: Any, step: Any, last: Any) -> list[Any]:
        e = self.outer
        result: list[Any] = [None] * (self.rows * self.vectors)
        for v, first, count in self._squares():
            mask = None if count == e.lanes else e.first(count)

            def column(lane: int, v: int = v, first: int = first, mask: Any = mask) -> Any:
                def load(_: Any = None) -> list[Any]:
                    k = v * e.lanes + lane
                    return [e.load_masked(e.at(y, e.times(step, k), first * e.bytes), mask)]

                if last is None or v < self.vectors - 1:
                    return load()[0]
                exists = e.builder.zext(e.builder.icmp_signed("<", I64(lane), last), I64)
                return e.unless_zero(exists, [e.zero], load)[0]

            turned = e.transpose([column(lane) for lane in range(e.lanes)])
            for r in range(count):
                result[(first + r) * self.vectors + v] = turned[r]
        return result

    def _store_turned(self, sums: list[Any], y: Any, step: Any, last: Any) -> None:
        e = self.outer
        for v, first, count in self._squares():
            square = [sums[(first + r) * self.vectors + v] for r in range(count)]
            turned = e.transpose(square + [e.zero] * (e.lanes - count))
            for lane, vector in enumerate(turned):
                address = e.at(y, e.times(step, v * e.lanes + lane), first * e.bytes)
                if last is None or v < self.vectors - 1:
                    self._store_first(vector, address, count)
                    continue
                with e.builder.if_then(e.builder.icmp_signed("<", I64(lane), last)):
                    self._store_first(vector, address, count)

    def _store_first(self, vector: Any, address: Any, count: int) -> None:
        """Store the first elements of a vector: by a mask where masks are registers, else in halves."""
        e = self.outer
        if count == e.lanes or self.width == 64:
            e.store_masked(vector, address, None if count == e.lanes else e.first(count))
            return
        done = 0
        while done < count:
            size = 1 << ((count - done).bit_length() - 1)
            e.store_part(vector, address, done, size)
            done += size


@cache
def tile(rows: int, vectors: int, lanes: int, bits: int, fused: int, form: int, kept: int, apart: int) -> Any:
    """Return the compiled tile; its arguments are those of `_product` that are no literals."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 15))
    def run(a, a_row, a_step, b, b_step, depth, y, step, count, bias, residual, activation, ahead, ahead_step, panel):
        if sources == 0:
            return
        _product(
            rows, vectors, lanes, bits, fused, form, kept, apart,
            a, a_row, a_step, b, b_step, depth, y, step, count, bias, residual, activation, ahead, ahead_step, panel,
        )  # fmt: skip

    return run
