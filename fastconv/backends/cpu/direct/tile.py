"""The micro-kernel of direct convolution: output pixels times output channels, summed in registers.

Lanes are output channels. For every kernel position and input channel a few weight vectors are loaded and
each pixel's input value is broadcast against them, so stride, dilation and memory order are only addresses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Pixels that are addressed from one pointer where only the run knows how far apart they are: an instruction can add
# one and two times a stride, and a third register holds three.
_REACH = 4

# Stores of the channels of a vector that stand one behind the other: more of them, which only maps of a few columns
# need, take longer to compile than the loop that is in their place takes to run.
_MOST_STORES = 32

# What lies side by side in the output: pixels of a row; channels of a pixel; pixels of whole rows, one row behind the
# other, where tiles are as wide as these.
ROWS, CHANNELS, PLANES = range(3)

# How far ahead weights are asked for, in bytes: a page, beyond which no processor looks by itself.
_AHEAD = 4096


@intrinsic(prefer_literal=True)
def _conv_tiles(
    typingctx, rows, cols, vectors, lanes, bits, fused, order, partial, term, pixel, values,
):  # fmt: skip
    """Compute ``height x width`` pixels, in tiles of ``rows x cols``, by ``vectors * lanes`` output channels.

    Literal integers: rows, cols, vectors, lanes, bits (format of the output), fused (multiply-add exists),
    order (of the output: `ROWS`, `CHANNELS` or `PLANES`), partial (``nk`` may be below ``vectors * lanes``), and term
    and pixel (what ``xt`` and ``xq`` are, 0 if these alone say so).

    A tuple, since of more than thirty arguments Python makes a list, and Numba forgets that some were literals: values,
    addresses and strides in bytes: height, width, x (of the first pixel), xt, xr, xq (term of a run, row,
    column), runs (address of nruns offsets into x), nruns, run (terms of each), w (packed: run, term, lane), y, yk, yr,
    yq (output channel, row, column), nk (channels to store), bias, residual (strides of y), activation (slope below
    zero, floor, cap), resumed (sums to go on from, instead of the bias), kept (where to leave the sums, instead of in
    y), those of the first tile, which others' follow; the last five are 0 for none.
    """
    given = (rows, cols, vectors, lanes, bits, fused, order, partial, term, pixel)
    shape = literals(*given)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile = _Tile(builder, *shape)
        tile.emit_all(*cgutils.unpack_tuple(builder, args[-1]))
        return context.get_dummy_value()

    return types.void(*given, types.UniTuple(types.int64, 20)), codegen


class _Tile:
    """Emits one tile."""

    def __init__(
        self,
        builder: Any,
        rows: int,
        cols: int,
        vectors: int,
        lanes: int,
        bits: int,
        fused: int,
        order: int,
        partial: int,
        term: int,
        pixel: int,
    ) -> None:
        # What is computed; and what bias, residual and output are in memory.
        self.outer = Emitter(builder, bits, lanes, bool(fused))
        self.e = self.outer.wide
        self.rows, self.cols, self.vectors = rows, cols, vectors
        self.order, self.is_partial = order, bool(partial)
        self.pixels = [(r, q) for r in range(rows) for q in range(cols)]
        self.width = lanes * self.e.bytes
        self.term, self.pixel = term, pixel

    def emit_all(
        self, height: Any, width: Any, x: Any, xt: Any, xr: Any, xq: Any, runs: Any, nruns: Any, run: Any, w: Any,
        y: Any, yk: Any, yr: Any, yq: Any, nk: Any, bias: Any, residual: Any, activation: Any, resumed: Any, kept: Any,
    ) -> None:  # fmt: skip
        """Emit the loops over the tiles.

        The last row and column of tiles overlap the ones before: what is computed twice comes out the same.
        """
        e, b = self.e, self.e.builder
        sums_bytes = len(self.pixels) * self.vectors * self.width

        def if_any(address: Any, offset: Any) -> Any:
            return b.select(b.icmp_signed("!=", address, I64(0)), e.at(address, offset), I64(0))

        def one_row(r: Any, sums: list[Any]) -> list[Any]:
            row = e.smaller(e.times(r, self.rows), e.at(height, -self.rows))

            def one_tile(q: Any, sums: list[Any]) -> list[Any]:
                resumed, kept = sums
                col = e.smaller(e.times(q, self.cols), e.at(width, -self.cols))
                at = e.at(b.mul(row, yr), b.mul(col, yq))
                self._emit(
                    e.at(x, b.mul(row, xr), b.mul(col, xq)), xt, xr, xq, runs, nruns, run, w,
                    e.at(y, at), yk, yr, yq, nk, bias, if_any(residual, at), activation, resumed, kept,
                )  # fmt: skip
                return [if_any(address, sums_bytes) for address in sums]

            return e.loop(self._rounds(width, self.cols), sums, one_tile)

        e.loop(self._rounds(height, self.rows), [resumed, kept], one_row)

    def _rounds(self, size: Any, step: int) -> Any:
        return self.e.builder.udiv(self.e.at(size, step - 1), I64(step))

    def _emit(
        self, x: Any, xt: Any, xr: Any, xq: Any, runs: Any, nruns: Any, run: Any, w: Any,
        y: Any, yk: Any, yr: Any, yq: Any, nk: Any, bias: Any, residual: Any, activation: Any, resumed: Any, kept: Any,
    ) -> None:  # fmt: skip
        """Emit one tile; sums are a list, pixel by pixel and vector by vector."""
        e, strides = self.e, (yk, yr, yq, nk)
        is_last = e.builder.icmp_signed("==", kept, I64(0))
        with e.builder.if_then(e.builder.and_(is_last, e.builder.icmp_signed("!=", residual, I64(0)))):
            self._await(residual, *strides)
        sums = self._start(bias, nk)
        places = [i * self.width for i in range(len(sums))]
        sums = e.unless_zero(resumed, sums, lambda _: [e.load(e.at(resumed, place)) for place in places])
        sums = self._multiply(sums, x, xt, xr, xq, runs, nruns, run, w)
        with e.builder.if_else(is_last, likely=True) as (finish, keep):
            with finish:
                self._finish(sums, y, residual, activation, *strides)
            with keep:
                for value, place in zip(sums, places, strict=True):
                    e.store(value, e.at(kept, place))

    def _start(self, bias: Any, nk: Any) -> list[Any]:
        e = self.outer

        def load(_: Any) -> list[Any]:
            places = [e.at(bias, v * e.lanes * e.bytes) for v in range(self.vectors)]
            loaded = [e.load_masked(place, self._vector_mask(v, nk)) for v, place in enumerate(places)]
            # A bias of -0 becomes 0, or its sign would say whether padding was added to it.
            return self._add(loaded, [e.zero] * self.vectors)

        return e.unless_zero(bias, [e.zero] * self.vectors, load) * len(self.pixels)

    def _multiply(
        self, sums: list[Any], x: Any, xt: Any, xr: Any, xq: Any, runs: Any, nruns: Any, run: Any, w: Any
    ) -> list[Any]:
        e = self.e
        xt = I64(self.term) if self.term else xt
        next_tile = self._next_tile(xq)

        # The loops stay loops, since unrolled they make LLVM spill the sums.
        def one_run(index: Any, values: list[Any]) -> list[Any]:
            source = e.at(x, e.load_integer(e.at(runs, e.times(index, 8))))
            return e.loop(run, [source, *values], term)[1:]

        def term(_: Any, values: list[Any]) -> list[Any]:
            source, weight, *total = values
            # The next tile's pixels: what lies a channel apart no processor foresees.
            for line in next_tile:
                e.prefetch(e.at(source, line))
            if self.width == LINE:  # narrower vectors leave no time for it, and need weights less often
                for v in range(self.vectors):
                    e.prefetch(e.at(weight, _AHEAD + v * LINE))
            factors = [e.load(e.at(weight, v * self.width)) for v in range(self.vectors)]
            for p, place in enumerate(self._places(source, xr, xq)):
                value = e.load_splat(place)
                for v, factor in enumerate(factors):
                    i = p * self.vectors + v
                    total[i] = e.fma(value, factor, total[i])
            return [e.at(source, xt), e.at(weight, self.vectors * self.width), *total]

        return e.loop(nruns, [w, *sums], one_run)[1:]

    def _next_tile(self, xq: Any) -> list[Any]:
        """Return how far the lines of the cache lie that the next tile reads, from its last pixel on; one if apart."""
        if not self.pixel:
            return [self.e.times(xq, 2 * self.cols - 1)]
        lines = -(-self.cols * self.pixel // LINE) if self.pixel < LINE else 1
        return [I64(self.pixel * (2 * self.cols - 1) - LINE * line) for line in range(lines)]

    def _places(self, source: Any, xr: Any, xq: Any) -> list[Any]:
        """Return the addresses of the pixels' values."""
        e = self.e
        if self.pixel:
            return [e.at(source, e.times(xr, r), q * self.pixel) for r, q in self.pixels]
        places: list[Any] = []
        for r, q in self.pixels:
            # Each pointer is a value of its own. LLVM would make all addresses one chain of additions, round after
            # round, which takes longer than the products.
            if q % _REACH == 0:
                near = e.opaque(e.at(places[-_REACH], e.times(xq, _REACH)) if q else e.at(source, e.times(xr, r)))
            places.append(e.at(near, e.times(xq, q % _REACH)))
        return places

    def _add(self, a: list[Any], b: list[Any]) -> list[Any]:
        return [self.e.builder.fadd(u, v) for u, v in zip(a, b, strict=True)]

    def _vector_mask(self, v: int, nk: Any) -> Any:
        if not self.is_partial:
            return None
        return self.e.first(self.e.builder.sub(nk, I64(v * self.e.lanes)))

    def _await(self, residual: Any, yk: Any, yr: Any, yq: Any, nk: Any) -> None:
        """Ask for what a tile is added to at its end: pieces that lie apart, which no processor foresees."""
        e = self.outer
        if self.order == CHANNELS:
            for r, q in self.pixels:
                for offset in range(0, self.vectors * e.lanes * e.bytes, LINE):
                    e.prefetch(e.at(residual, e.times(yr, r), e.times(yq, q), offset))
            return
        rows, cols = (1, len(self.pixels)) if self.order == PLANES else (self.rows, self.cols)

        def channel(k: Any, _: Any) -> list[Any]:
            e.rolled()
            line = e.at(residual, e.builder.mul(yk, k))
            for r in range(rows):
                for q in {0, cols - 1}:
                    e.prefetch(e.at(line, e.times(yr, r), q * e.bytes))
            return []

        e.loop(e.smaller(nk, I64(self.vectors * e.lanes)), [], channel)

    def _finish(
        self, sums: list[Any], y: Any, residual: Any, activation: Any, yk: Any, yr: Any, yq: Any, nk: Any
    ) -> None:
        """Add the residual, apply the activation, and store."""
        e, b = self.outer, self.e.builder
        alone = b.select(b.icmp_signed("!=", residual, I64(0)), I64(0), activation)
        sums = e.unless_zero(alone, sums, lambda s: activate(self.e, s, activation))
        if self.order == CHANNELS:
            self._finish_pixels(sums, y, residual, activation, yr, yq, nk)
            return
        # Pixels lie side by side: channels become vectors, which take the residual as it lies.
        for v in range(self.vectors):
            for first, block in self._squares():
                square = [sums[p * self.vectors + v] for p in block]
                turned = e.transpose(square + [e.zero] * (e.lanes - len(square)))
                if e.lanes * len(self._runs(first)) > _MOST_STORES:
                    self._finish_each(turned, y, residual, activation, yk, yr, nk, v, first)
                    continue
                channels = [(k, e.times(yk, k)) for k in range(v * e.lanes, (v + 1) * e.lanes)]

                def added(first: int = first, channels: Any = channels) -> list[Any]:
                    return [self._load_pixels(e.at(residual, at), yr, first, self._exists(k, nk)) for k, at in channels]

                turned = self._ended(turned, residual, activation, added)
                for vector, (k, at) in zip(turned, channels, strict=True):
                    self._when_channel(k, nk, functools.partial(self._store_pixels, vector, e.at(y, at), yr, first))

    def _ended(self, values: list[Any], residual: Any, activation: Any, added: Callable[[], list[Any]]) -> list[Any]:
        """Return values with the residual, where there is one, and what was left to be done behind it."""

        def end(values: list[Any]) -> list[Any]:
            return self.e.unless_zero(
                activation, self._add(values, added()), lambda sums: activate(self.e, sums, activation)
            )

        return self.e.unless_zero(residual, values, end)

    def _finish_pixels(
        self, sums: list[Any], y: Any, residual: Any, activation: Any, yr: Any, yq: Any, nk: Any
    ) -> None:
        """Finish a tile of which each pixel's channels lie side by side."""
        e = self.outer
        masks = [self._vector_mask(v, nk) for v in range(self.vectors)] * len(self.pixels)
        offsets = [
            e.at(e.times(yr, r), e.times(yq, q), v * e.lanes * e.bytes)
            for r, q in self.pixels
            for v in range(self.vectors)
        ]

        def added() -> list[Any]:
            return [e.load_masked(e.at(residual, at), mask) for at, mask in zip(offsets, masks, strict=True)]

        for value, at, mask in zip(self._ended(sums, residual, activation, added), offsets, masks, strict=True):
            e.store_masked(value, e.at(y, at), mask)

    def _finish_each(
        self, turned: list[Any], y: Any, residual: Any, activation: Any, yk: Any, yr: Any, nk: Any, v: int, first: int
    ) -> None:
        """Finish the channels of a vector in a loop."""
        e = self.outer
        room = e.wide.room(e.lanes)
        for i, vector in enumerate(turned):
            e.wide.store(vector, e.at(room, i * self.width))

        def finish(k: Any, _: Any) -> list[Any]:
            e.rolled()
            at = e.builder.mul(yk, e.at(k, v * e.lanes))
            values = [e.wide.load(e.at(room, e.times(k, self.width)))]
            (vector,) = self._ended(
                values, residual, activation, lambda: [self._load_pixels(e.at(residual, at), yr, first)]
            )
            self._store_pixels(vector, e.at(y, at), yr, first)
            return []

        e.loop(self._channels(v, nk), [], finish)

    def _channels(self, v: int, nk: Any) -> Any:
        """Return how many channels there are in a vector, at least one, for a loop that is to stay one."""
        lanes = I64(self.e.lanes)
        return self.e.opaque(self.e.smaller(self.e.at(nk, -v * self.e.lanes), lanes) if self.is_partial else lanes)

    def _squares(self) -> list[tuple[int, range]]:
        """Return the pixels in groups of as many as there are lanes: what is transposed at once."""
        count = len(self.pixels)
        return [(first, range(first, min(first + self.e.lanes, count))) for first in range(0, count, self.e.lanes)]

    def _runs(self, first: int) -> list[tuple[int, int, int, int]]:
        """Return (row, column, lane, length) of the runs of pixels side by side that a group is made of."""
        if self.order == PLANES:
            return [(0, first, 0, min(self.e.lanes, len(self.pixels) - first))]
        runs = []
        for r in range(self.rows):
            low = max(first, r * self.cols)
            high = min(first + self.e.lanes, (r + 1) * self.cols)
            if low < high:
                runs.append((r, low - r * self.cols, low - first, high - low))
        return runs

    def _exists(self, k: int, nk: Any) -> Any:
        """Return whether there is a channel; None where all are."""
        return self.e.builder.icmp_signed("<", I64(k), nk) if self.is_partial else None

    def _when_channel(self, k: int, nk: Any, action: Any) -> None:
        exists = self._exists(k, nk)
        if exists is None:
            action()
            return
        with self.e.builder.if_then(exists):
            action()

    def _load_pixels(self, channel: Any, yr: Any, first: int, exists: Any = None) -> Any:
        """Load the pixels of a channel, zeros where there is none."""
        e, lanes = self.outer, self.e.lanes
        result = e.zero
        for r, q, lane, length in self._runs(first):
            address = e.at(channel, e.times(yr, r), q * e.bytes)
            mask = e.first(length) if length < lanes or exists is not None else None
            if exists is not None:
                mask = e.builder.select(exists, mask, e.first(0))
            piece = e.load_masked(address, mask)
            order = [lanes + i - lane if lane <= i < lane + length else i for i in range(lanes)]
            result = piece if length == lanes else e.shuffle(result, piece, order)
        return result

    def _store_pixels(self, vector: Any, channel: Any, yr: Any, first: int) -> None:
        e, lanes = self.outer, self.e.lanes
        for r, q, lane, length in self._runs(first):
            address = e.at(channel, e.times(yr, r), q * e.bytes)
            piece = e.shuffle(vector, vector, [(i + lane) % lanes for i in range(lanes)]) if lane else vector
            e.store_masked(piece, address, e.first(length) if length < lanes else None)


@functools.cache
def tiles(
    rows: int,
    cols: int,
    vectors: int,
    lanes: int,
    bits: int,
    fused: int,
    order: int,
    partial: int,
    term: int,
    pixel: int,
) -> Any:
    """Return compiled loops over the tiles of a band, with the values of `_conv_tiles`."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 20))
    def run(
        height, width, x, xt, xr, xq, runs, nruns, run, w, y, yk, yr, yq, nk, bias, residual, activation, resumed, kept,
    ):  # fmt: skip
        if sources == 0:
            return
        _conv_tiles(
            rows, cols, vectors, lanes, bits, fused, order, partial, term, pixel,
            (height, width, x, xt, xr, xq, runs, nruns, run, w, y, yk, yr, yq, nk, bias, residual, activation,
             resumed, kept),
        )  # fmt: skip

    return run
