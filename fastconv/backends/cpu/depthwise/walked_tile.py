"""The micro-kernel of depthwise convolution that walks down a strip of columns, with the weights held in registers.

An input row is loaded once, for all the outputs that it belongs to: those of the rows that are under way. With every
step an output row is complete, and stored. So there is nothing to begin anew until the strip ends, and nothing but what
is inside the kernel's height is in registers. Short rows leave the multipliers waiting for sums: then the planes of
neighbouring channels are walked down together. The sum of an output is taken in the order of the kernel: row, column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.activation import activate
from fastconv.backends.cpu.depthwise.tile import in_order
from fastconv.backends.cpu.depthwise.walked_work import KERNEL
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Output rows ahead of which lines are asked for, where they are far.
AHEAD = 4

# The values that `walk` is given, in order.
_VALUES = "x xc xh row heights col widths w wc wstep y yk yh rows left bias residual activation zeros far"


class _Columns:
    """Emits the loads of a row: what each kernel column reads, zeros where that is padding.

    There is at most one column of padding on either side, so that only the first vector and the last look at it.
    """

    def __init__(self, e: Emitter, vectors: int, stride: int, v: dict[str, Any]) -> None:
        self.e, self.vectors, self.stride, self.v = e, vectors, stride, v
        # Where loads begin: for every kernel column, or, if columns are dealt to even and odd ones, one behind another.
        starts = range(KERNEL) if stride == 1 else range(0, stride * e.lanes, e.lanes)
        self._offsets = [[n * stride * e.lanes + start for start in starts] for n in range(vectors)]
        self._beyond = vectors * stride * e.lanes
        outer = {0, *self._offsets[-1], *([self._beyond] if stride > 1 else [])}
        self._masks = {offset: self._inside(offset) for offset in sorted(outer)}

    def _inside(self, offset: int) -> Any:
        """Return a mask of the lanes that are input columns."""
        e, b = self.e, self.e.builder
        # Integers as wide as the elements: the comparison's result is then a mask without further ado.
        kind = ir.IntType(8 * e.bytes)
        first, width = e.at(self.v["col"], offset), self.v["widths"]
        first, width = (value if kind == I64 else b.trunc(value, kind) for value in (first, width))
        lanes = ir.Constant(ir.VectorType(kind, e.lanes), list(range(e.lanes)))
        return b.icmp_unsigned("<", b.add(lanes, e.splat(first)), e.splat(width))

    def _load(self, row: Any, offset: int) -> Any:
        return self.e.load_masked(self.e.at(row, offset * self.e.bytes), self._masks.get(offset))

    def load(self, row: Any) -> Iterator[list[Any]]:
        """Yield, for one output vector after the other, what its kernel columns read of a row."""
        if self.stride == 1:
            for offsets in self._offsets:
                yield [self._load(row, offset) for offset in offsets]
            return
        e = self.e
        even, odd = self._dealt(row, 0)
        for n in range(1, self.vectors + 1):
            following = self._dealt(row, n) if n < self.vectors else (self._load(row, self._beyond), None)
            # The last kernel column reads what the first one does an output further.
            yield [even, odd, e.shuffle(even, following[0], range(1, e.lanes + 1))]
            even, odd = following

    def _dealt(self, row: Any, n: int) -> tuple[Any, Any]:
        """Return the even and the odd columns of two vectors."""
        e = self.e
        one, other = (self._load(row, offset) for offset in self._offsets[n])
        return e.shuffle(one, other, range(0, 2 * e.lanes, 2)), e.shuffle(one, other, range(1, 2 * e.lanes, 2))


@intrinsic(prefer_literal=True)
def walk(typingctx, planes, vectors, lanes, bits, fused, stride, values):
    """Compute the outputs of a strip of columns, from some row on.

    Literal integers: planes (that are walked down together), vectors (of a row of the strip), lanes, bits (of an
    element), fused (multiply-add exists), stride.

    A tuple of values, addresses and strides in bytes: x (the first plane's first column, be it read or not), its planes
    and rows; row (input row of the first kernel row, of ``heights``); col (input column of the first kernel column, of
    ``widths``); w, its planes and taps; y, its planes and rows; rows (to do); left (columns to store); bias, residual,
    activation: addresses, 0 for none; zeros (address of as many as the strip reads of a row); far (not 0 if what lies
    some rows below is asked for ahead).
    """
    given = (planes, vectors, lanes, bits, fused, stride)
    known = literals(*given)
    if known is None:
        return None
    nplanes, nvectors, width, element, has_fma, step = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_VALUES.split(), cgutils.unpack_tuple(builder, args[-1]), strict=True))
        e = Emitter(builder, element, width, bool(has_fma))
        columns = _Columns(e, nvectors, step, v)
        cells = [(p, n) for p in range(nplanes) for n in range(nvectors)]
        weights = [
            [e.load_splat(e.at(v["w"], e.times(v["wc"], p), e.times(v["wstep"], i))) for i in range(KERNEL * KERNEL)]
            for p in range(nplanes)
        ]

        def biases(_: list[Any]) -> list[Any]:
            return [e.load_splat(e.at(v["bias"], p * e.bytes)) for p in range(nplanes)]

        begun = e.unless_zero(v["bias"], [e.zero] * nplanes, biases)
        stored = [None] * (nvectors - 1) + [e.first(e.at(v["left"], -(nvectors - 1) * width))]

        def add_rows(first: int, stop: int, at: Any, row: Any, flat: list[Any]) -> list[Any]:
            """Add input rows, counted from the first one of the output row that is done next, to the sums under way.

            Return the address and the row that follow, and the sums, those of an output row behind those before.
            """
            sums = [flat[i : i + len(cells)] for i in range(0, len(flat), len(cells))]
            for j in range(first, stop):
                if j % step == 0:
                    sums.append([begun[p] for p, _ in cells])
                there = builder.icmp_unsigned("<", row, v["heights"])
                for p in range(nplanes):
                    there_or_zeros = builder.select(there, e.at(at, e.times(v["xc"], p)), v["zeros"])
                    for i, loaded in enumerate(columns.load(there_or_zeros), p * nvectors):
                        for s, one in enumerate(loaded):
                            for q, some in enumerate(sums):
                                some[i] = e.fma(one, weights[p][(j - q * step) * KERNEL + s], some[i])
                        for some, value in zip(sums, in_order(e, [some[i] for some in sums]), strict=True):
                            some[i] = value
                at, row = e.at(at, v["xh"]), e.at(row, 1)
            return [at, row, *(value for some in sums for value in some)]

        def fetch_below(at: Any, y: Any) -> None:
            """Ask for what is read and written some rows further down: every row lies apart from the one before."""
            for p in range(nplanes):
                read = e.at(at, e.times(v["xc"], p), e.times(v["xh"], AHEAD * step))
                written = e.at(y, e.times(v["yk"], p), e.times(v["yh"], AHEAD))
                for row in range(step):
                    for offset in range(0, nvectors * step * width * e.bytes, LINE):
                        e.prefetch(e.at(read, e.times(v["xh"], row), offset))
                for offset in range(0, nvectors * width * e.bytes, LINE):
                    e.prefetch(e.at(written, offset), write=True)

        def output_row(_: Any, values: list[Any]) -> list[Any]:
            y, residual, at, row, *flat = values
            with builder.if_then(builder.icmp_signed("!=", v["far"], I64(0)), likely=False):
                fetch_below(at, y)
            at, row, *flat = add_rows(KERNEL - step, KERNEL, at, row, flat)
            done, others = flat[: len(cells)], flat[len(cells) :]

            def target(base: Any, p: int, n: int) -> Any:
                return e.at(base, e.times(v["yk"], p), n * width * e.bytes)

            def add(done: list[Any]) -> list[Any]:
                more = [e.load_masked(target(residual, p, n), stored[n]) for p, n in cells]
                return [builder.fadd(a, b) for a, b in zip(done, more, strict=True)]

            done = e.unless_zero(v["residual"], done, add)
            done = e.unless_zero(v["activation"], done, lambda s: activate(e, s, v["activation"]))
            for value, (p, n) in zip(done, cells, strict=True):
                e.store_masked(value, target(y, p, n), stored[n])
            return [e.at(y, v["yh"]), e.at(residual, v["yh"]), at, row, *others]

        begin = add_rows(0, KERNEL - step, e.at(v["x"], builder.mul(v["row"], v["xh"])), v["row"], [])
        e.loop(v["rows"], [v["y"], v["residual"], *begin], output_row)
        return context.get_dummy_value()

    return types.void(*given, types.UniTuple(types.int64, len(_VALUES.split()))), codegen
