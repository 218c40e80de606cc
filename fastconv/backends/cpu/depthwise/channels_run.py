"""The loops around the tiles of depthwise convolution with channels in the lanes, and the run that starts them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastconv.backends.cpu import runner
from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.depthwise.channels_tile import Form, tile
from fastconv.backends.cpu.depthwise.channels_work import Work
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.packing import Packer
from fastconv.backends.cpu.runner import Packed, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.problem import AXES, Sizes

_FIELDS = """
    xn xd xh xw yn yd yh yw             | strides of the input and of the output: image, depth, row, column
    kd groups                           | kernel depths, groups of kernel rows
    depths heights widths               | input sizes
    od oh ow                            | output sizes
    stride_d stride_h stride_w          | input positions from one output to the next
    dilation_d dilation_h dilation_w    | input positions from one kernel position to the next
    before_d before_h before_w          | padding before
    down rows                           | rows of tiles of a plane, output rows of a tile
    vectors blocks rest part            | vectors of channels, whole ones, channels behind; vectors done together
    vector wblock                       | bytes of a vector, and of its weights
    stretches pieces cols full          | units of a row; pieces of its columns, columns of a full piece, such pieces
    tile less                           | addresses of the tiles: of full pieces, of one column less
    activation zeros                    | address of its constants; of zeros for the channels of a part
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@inlined
def first_inside(at, step):
    """Return the first of the positions ``at``, ``at + step`` and so on that is not negative."""
    return -(at // step) if at < 0 else 0


@inlined
def first_beyond(at, step, size):
    """Return the first of the positions ``at``, ``at + step`` and so on that is not below a size; 0 if all are not."""
    return max(0, (size - at + step - 1) // step)


@cache
def loops() -> Any:
    """Return compiled loops ``run(job, start, stop, worker)``; a unit is a stretch of a row of outputs."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            line, stretch = unit // job.stretches, unit % job.stretches
            # The last row of tiles overlaps the one before: what is computed twice comes out the same.
            plane, row = line // job.down, min(line % job.down * job.rows, job.oh - job.rows)
            image, depth = plane // job.od, plane % job.od
            deep, high = depth * job.stride_d - job.before_d, row * job.stride_h - job.before_h
            front, back = first_inside(deep, job.dilation_d), first_beyond(deep, job.dilation_d, job.depths)
            top, bottom = first_inside(high, job.dilation_h), first_beyond(high, job.dilation_h, job.heights)
            x = job.x + image * job.xn + deep * job.xd + high * job.xh
            offset = image * job.yn + depth * job.yd + row * job.yh
            begin, end = stretch * job.pieces // job.stretches, (stretch + 1) * job.pieces // job.stretches
            for first in range(0, job.vectors, job.part):
                base, whole = first * job.vector, min(job.part, job.blocks - first)
                rest = job.rest if first + job.part > job.blocks else 0
                bias = job.bias + base if job.bias else 0
                for piece in range(begin, end):
                    full = piece < job.full
                    col = piece * job.cols - max(0, piece - job.full)
                    across = col * job.stride_w - job.before_w
                    at = offset + col * job.yw + base
                    call(job.tile if full else job.less, (
                        x + across * job.xw + base, job.dilation_d * job.xd, job.dilation_h * job.xh, job.xw,
                        job.kd, front, back, job.groups, top, bottom, -across, job.widths - across,
                        job.stride_w, job.dilation_w, job.y + at, job.yh, job.yw, job.w + first * job.wblock,
                        job.wblock, whole, rest, bias, job.residual + at if job.residual else 0, job.activation,
                        job.zeros,
                    ))  # fmt: skip

    return run


class Runner(runner.Runner):
    """Runs one problem on arrays of any strides."""

    fields = FIELDS

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, 0)
        self.work = work
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        self._loops = loops().address
        self._known = self._fields()
        self._packer = Packer(
            8 * work.size, work.lanes, 1, work.problem.ic, work.taps, work.lanes, work.taps,
            [np.arange(work.taps) * work.vector] * 2, work.workers,
        )  # fmt: skip

    def _fields(self) -> dict[str, int]:
        work, (rows, cut) = self.work, self.work.tile
        whole, rest = divmod(self.problem.ic, work.lanes)
        f = {"vectors": work.blocks, "blocks": whole, "rest": rest, "part": work.part}
        f |= {"vector": work.vector, "wblock": work.taps * work.vector, "zeros": address(self._zeros)}
        f |= {"stretches": work.stretches, "pieces": cut.pieces, "cols": cut.size, "full": cut.full}
        f |= {"activation": self.activation, "kd": work.axes[0].kernel}
        f |= {"groups": work.axes[1].kernel // work.height, "down": work.tiles_down, "rows": rows}
        for name, size, axis in zip(AXES, ("depths", "heights", "widths"), work.axes, strict=True):
            f |= {"o" + name: axis.out, size: axis.size, "stride_" + name: axis.stride}
            f |= {"dilation_" + name: axis.dilation, "before_" + name: axis.before}
        looped = int(work.axes[0].kernel > 1 or work.height < work.axes[1].kernel)
        down = work.axes[1].stride if rows > 1 else 1
        for name, (many, cols) in zip(("tile", "less"), cut.spans, strict=True):
            if many:
                form = Form(rows, cols, work.height, work.axes[2].kernel, down, *work.steps, looped, int(rest > 0))
                f[name] = tile(form, work.lanes, 8 * work.size, int(work.simd.fma)).address
        return f

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        packed = new(self.work.packed_size * self.work.size)
        where = address(packed)
        self._packer.pack(w.reshape(self.problem.oc, self.work.taps), where)
        return Packed(packed, where)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `runner.Runner`."""
        if x[1] != self.work.size or y[1] != self.work.size:
            return None
        f = self._known | dict(zip(("xn", "xd", "xh", "xw"), (x[0], *x[2:]), strict=True))
        return f | dict(zip(("yn", "yd", "yh", "yw"), (y[0], *y[2:]), strict=True)), self._loops, None
