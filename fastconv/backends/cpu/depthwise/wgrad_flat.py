"""The weight gradient of depthwise convolution where planes are as wide as their gradients: no row has an end.

A plane of the input and one of the output's gradient are two lines. A kernel position joins elements that lie as far
apart everywhere, so vectors run on over the ends of rows, however short these are. Lanes that would join the end of one
row with the beginning of another are left out by masks, which are the same for all channels. So are the columns of
padding, which only matter if something is not finite: what that is multiplied with is not finite in any case, which is
noticed, and all is done again by the loops that multiply padding.
"""

from __future__ import annotations

from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.depthwise.wgrad_loops import Runner
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.simd import I64, Emitter, literals

_FIELDS = """
    x xn xc y yn yk     | the input and the output's gradient, and their strides: image, channel
    w special           | the weight's gradient; address of where to say that a sum is not finite
    lost                | what is said there
    images multiplier   | images; output channels of an input channel
    top down            | bytes from a position to what its first kernel row reads; from kernel row to kernel row
    left across         | the same of kernel columns, backwards in the output's gradient
    vectors begin end   | vectors of a plane; those between are whole for every kernel row, and not at the plane's ends
    masks entry         | for every vector the masks of kernel columns, then of kernel rows; bytes from vector to vector
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_LOST = FIELDS.index("lost")

# The values that `flat_sums` is given, in order.
_VALUES = "x down y across vectors begin end columns rows entry w add special"


@intrinsic(prefer_literal=True)
def flat_sums(
    typingctx, lanes, bits, fused, height, cols,
    x, down, y, across, vectors, begin, end, columns, rows, entry, w, add, special,
):  # fmt: skip
    """Store what a plane gives to the gradient of ``height`` kernel rows of ``cols`` columns.

    Literal integers: lanes, bits (of an element), fused (multiply-add exists), height, cols.

    Values, addresses and strides in bytes: x (what the first position's first kernel row reads), from a kernel row to
    the next; y (what goes with the first position for the first kernel column), from a kernel column back to the next;
    vectors of the plane, of which those from begin to end need masks of columns only; the first vector's masks of
    columns and of rows, and from one vector's to the next; w; whether to add to it; special.
    """
    given = (lanes, bits, fused, height, cols)
    known = literals(*given)
    if known is None:
        return None
    width, element, has_fma, nrows, ncols = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_VALUES.split(), args[len(known) :], strict=True))
        e = Emitter(builder, element, width, bool(has_fma))
        cells = nrows * ncols
        word, mask = ir.IntType(width), ir.VectorType(ir.IntType(1), width)

        def masks(address: Any, count: int) -> list[Any]:
            words = [builder.inttoptr(e.at(address, i * width // 8), word.as_pointer()) for i in range(count)]
            return [builder.bitcast(builder.load(pointer), mask) for pointer in words]

        def take(totals: list[Any], at_x: Any, at_y: Any, columns: list[Any], rows: list[Any] | None) -> list[Any]:
            gradients = [e.at(at_y, builder.neg(e.times(v["across"], s))) for s in range(ncols)]
            gradients = [e.load_masked(at, None if rows is None else columns[s]) for s, at in enumerate(gradients)]
            result = []
            for r in range(nrows):
                loaded = e.load_masked(e.at(at_x, e.times(v["down"], r)), None if rows is None else rows[r])
                for s in range(ncols):
                    total = totals[r * ncols + s]
                    # Beyond the ends of rows nothing is multiplied: zero times infinity would be NaN.
                    result.append(builder.select(columns[s], e.fma(loaded, gradients[s], total), total))
            return result

        def vector(index: Any, values: list[Any]) -> list[Any]:
            at_x, at_y, at_columns, at_rows, *totals = values
            columns = masks(at_columns, ncols)
            inner = builder.icmp_unsigned("<", builder.sub(index, v["begin"]), builder.sub(v["end"], v["begin"]))
            with builder.if_else(inner, likely=True) as (inside, edge):
                with inside:
                    whole, after_inside = take(totals, at_x, at_y, columns, None), builder.block
                with edge:
                    part, after_edge = take(totals, at_x, at_y, columns, masks(at_rows, nrows)), builder.block
            changed = []
            for one, other in zip(whole, part, strict=True):
                phi = builder.phi(e.vector)
                phi.add_incoming(one, after_inside)
                phi.add_incoming(other, after_edge)
                changed.append(phi)
            step = width * e.bytes
            return [
                e.at(at_x, step), e.at(at_y, step), e.at(at_columns, v["entry"]), e.at(at_rows, v["entry"]), *changed
            ]  # fmt: skip

        totals = e.loop(v["vectors"], [v["x"], v["y"], v["columns"], v["rows"], *[e.zero] * cells], vector)[4:]
        for first in range(0, cells, width):
            some, at = totals[first : first + width], e.at(v["w"], first * e.bytes)
            there = e.first(len(some))
            more = partial(lambda at, there, sums: [builder.fadd(sums[0], e.load_masked(at, there))], at, there)
            (sums,) = e.unless_zero(v["add"], [e.sums(some)], more)
            e.store_masked(sums, at, there)
            lost = builder.bitcast(builder.fcmp_unordered("uno", builder.fmul(sums, e.zero), e.zero), word)
            with builder.if_then(builder.icmp_unsigned("!=", lost, word(0)), likely=False):
                builder.store(I64(1), builder.inttoptr(v["special"], I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * len(_VALUES.split())), codegen


@cache
def loops(lanes: int, bits: int, fused: int, height: int, cols: int) -> Any:
    """Return compiled loops ``run(job, start, stop, worker)``, which do a range of output channels.

    The parameters are those of `flat_sums`. The sum of a weight is taken in one order: vector of the plane, lanes,
    image. Planes are taken as they lie in memory.
    """
    size = bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        rows = job.masks + cols * lanes // 8
        for image in range(job.images):
            for k in range(start, stop):
                x = job.x + image * job.xn + k // job.multiplier * job.xc + job.top
                y = job.y + image * job.yn + k * job.yk + job.left
                flat_sums(
                    lanes, bits, fused, height, cols,
                    x, job.down, y, job.across,
                    job.vectors, job.begin, job.end, job.masks, rows, job.entry,
                    job.w + k * height * cols * size, image, job.special,
                )  # fmt: skip

    return run


class FlatRunner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        form = (work.flat_lanes, 8 * work.size, int(work.simd.fma), work.height.kernel, work.width.kernel)
        self._loops = loops(*form).address
        self._masks, whole = _masks(work)
        # The first vector and the one behind the last of those that are whole.
        begin, end = np.flatnonzero(np.diff(whole, prepend=False, append=False)) if whole.any() else (0, 0)
        height, width, row = work.height, work.width, work.width.size * work.size
        self._known = record_of(FIELDS, {
            "images": self.problem.n, "multiplier": work.multiplier,
            "top": -height.before * row, "down": height.dilation * row,
            "left": width.before * work.size, "across": width.dilation * work.size,
            "vectors": len(whole), "begin": int(begin), "end": int(end),
            "masks": address(self._masks), "entry": self._masks.strides[0],
        })  # fmt: skip

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        x, dy = map(_lines, inputs)
        (dw,) = outputs
        result = dw if dw.flags.c_contiguous and dw.flags.aligned else np.empty(dw.shape, dw.dtype)
        job = self._known.copy()
        where = address(job)
        job[:_LOST] = (
            address(x), *x.strides[:2], address(dy), *dy.strides[:2], address(result), where + _LOST * job.itemsize,
        )  # fmt: skip
        threads.run(self._loops, where, self.problem.oc, self.work.workers)
        if job[_LOST]:
            self._exact.run((x, dy), outputs)
        elif result is not dw:
            dw[...] = result

    @cached_property
    def _exact(self) -> Runner:
        return Runner(self.work)


def _lines(array: Any) -> Any:
    """Return an array whose planes are lines: itself if they are."""
    return array if array.flags.aligned and array[0, 0].flags.c_contiguous else array.copy(order="C")


def _masks(work: Work) -> tuple[Any, Any]:
    """Return every vector's masks, and which vectors need none of rows and lie inside the gradient's plane."""
    height, width, lanes = work.height, work.width, work.flat_lanes
    cells = height.out * width.out
    vectors = -(-cells // lanes)
    down = np.arange(height.kernel)[:, None] * height.dilation - height.before
    right = np.arange(width.kernel)[:, None] * width.dilation - width.before
    row, col = np.arange(height.out) + down, np.arange(width.out) - right
    masks = np.zeros((width.kernel + height.kernel, vectors * lanes), bool)
    masks[: width.kernel, :cells] = np.tile((col >= 0) & (col < width.out), height.out)
    masks[width.kernel :, :cells] = np.repeat((row >= 0) & (row < height.size), width.out, axis=1)
    plain = np.all(masks[width.kernel :], axis=0)
    place = np.arange(vectors * lanes)
    plain &= (place >= right.max()) & (place < cells + right.min())
    packed = np.packbits(masks.reshape(-1, vectors, lanes), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed.swapaxes(0, 1)), plain.reshape(vectors, lanes).all(1)
