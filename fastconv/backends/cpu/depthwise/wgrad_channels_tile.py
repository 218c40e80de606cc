"""The micro-kernel of the depthwise weight gradient on channels-last maps: sums of kernel rows, a vector each.

Each element that the windows of a few neighbouring outputs read is loaded once, and multiplied with the gradients of
all of them that read it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.simd import I64, Emitter, literals

# The values that a tile is given, in order.
_VALUES = "x xr xw top bottom left right apart spread y yw blocks channels sums step zeros"


@intrinsic(prefer_literal=True)
def _tile(typingctx, rows, cols, columns, stride, dilation, lanes, bits, fused, values):
    """Add what ``cols`` outputs give to ``rows`` rows of ``columns`` kernel positions.

    Literal integers: rows, cols, columns, stride and dilation (input columns from one output and from one kernel
    position to the next; 0 for what ``apart`` and ``spread`` say), lanes, bits (of an element), fused (multiply-add
    exists).

    A tuple of values, addresses and strides in bytes: x (of the first output's first kernel position), xr, xw (kernel
    row, input column); top, bottom (the kernel rows between have input), left, right (the input columns between, from
    that of x); apart, spread (input columns from one output to the next, from one kernel position to the next); y (the
    first output's gradient), yw (output column); blocks (vectors of channels), channels (that there are), sums (of the
    first vector: a vector for each kernel position), step (from one vector's to the next), zeros (as many as channels).
    """
    given = (rows, cols, columns, stride, dilation, lanes, bits, fused)
    known = literals(*given)
    if known is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_VALUES.split(), cgutils.unpack_tuple(builder, args[-1]), strict=True))
        rows, cols, columns, stride, dilation, lanes, bits, fused = known
        _emit(Emitter(builder, bits, lanes, bool(fused)), rows, cols, columns, stride, dilation, v)
        return context.get_dummy_value()

    return types.void(*given, types.UniTuple(types.int64, len(_VALUES.split()))), codegen


def _emit(e: Emitter, rows: int, cols: int, columns: int, stride: int, dilation: int, v: dict[str, Any]) -> None:
    b, width = e.builder, e.lanes * e.bytes
    # The products of each input column, from left to right: which output's gradient, for which kernel position.
    products: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for q in range(cols):
        for s in range(columns):
            products[q * stride + s * dilation if stride else (q, s)].append((q, s))
    if stride:
        places = {key: I64(key) for key in products}
    else:
        places = {(q, s): e.at(e.times(v["apart"], q), e.times(v["spread"], s)) for q, s in products}
    starts = [e.at(v["x"], e.times(v["xr"], r)) for r in range(rows)]
    offsets = {key: b.mul(v["xw"], place) for key, place in places.items()}
    gradients = [e.at(v["y"], e.times(v["yw"], q)) for q in range(cols)]
    has_rows = [_between(e, v["top"], I64(r), v["bottom"]) for r in range(rows)]
    has_columns = {key: _between(e, v["left"], place, v["right"]) for key, place in places.items()}

    def block(at: Any, sums: Any, is_edge: bool) -> None:
        mask = e.first(b.sub(v["channels"], b.sdiv(at, I64(e.bytes)))) if is_edge else None
        loaded = [e.load_masked(e.at(gradient, at), mask) for gradient in gradients]
        cells = [e.at(sums, i * width) for i in range(rows * columns)]
        totals = [e.load(cell) for cell in cells]
        for key, pairs in products.items():
            for r in range(rows):
                address = e.at(starts[r], offsets[key])
                if is_edge:
                    address = b.select(b.and_(has_rows[r], has_columns[key]), address, v["zeros"])
                value = e.load_masked(e.at(address, at), mask)
                for q, s in pairs:
                    i = r * columns + s
                    totals[i] = e.fma(value, loaded[q], totals[i])
        for total, cell in zip(totals, cells, strict=True):
            e.store(total, cell)

    def blocks(is_edge: bool) -> None:
        def one(index: Any, values: list[Any]) -> list[Any]:
            at, sums = values
            block(at, sums, is_edge)
            return [e.at(at, width), e.at(sums, v["step"])]

        e.loop(v["blocks"], [I64(0), v["sums"]], one)

    # The last column that is read is that of the last output and kernel position.
    far = places[(cols - 1) * stride + (columns - 1) * dilation] if stride else places[cols - 1, columns - 1]
    inner = [
        b.icmp_signed("<=", v["top"], I64(0)), b.icmp_signed(">=", v["bottom"], I64(rows)),
        b.icmp_signed("<=", v["left"], I64(0)), b.icmp_signed(">", v["right"], far),
        b.icmp_signed(">=", v["channels"], e.times(v["blocks"], e.lanes)),
    ]  # fmt: skip
    whole = inner[0]
    for condition in inner[1:]:
        whole = b.and_(whole, condition)
    with b.if_else(whole, likely=True) as (inside, edge):
        with inside:
            blocks(False)
        with edge:
            blocks(True)


def _between(e: Emitter, first: Any, value: Any, end: Any) -> Any:
    return e.builder.and_(e.builder.icmp_signed("<=", first, value), e.builder.icmp_signed("<", value, end))


@cache
def tile(rows: int, cols: int, columns: int, stride: int, dilation: int, lanes: int, bits: int, fused: int) -> Any:
    """Return a compiled tile, which is given the values of `_tile` one by one."""
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 16))
    def run(x, xr, xw, top, bottom, left, right, apart, spread, y, yw, blocks, channels, sums, step, zeros):
        if sources == 0:
            return
        _tile(
            rows, cols, columns, stride, dilation, lanes, bits, fused,
            (x, xr, xw, top, bottom, left, right, apart, spread, y, yw, blocks, channels, sums, step, zeros),
        )  # fmt: skip

    return run
