"""The loops around the depthwise weight gradient's tiles on channels-last maps, and the run that starts them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.depthwise.wgrad_channels_tile import tile
from fastconv.backends.cpu.depthwise.wgrad_channels_work import Work
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import clear, record
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.simd import Emitter, literals
from fastconv.backends.cpu.winograd.transforms import scatter_lanes
from fastconv.problem import AXES

# What every run fills in: the stage, addresses and strides of the input, the output's gradient and the weight's, and
# where units leave their sums.
HEAD = ("adds", "x", "xn", "xd", "xh", "xw", "y", "yn", "yd", "yh", "yw", "w", "sums")

_FIELDS = """
    kd kh kw                            | kernel sizes
    depths heights widths               | input sizes
    od oh ow                            | output sizes
    stride_d stride_h stride_w          | input positions from one output to the next
    dilation_d dilation_h dilation_w    | input positions from one kernel position to the next
    before_d before_h before_w          | padding before
    channels blocks part parts          | channels, vectors of them, of those that are done together, such parts
    vector part_bytes                   | bytes of a vector, of a part's sums
    taps lines band bands               | kernel positions; rows of outputs, of those that are summed apart, such bands
    rows full_rows cols full_cols       | kernel rows and output columns of a full piece, and how many pieces are full
    tile00 tile01 tile10 tile11         | addresses of the tiles: of full pieces, of one column less, of one row less
    zeros                               | address of zeros for the channels of a part
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)
_ADDS = FIELDS.index("adds")


@intrinsic(prefer_literal=True)
def _add_bands(typingctx, lanes, bits, target, source, step, more):
    """Add to a vector ``more`` others, which follow ``step`` bytes from one to the next."""
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source, step, more = args[2:]
        e = Emitter(builder, element, width)

        def add(_: Any, values: list[Any]) -> list[Any]:
            at, total = values
            return [e.at(at, step), builder.fadd(total, e.load(at))]

        start = [e.load(target)]
        (total,) = e.unless_zero(more, start, lambda v: e.loop(more, [source, *v], add)[1:])
        e.store(total, target)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 4), codegen


@inlined
def _add(lanes, bits, job, block):
    """Add up what all bands have for a vector of channels, and store it."""
    size = bits // 8
    part, own = block // job.part, block % job.part * job.taps * job.vector
    sums, step = job.sums + part * job.part_bytes + own, job.parts * job.part_bytes
    first = block * lanes
    for tap in range(job.taps):
        at = sums + tap * job.vector
        _add_bands(lanes, bits, at, at + step, step, job.bands - 1)
    for tap in range(0, job.taps, lanes):
        scatter_lanes(
            lanes, bits, sums + tap * job.vector, min(lanes, job.taps - tap),
            job.w + (first * job.taps + tap) * size, job.taps * size, min(lanes, job.channels - first), 0, 0,
        )  # fmt: skip


@inlined
def _sum(lanes, job, unit):
    """Sum a band of lines for a part of the channels."""
    band, part = unit // job.parts, unit % job.parts
    first = part * job.part
    blocks, base = min(job.part, job.blocks - first), first * job.vector
    own = job.sums + unit * job.part_bytes
    clear(own, job.part_bytes)
    for line in range(band * job.band, min(job.lines, (band + 1) * job.band)):
        plane, row = line // job.oh, line % job.oh
        image, depth = plane // job.od, plane % job.od
        y = job.y + image * job.yn + depth * job.yd + row * job.yh + base
        for tap_d in range(job.kd):
            deep = depth * job.stride_d - job.before_d + tap_d * job.dilation_d
            x = job.x + image * job.xn + deep * job.xd + base
            tap_h = piece = 0
            while tap_h < job.kh:
                high = row * job.stride_h - job.before_h + tap_h * job.dilation_h
                # Kernel rows that lie on the input: from the first of them to the one behind the last.
                top = -(high // job.dilation_h) if high < 0 else 0
                bottom = (job.heights - high + job.dilation_h - 1) // job.dilation_h
                if deep < 0 or deep >= job.depths:
                    bottom = 0
                sums = own + (tap_d * job.kh + tap_h) * job.kw * job.vector
                col = cut = 0
                while col < job.ow:
                    across = col * job.stride_w - job.before_w
                    if piece < job.full_rows:
                        tile = job.tile00 if cut < job.full_cols else job.tile01
                    else:
                        tile = job.tile10 if cut < job.full_cols else job.tile11
                    call(tile, (
                        x + high * job.xh + across * job.xw, job.dilation_h * job.xh, job.xw,
                        top, bottom, -across, job.widths - across, job.stride_w, job.dilation_w,
                        y + col * job.yw, job.yw, blocks, job.channels - first * lanes,
                        sums, job.taps * job.vector, job.zeros,
                    ))  # fmt: skip
                    col += job.cols if cut < job.full_cols else job.cols - 1
                    cut += 1
                tap_h += job.rows if piece < job.full_rows else job.rows - 1
                piece += 1


@cache
def loops(lanes: int, bits: int) -> Any:
    """Return compiled loops ``run(job, start, stop, worker)``: units are bands of parts or, to add up, vectors.

    The sum of a weight is taken in one order: line, column, and the bands at the end.
    """
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            if job.adds:
                _add(lanes, bits, job, unit)
            else:
                _sum(lanes, job, unit)

    return run


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        self._loops = loops(work.lanes, 8 * work.size).address
        self._known = self._fields()

    def _fields(self) -> dict[str, int]:
        work = self.work
        f = {"channels": self.problem.ic, "blocks": work.blocks, "part": work.part, "parts": work.parts}
        f |= {"vector": work.vector, "part_bytes": work.part_bytes, "zeros": address(self._zeros)}
        f |= {"taps": work.taps, "lines": work.lines, "band": work.band, "bands": work.bands}
        for name, size, axis in zip(AXES, ("depths", "heights", "widths"), work.axes, strict=True):
            f |= {"k" + name: axis.kernel, "o" + name: axis.out, size: axis.size, "stride_" + name: axis.stride}
            f |= {"dilation_" + name: axis.dilation, "before_" + name: axis.before}
        rows, cols = work.kernel_cut, work.column_cut
        f |= {"rows": rows.size, "full_rows": rows.full, "cols": cols.size, "full_cols": cols.full}
        form = (work.axes[2].kernel, *work.steps, work.lanes, 8 * work.size, int(work.simd.fma))
        for i, (many, height) in enumerate(rows.spans):
            for j, (several, width) in enumerate(cols.spans):
                if many and several:
                    f[f"tile{i}{j}"] = tile(height, width, *form).address
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        work, (dw,) = self.work, outputs
        x, dy = map(self._readable, inputs)
        result = dw if dw.flags.c_contiguous and dw.flags.aligned else np.empty(dw.shape, dw.dtype)
        missing = (0,) * (len(AXES) - self.problem.ndim)
        f = {"x": address(x), "y": address(dy), "w": address(result), "sums": scratch.take(work.sums_bytes)}
        for letter, array in (("x", x), ("y", dy)):
            n, _, *spatial = array.strides
            f |= dict(zip((letter + axis for axis in "ndhw"), (n, *missing, *spatial), strict=True))
        job = record_of(FIELDS, self._known | f)
        threads.run(self._loops, address(job), work.units, work.workers)
        job[_ADDS] = 1
        threads.run(self._loops, address(job), work.blocks, work.workers)
        if result is not dw:
            dw[...] = result

    def _readable(self, array: Any) -> Any:
        """Return an array whose channels are neighbours: itself if they are."""
        if array.flags.aligned and (array.strides[1] == self.work.size or array.shape[1] == 1):
            return array
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
