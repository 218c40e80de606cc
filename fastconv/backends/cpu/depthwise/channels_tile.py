"""The micro-kernel of depthwise convolution with channels in the lanes: neighbouring outputs of a few rows, a sum each.

Each element that the windows of these outputs read is loaded once, and multiplied for all that read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from functools import cache, reduce
from itertools import product
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.depthwise.tile import in_order
from fastconv.backends.cpu.simd import I64, Emitter, literals

# The values that a tile is given, in order.
_VALUES = """
    x xd xr xw depths front back groups top bottom left right apart spread y yr yw w wblock blocks rest bias residual
    activation zeros
"""
_NAMES = tuple(_VALUES.split())


class Form(NamedTuple):
    """What a tile is compiled for.

    Attributes
    ----------
    rows, cols : int
        Output rows and columns.
    height, kernel : int
        Kernel rows that are done together, and kernel columns.
    down : int
        Input rows from one output row to the next.
    stride, dilation : int
        Input columns from one output and from one kernel position to the next; 0 for what ``apart`` and ``spread`` say.
    looped : int
        Whether there are kernel depths, or kernel rows beside those that are done together.
    partial : int
        Whether the last channels may be less than a vector.
    """

    rows: int
    cols: int
    height: int
    kernel: int
    down: int
    stride: int
    dilation: int
    looped: int
    partial: int


class Columns(NamedTuple):
    """The input columns that a tile's windows read, each once.

    Attributes
    ----------
    products : dict
        By column, from left to right, the pairs of an output and a kernel position that it is read for.
    places : dict
        How many columns it is from that of the first output's first kernel position.
    last : integer value
        How far the last one is.
    """

    products: dict[Hashable, list[tuple[int, int]]]
    places: dict[Hashable, Any]
    last: Any


def columns_read(e: Emitter, cols: int, kernel: int, stride: int, dilation: int, apart: Any, spread: Any) -> Columns:
    """Return what ``cols`` outputs read of a row; stride and dilation of 0 are what ``apart`` and ``spread`` say."""
    products: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    for q in range(cols):
        for s in range(kernel):
            products[q * stride + s * dilation if stride else (q, s)].append((q, s))
    places = {
        key: I64(pairs[0][0] * stride + pairs[0][1] * dilation)
        if stride
        else e.at(e.times(apart, pairs[0][0]), e.times(spread, pairs[0][1]))
        for key, pairs in products.items()
    }
    last = (cols - 1) * stride + (kernel - 1) * dilation if stride else (cols - 1, kernel - 1)
    return Columns(products, places, places[last])


def between(e: Emitter, first: Any, value: Any, end: Any) -> Any:
    """Return whether a value is at least a first one and below an end."""
    return e.builder.and_(e.builder.icmp_signed("<=", first, value), e.builder.icmp_signed("<", value, end))


@intrinsic(prefer_literal=True)
def _tile(typingctx, rows, cols, height, kernel, down, stride, dilation, looped, partial, lanes, bits, fused, values):
    """Compute neighbouring outputs of a few rows, for vectors of channels.

    Literal integers: those of `Form`, lanes, bits (of an element), fused (multiply-add exists).

    A tuple of values, addresses and strides in bytes: x (of the first output's first kernel position), xd, xr, xw
    (kernel depth, input row, input column); depths (of the kernel), front, back (those between have input); groups (of
    kernel rows), top, bottom, left, right (the input rows and columns between, from that of x); apart, spread; y (the
    first output), yr, yw (output row and column); w (the first vector's weights, one position after another), wblock
    (the next vector's), blocks (whole vectors of channels), rest (channels behind these), bias, residual (strides of
    y), activation (slope below zero, floor, cap), 0 for none; zeros (as many as channels).
    """
    given = (rows, cols, height, kernel, down, stride, dilation, looped, partial, lanes, bits, fused)
    known = literals(*given)
    if known is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_NAMES, cgutils.unpack_tuple(builder, args[-1]), strict=True))
        *form, lanes, bits, fused = known
        tile = Tile(Emitter(builder, bits, lanes, bool(fused)), Form(*form), v)
        with builder.if_else(tile.is_inside(), likely=True) as (whole, edge):
            with whole:
                tile.emit(is_edge=False)
            with edge:
                tile.emit(is_edge=True)
        return context.get_dummy_value()

    return types.void(*given, types.UniTuple(types.int64, len(_NAMES))), codegen


class Tile:
    """Emits a tile, of the values of `_tile`."""

    def __init__(self, e: Emitter, form: Form, v: dict[str, Any]) -> None:
        self.e, self.form, self.v = e, form, v
        self.columns = columns_read(e, form.cols, form.kernel, form.stride, form.dilation, v["apart"], v["spread"])
        self.offsets = {key: e.builder.mul(v["xw"], place) for key, place in self.columns.places.items()}
        self.outputs = [(r, q) for r in range(form.rows) for q in range(form.cols)]
        #: Input rows of a group of kernel rows, and for each the pairs of an output row and a kernel row.
        self.reads = [
            [(r, j - r * form.down) for r in range(form.rows) if 0 <= j - r * form.down < form.height]
            for j in range((form.rows - 1) * form.down + form.height)
        ]

    def is_inside(self) -> Any:
        """Return whether nothing that the tile reads is padding."""
        e, v, form = self.e, self.v, self.form
        b = e.builder
        reach = e.at(e.times(v["groups"], form.height), (form.rows - 1) * form.down)
        conditions = [
            b.icmp_signed("<=", v["front"], I64(0)), b.icmp_signed(">=", v["back"], v["depths"]),
            b.icmp_signed("<=", v["top"], I64(0)), b.icmp_signed(">=", v["bottom"], reach),
            b.icmp_signed("<=", v["left"], I64(0)), b.icmp_signed(">", v["right"], self.columns.last),
        ]  # fmt: skip
        return reduce(b.and_, conditions)

    def emit(self, is_edge: bool) -> None:
        """Emit the loop over whole vectors of channels, and what follows."""
        e, v = self.e, self.v
        b, width = e.builder, e.lanes * e.bytes

        def block(_: Any, values: list[Any]) -> list[Any]:
            at, weights = values
            self._block(at, weights, None, is_edge)
            return [e.at(at, width), e.at(weights, v["wblock"])]

        if not self.form.partial:
            e.loop(v["blocks"], [I64(0), v["w"]], block)
            return
        with b.if_then(b.icmp_signed(">", v["blocks"], I64(0))):
            e.loop(v["blocks"], [I64(0), v["w"]], block)
        with b.if_then(b.icmp_signed(">", v["rest"], I64(0))):
            weights = e.at(v["w"], b.mul(v["blocks"], v["wblock"]))
            self._block(e.times(v["blocks"], width), weights, e.first(v["rest"]), is_edge)

    def _block(self, at: Any, weights: Any, mask: Any, is_edge: bool) -> None:
        """Emit the sums of a vector of channels that begins so many bytes behind the first."""
        e, v, form = self.e, self.v, self.form
        b = e.builder

        def groups(values: list[Any], has_depth: Any) -> list[Any]:
            if not form.looped:
                return self._group(I64(0), values, at, mask, has_depth)
            return e.loop(v["groups"], values, lambda index, inner: self._group(index, inner, at, mask, has_depth))

        def depth(index: Any, values: list[Any]) -> list[Any]:
            has_depth = between(e, v["front"], index, v["back"]) if is_edge else None
            return [e.at(values[0], v["xd"]), *groups(values, has_depth)[1:]]

        start = e.unless_zero(v["bias"], [e.zero], lambda _: [e.load_masked(e.at(v["bias"], at), mask)])
        # A bias of -0 becomes 0, or its sign would say whether padding was added to it.
        begun = [v["x"], weights, *[b.fadd(start[0], e.zero)] * len(self.outputs)]
        sums = (e.loop(v["depths"], begun, depth) if form.looped else depth(I64(0), begun))[2:]
        places = [e.at(e.times(v["yr"], r), e.times(v["yw"], q), at) for r, q in self.outputs]

        def add(values: list[Any]) -> list[Any]:
            added = [e.load_masked(e.at(v["residual"], place), mask) for place in places]
            return [b.fadd(value, more) for value, more in zip(values, added, strict=True)]

        sums = e.unless_zero(v["residual"], sums, add)
        sums = e.unless_zero(v["activation"], sums, lambda values: activate(e, values, v["activation"]))
        for value, place in zip(sums, places, strict=True):
            e.store_masked(value, e.at(v["y"], place), mask)

    def _group(self, index: Any, values: list[Any], at: Any, mask: Any, has_depth: Any) -> list[Any]:
        """Emit the products of kernel rows that are done together; a depth that may be missing is one at an edge."""
        e, v, form = self.e, self.v, self.form
        b, width = e.builder, e.lanes * e.bytes
        x, weights, *sums = values
        first = e.times(index, form.height)
        for j, pairs in enumerate(self.reads):
            factors = {
                k: [e.load(e.at(weights, (k * form.kernel + s) * width)) for s in range(form.kernel)] for _, k in pairs
            }
            row, has_row = e.at(x, e.times(v["xr"], j)), None
            if has_depth is not None:
                has_row = b.and_(has_depth, between(e, v["top"], e.at(first, j), v["bottom"]))
            for key, products in self.columns.products.items():
                address = e.at(row, self.offsets[key])
                if has_row is not None:
                    has_column = between(e, v["left"], self.columns.places[key], v["right"])
                    address = b.select(b.and_(has_row, has_column), address, v["zeros"])
                value = e.load_masked(e.at(address, at), mask)
                for (r, k), (q, s) in product(pairs, products):
                    cell = r * form.cols + q
                    sums[cell] = e.fma(value, factors[k][s], sums[cell])
            sums = in_order(e, sums)
        return [e.at(x, e.times(v["xr"], form.height)), e.at(weights, form.height * form.kernel * width), *sums]


@cache
def tile(form: Form, lanes: int, bits: int, fused: int) -> Any:
    """Return a compiled tile, which is given the values of `_tile` one by one."""
    rows, cols, height, kernel, down, stride, dilation, looped, partial = form
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * len(_NAMES)))
    def run(
        x, xd, xr, xw, depths, front, back, groups, top, bottom, left, right, apart, spread, y, yr, yw, w, wblock,
        blocks, rest, bias, residual, activation, zeros,
    ):  # fmt: skip
        if sources == 0:
            return
        _tile(
            rows, cols, height, kernel, down, stride, dilation, looped, partial, lanes, bits, fused,
            (x, xd, xr, xw, depths, front, back, groups, top, bottom, left, right, apart, spread, y, yr, yw, w, wblock,
             blocks, rest, bias, residual, activation, zeros),
        )  # fmt: skip

    return run
