"""The micro-kernel of depthwise convolution: a block of outputs of one memory order, summed in registers.

A tile is ``rows`` output rows of ``vectors`` vectors. For a column of kernel positions its weights are held, and every
input row is loaded once and used for all the output rows that it belongs to. The sum of an output is taken in the same
order in every tile: depth, block of kernel rows, kernel column, kernel row.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.simd import I64, Emitter, literals

# The values that `depthwise_tile` is given, in order.
_VALUES = """
    x xd xh xw depth row col depths heights widths
    groups count steps kernel spread down across
    w wgroup wrow wstep y yh yw left bias residual activation zeros far
"""


class Window:
    """Emits the loads of a tile: of which vectors, and what of them is not padding.

    Parameters
    ----------
    e : Emitter
    last : bool
        Lanes are channels, vectors are columns. Otherwise lanes are columns.
    edge : bool
        There is padding, or less than whole vectors: loads are masked.
    vectors, phases : int
        Vectors of a row; columns from one output to the next, where lanes are columns.
    values : dict of str to Value
        The values of `depthwise_tile`.
    """

    def __init__(self, e: Emitter, last: bool, edge: bool, vectors: int, phases: int, values: dict[str, Any]) -> None:
        self.e, self.last, self.edge, self.vectors, self.phases, self.values = e, last, edge, vectors, phases, values

    def rows(self, depth: Any, row: Any, count: int, step: Any) -> list[tuple[Any, Any]]:
        """Return the addresses of input rows from a position on, and which of them are not padding."""
        e, v, b = self.e, self.values, self.e.builder
        address = e.at(v["x"], b.mul(depth, v["xd"]), b.mul(v["col"], v["xw"]), b.mul(row, v["xh"]))
        down = b.mul(step, v["xh"])
        heights = b.select(b.icmp_unsigned("<", depth, v["depths"]), v["heights"], I64(0))
        found = []
        for _ in range(count):
            there = b.icmp_unsigned("<", row, heights) if self.edge else None
            # Lanes that are columns are neighbours: there are zeros enough to stand for a whole row of them.
            there_or_zeros = address if there is None or self.last else b.select(there, address, v["zeros"])
            found.append((there_or_zeros, there))
            address, row = e.at(address, down), e.at(row, step)
        return found

    def fetch_below(self, skipped: int, count: int) -> None:
        """Fetch what lies ``skipped`` rows below, where lanes are columns."""
        e, v, b = self.e, self.values, self.e.builder
        address = e.at(v["x"], b.mul(v["col"], v["xw"]), b.mul(e.at(v["row"], skipped), v["xh"]))
        for _ in range(count):
            for i in range(self.vectors * self.phases):
                e.prefetch(e.at(address, i * e.lanes * e.bytes))
            address = e.at(address, v["xh"])

    def masks(self, index: Any) -> list[Any]:
        """Return the masks of a row's vectors for a column of the kernel."""
        if not self.edge:
            return [None] * (self.vectors * self.phases)
        e, v, b = self.e, self.values, self.e.builder
        col = e.at(v["col"], b.mul(index, v["spread"]))
        if not self.last:
            return [self._inside(e.at(col, i * e.lanes)) for i in range(self.vectors * self.phases)]
        channels, none = e.first(v["left"]), e.first(0)
        cols = [e.at(col, b.mul(v["across"], I64(i))) for i in range(self.vectors)]
        return [b.select(b.icmp_unsigned("<", c, v["widths"]), channels, none) for c in cols]

    def _inside(self, col: Any) -> Any:
        """Return a mask of the lanes that are input columns, if the first lane is column ``col``."""
        e, b = self.e, self.e.builder
        # Integers as wide as the elements: the comparison's result is then a mask without further ado.
        kind = ir.IntType(8 * e.bytes)
        first, width = (value if kind == I64 else b.trunc(value, kind) for value in (col, self.values["widths"]))
        lanes = ir.Constant(ir.VectorType(kind, e.lanes), list(range(e.lanes)))
        return b.icmp_unsigned("<", b.add(lanes, e.splat(first)), e.splat(width))

    def load(self, row: tuple[Any, Any], offset: Any, vector: int, masks: list[Any]) -> Any:
        """Return one vector of a row."""
        e, v, b = self.e, self.values, self.e.builder
        at, there = e.at(row[0], offset), row[1]
        step = e.lanes * e.bytes
        if self.last:
            at = e.at(at, b.mul(b.mul(v["across"], v["xw"]), I64(vector)))
            return e.load_masked(at if there is None else b.select(there, at, v["zeros"]), masks[vector])
        first = vector * self.phases
        parts = [e.load_masked(e.at(at, (first + i) * step), masks[first + i]) for i in range(self.phases)]
        return parts[0] if self.phases == 1 else e.shuffle(parts[0], parts[1], range(0, 2 * e.lanes, 2))


def in_order(e: Emitter, values: list[Any]) -> list[Any]:
    """Return vectors, made here: neither they nor later loads move across this place.

    LLVM would load whole tiles ahead, and run out of registers.
    """
    b = e.builder
    triple = b.module.triple
    register = "v" if triple.startswith(("x86", "i686")) else "w" if triple.startswith(("aarch64", "arm64")) else None
    if register is None or not values:
        return values
    count = len(values)
    constraints = [f"={register}"] * count + [str(i) for i in range(count)] + ["~{memory}"]
    kind = ir.LiteralStructType([e.vector] * count) if count > 1 else e.vector
    made = b.asm(ir.FunctionType(kind, [e.vector] * count), "", ",".join(constraints), values, True)
    return [b.extract_value(made, i) for i in range(count)] if count > 1 else [made]


def _values(builder: Any, values: Any) -> dict[str, Any]:
    return dict(zip(_VALUES.split(), cgutils.unpack_tuple(builder, values), strict=True))


@intrinsic(prefer_literal=True)
def depthwise_tile(
    typingctx, rows, vectors, lanes, bits, fused, last, edge, partial, height, stride, phases, values,
):  # fmt: skip
    """Compute ``rows`` times ``vectors`` vectors of outputs.

    Literal integers: rows, vectors, lanes, bits (of an element), fused (multiply-add exists), last (lanes are
    channels, vectors are columns), edge (padding or less than whole vectors is read), partial (``left`` may be below
    what is stored), height (kernel rows of a group), stride (input rows from one output row to the next; if height is
    1, it is ``down`` instead), phases (input columns from one output column to the next, 1 or 2, where lanes are
    columns).

    A tuple, since of more than thirty arguments Python makes a list, and Numba forgets that some were literals: values,
    addresses and strides in bytes: x (the channel's first element, whether it is read or not), its strides;
    depth, row, col (input position of the first output's first kernel position); depths, heights, widths (of the
    input; not looked at without ``edge``); groups (address of pairs of depth and row offsets), count (of them); steps
    (address of the offsets of the kernel's columns), kernel (columns of it), spread (input columns between them),
    down, across (input rows and columns from one output to the next); w and its strides from group to group, kernel
    row to row and column to column; y
    and its strides; left (columns, or channels, to store); bias, residual, activation (slope below zero, floor, cap):
    addresses, 0 for none; zeros (address of as many zeros as the vectors of a row span).
    """
    given = (rows, vectors, lanes, bits, fused, last, edge, partial, height, stride, phases)
    known = literals(*given)
    if known is None:
        return None
    nrows, nvectors, width, element, has_fma, is_last, is_edge, is_partial, nheight, step, nphases = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _values(builder, args[-1])
        e = Emitter(builder, element, width, bool(has_fma))
        window = Window(e, bool(is_last), bool(is_edge), nvectors, nphases, v)
        cells = [(r, i) for r in range(nrows) for i in range(nvectors)]
        size = width * e.bytes

        read, down = (nrows, v["down"]) if nheight == 1 else ((nrows - 1) * step + nheight, I64(1))

        def column(index: Any, values: list[Any], found: list[tuple[Any, Any]]) -> list[Any]:
            weight, *sums = values
            offset, masks = e.load_integer(e.at(v["steps"], e.times(index, 8))), window.masks(index)
            load = e.load if is_last else e.load_splat
            factors = [load(e.at(weight, e.times(v["wrow"], k))) for k in range(nheight)]
            for i, address in enumerate(found):
                summed = []
                loaded = [window.load(address, offset, n, masks) for n in range(nvectors)]
                for k, factor in enumerate(factors):
                    r = (i - k) // step if nheight > 1 else i
                    if 0 <= r < nrows and (nheight == 1 or (i - k) % step == 0):
                        for n in range(nvectors):
                            at = r * nvectors + n
                            sums[at] = e.fma(loaded[n], factor, sums[at])
                            summed.append(at)
                for at, value in zip(summed, in_order(e, [sums[at] for at in summed]), strict=True):
                    sums[at] = value
            return [e.at(weight, v["wstep"]), *sums]

        def group(index: Any, values: list[Any]) -> list[Any]:
            weight, *sums = values
            offsets = e.at(v["groups"], e.times(index, 16))
            depth, row = (e.load_integer(e.at(offsets, i * 8)) for i in range(2))
            found = window.rows(e.at(v["depth"], depth), e.at(v["row"], row), read, down)
            sums = e.loop(v["kernel"], [weight, *sums], lambda s, inner: column(s, inner, found))[1:]
            return [e.at(weight, v["wgroup"]), *sums]

        stored = [None] * nvectors
        if is_partial:
            stored = [e.first(v["left"] if is_last else e.at(v["left"], -n * width)) for n in range(nvectors)]

        def start(_: Any) -> list[Any]:
            return [e.load_masked(v["bias"], stored[0]) if is_last else e.load_splat(v["bias"])]

        def target(base: Any, r: int, n: int) -> Any:
            return e.at(base, e.times(v["yh"], r), e.times(v["yw"], n) if is_last else n * size)

        if not is_last:
            with builder.if_then(builder.icmp_signed("!=", v["far"], I64(0)), likely=False):
                for r, n in cells:
                    e.prefetch(target(v["y"], r, n), write=True)
                window.fetch_below(read, nrows * (step if nheight > 1 else 1))
        (begin,) = e.unless_zero(v["bias"], [e.zero], start)
        sums = e.loop(v["count"], [v["w"], *[begin] * len(cells)], group)[1:]

        def add(values: list[Any]) -> list[Any]:
            more = [e.load_masked(target(v["residual"], r, n), stored[n]) for r, n in cells]
            return [builder.fadd(a, b) for a, b in zip(values, more, strict=True)]

        sums = e.unless_zero(v["residual"], sums, add)
        sums = e.unless_zero(v["activation"], sums, lambda s: activate(e, s, v["activation"]))
        for value, (r, n) in zip(sums, cells, strict=True):
            e.store_masked(value, target(v["y"], r, n), stored[n])
        return context.get_dummy_value()

    return types.void(*given, types.UniTuple(types.int64, len(_VALUES.split()))), codegen
