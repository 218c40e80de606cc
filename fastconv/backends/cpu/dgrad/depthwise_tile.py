"""The micro-kernel of the depthwise input gradient: all phases of the stride, woven as they are stored."""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.depthwise.tile import in_order
from fastconv.backends.cpu.dgrad.depthwise_work import ROWS, WEIGHTS
from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.shuffles import interleaved
from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.geometry import Axis

# The values that `cells_tile` is given, in order.
_VALUES = "y yd yh depth row col depths heights widths zeros w x xd xh planes rows left"


@intrinsic(prefer_literal=True)
def cells_tile(
    typingctx, lanes, bits, fused, kd, sd, dd, bd, kh, sh, dh, bh, kw, sw, dw, bw, held, partial, values,
):  # fmt: skip
    """Compute rows of a gradient, ``lanes`` cells of them: of as many elements along each axis as the stride.

    Literal integers: lanes, bits (of an element), fused (multiply-add exists); of each axis the kernel, the stride,
    the dilation and the remainder of the padding before it by the stride; held (what stays in registers, as
    `depthwise_work` has it), partial (there may be fewer columns than that).

    A tuple, since of more than thirty arguments Python makes a list, and Numba forgets that some were literals: values,
    addresses and strides in bytes: y (the output's gradient, its first element, whether it is read or not), its
    strides of planes and rows; depth, row, col (the first element that is read for the first cells); its sizes; zeros
    (address of as many as a vector has lanes); w; x (the gradient's first cells), its strides of planes and rows;
    planes, rows, columns of the gradient that are left.
    """
    given = (lanes, bits, fused, kd, sd, dd, bd, kh, sh, dh, bh, kw, sw, dw, bw, held, partial)
    known = literals(*given)
    if known is None:
        return None
    width, element, has_fma, *numbers, is_held, is_partial = known
    axes = [Axis(0, 0, *numbers[i : i + 4], "zeros") for i in range(0, 12, 4)]
    deep, down, right = map(shifts_of, axes)
    kernels = [axis.kernel for axis in axes]
    ways_h, ways_w = (axis.stride for axis in axes[1:])

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_VALUES.split(), cgutils.unpack_tuple(builder, args[-1]), strict=True))
        e = Emitter(builder, element, width, bool(has_fma))
        step = width * e.bytes
        # What stays in registers goes from one row's place to the next; else there is but what is multiplied.
        planes, rows, columns = (
            range(shifts.elements) if is_held >= ROWS else shifts.read for shifts in (deep, down, right)
        )
        # Columns that there are: lanes from the first to before the last.
        places = [e.at(v["col"], shift) for shift in columns]
        masks = [
            builder.and_(e.first(builder.sub(v["widths"], place)), builder.not_(e.first(builder.neg(place))))
            for place in places
        ]
        stored = [e.first(e.at(v["left"], -i * width)) if is_partial else None for i in range(ways_w)]
        # No plane beside the input has a row.
        heights = [
            builder.select(builder.icmp_unsigned("<", e.at(v["depth"], shift), v["depths"]), v["heights"], I64(0))
            for shift in planes
        ]

        def weight(tap: tuple[int, ...]) -> Any:
            t, r, s = tap
            return e.load_splat(e.at(v["w"], ((t * kernels[1] + r) * kernels[2] + s) * e.bytes))

        every = list(itertools.product(*map(range, kernels)))
        factors = in_order(e, [weight(tap) for tap in every]) if is_held == WEIGHTS else []
        kept = dict(zip(every, factors, strict=False))

        def read(at: Any, number: Any) -> list[Any]:
            found = []
            for shift, limit in zip(planes, heights, strict=True):
                there = builder.icmp_unsigned("<", number, limit)
                plane = e.at(at, e.times(v["yd"], shift))
                found += [
                    e.load_masked(builder.select(there, e.at(plane, i * e.bytes), v["zeros"]), mask)
                    for i, mask in zip(columns, masks, strict=True)
                ]
            return found

        def read_rows(at: Any, number: Any, count: int) -> tuple[Any, Any, list[Any]]:
            """Return where the next row is, its number, and the vectors of so many rows before it."""
            found = []
            for _ in range(count):
                found += read(at, number)
                at, number = e.at(at, v["yh"]), e.at(number, 1)
            return at, number, found

        def read_apart(at: Any, number: Any) -> list[Any]:
            """Return the vectors of the rows that a row of cells multiplies."""
            return [vector for row in rows for vector in read(e.at(at, e.times(v["yh"], row)), e.at(number, row))]

        def phase(found: list[Any], below: list[Any], behind: list[Any]) -> list[Any]:
            """Return the elements of a row of cells that sum these rows and planes of the kernel."""
            sums = [e.zero] * ways_w
            for (t, plane), (r, row), side in itertools.product(behind, below, range(ways_w)):
                for s, beside in right.terms[side]:
                    tap = (t, r, s)
                    factor = kept[tap] if kept else weight(tap)
                    place = rows.index(row) * row_vectors + planes.index(plane) * len(columns) + columns.index(beside)
                    sums[side] = e.fma(found[place], factor, sums[side])
            return interleaved(e, sums)

        row_vectors = len(planes) * len(columns)

        def cells(index: Any, values: list[Any]) -> list[Any]:
            at, number, target, *found = values
            if is_held >= ROWS:
                at, number, more = read_rows(at, number, 1)
                found += more
            else:
                found = read_apart(at, number)
                at, number = e.at(at, v["yh"]), e.at(number, 1)
            first = e.times(index, ways_h)
            for (i, behind), (j, below) in itertools.product(enumerate(deep.terms), enumerate(down.terms)):
                woven = phase(found, below, behind)
                address = e.at(target, e.times(v["xd"], i), e.times(v["xh"], j))
                there = ir.Constant(ir.IntType(1), 1)
                if i:
                    there = builder.icmp_signed("<", I64(i), v["planes"])
                if j:
                    there = builder.and_(there, builder.icmp_signed("<", e.at(first, j), v["rows"]))
                with builder.if_then(there, likely=True):
                    for k, (vector, mask) in enumerate(zip(woven, stored, strict=True)):
                        e.store_masked(vector, e.at(address, k * step), mask)
            return [at, number, e.at(target, e.times(v["xh"], ways_h)), *found[row_vectors:][: len(values) - 3]]

        at = e.at(v["y"], e.times(v["col"], e.bytes), builder.mul(v["row"], v["yh"]), builder.mul(v["depth"], v["yd"]))
        at, number, carried = read_rows(at, v["row"], down.elements - 1 if is_held >= ROWS else 0)
        count = builder.sdiv(e.at(v["rows"], ways_h - 1), I64(ways_h))
        e.loop(count, [at, number, v["x"], *carried], cells)
        return context.get_dummy_value()

    return types.void(*given, types.UniTuple(types.int64, len(_VALUES.split()))), codegen
