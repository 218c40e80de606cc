"""The loops around the micro-kernel of the depthwise weight gradient, and the run that starts them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.depthwise.wgrad_tile import add_lanes, wgrad_tile
from fastconv.backends.cpu.depthwise.work import WGRAD_ROWS, Work
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import clear, record
from fastconv.backends.cpu.scratch import address
from fastconv.problem import AXES

_FIELDS = """
    x xn xc xd xh               | the input and its strides: image, channel, depth, row
    y yn yk yd yh               | the output's gradient and its strides
    w images multiplier taps    | the weight's gradient; images; output channels of an input channel; kernel positions
    kd kh kw                    | kernel sizes
    depths heights widths       | input sizes
    od oh ow                    | output sizes
    stride_d stride_h stride_w  | input positions from one output to the next
    dilation_d dilation_h dilation_w    | input positions from one kernel position to the next
    before_d before_h before_w  | padding before
    zeros                       | address of zeros that stand for a row of padding
    sums sums_bytes             | where the workers keep a vector for each kernel position, and how far apart
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_X, _Y, _W, _SUMS = (FIELDS.index(name) for name in ("x", "y", "w", "sums"))


@cache
def loops(lanes: int, bits: int, fused: int, height: int, cols: int, stride: int, phases: int) -> Any:
    """Return compiled loops ``run(job, start, stop, worker)``, which do a range of output channels.

    The parameters are those of `wgrad_tile`. The sum of a weight is taken in one order: image, depth, block of
    columns, row, and the lanes at the end.
    """
    size, many = bits // 8, WGRAD_ROWS
    vector = lanes * size
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        sums = job.sums + worker * job.sums_bytes
        rounds = job.oh // many
        rest = job.oh - rounds * many
        for k in range(start, stop):
            clear(sums, job.taps * vector)
            for image in range(job.images):
                x = job.x + image * job.xn + k // job.multiplier * job.xc
                for depth in range(job.od):
                    plane = job.y + image * job.yn + k * job.yk + depth * job.yd
                    for first in range(0, job.ow, lanes):
                        left, dy, at = job.ow - first, plane + first * size, sums
                        for tap_d in range(job.kd):
                            deep = depth * job.stride_d - job.before_d + tap_d * job.dilation_d
                            for tap_h in range(0, job.kh, height):
                                row = tap_h * job.dilation_h - job.before_h
                                for tap_w in range(0, job.kw, cols):
                                    col = first * phases - job.before_w + tap_w * job.dilation_w
                                    if rounds:
                                        wgrad_tile(
                                            many, lanes, bits, fused, height, cols, stride, phases,
                                            x, job.xd, job.xh, size, deep, row, col,
                                            job.depths, job.heights, job.widths,
                                            job.dilation_w, job.stride_h, job.zeros,
                                            dy, job.yh, left, rounds, at,
                                        )  # fmt: skip
                                    if rest:
                                        wgrad_tile(
                                            1, lanes, bits, fused, height, cols, stride, phases,
                                            x, job.xd, job.xh, size, deep, row + rounds * many * job.stride_h, col,
                                            job.depths, job.heights, job.widths,
                                            job.dilation_w, job.stride_h, job.zeros,
                                            dy + rounds * many * job.yh, job.yh, left, rest, at,
                                        )  # fmt: skip
                                    at += height * cols * vector
            # Sums stand by group of kernel rows, kernel column, kernel row; weights by kernel row and column.
            at = sums
            for top in range(0, job.kd * job.kh, height):
                for tap_w in range(job.kw):
                    for tap_h in range(height):
                        add_lanes(lanes, bits, at, job.w + (k * job.taps + (top + tap_h) * job.kw + tap_w) * size)
                        at += vector

    return run


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        rows = work.kernel_rows
        stride = work.height.stride if rows > 1 else 1
        form = (work.tile.lanes, 8 * work.size, int(work.simd.fma), rows, work.kernel_cols, stride, work.phases)
        self._loops = loops(*form).address
        self._fields = self._known()

    def _known(self) -> dict[str, int]:
        p, work = self.problem, self.work
        f = {"images": p.n, "multiplier": work.multiplier, "taps": work.taps, "zeros": address(self._zeros)}
        f["sums_bytes"] = work.sums_bytes
        for name, size, axis in zip(AXES, ("depths", "heights", "widths"), work.axes, strict=True):
            f |= {"k" + name: axis.kernel, "o" + name: axis.out, size: axis.size, "stride_" + name: axis.stride}
            f |= {"dilation_" + name: axis.dilation, "before_" + name: axis.before}
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        x, dy = map(self._readable, inputs)
        (dw,) = outputs
        result = dw if dw.flags.c_contiguous and dw.flags.aligned else np.empty(dw.shape, dw.dtype)
        job = self._job(x, dy, result)
        threads.run(self._loops, address(job), self.problem.oc, self.work.workers)
        if result is not dw:
            dw[...] = result

    def _job(self, x: Any, dy: Any, dw: Any) -> Any:
        """Return the record that the loops read."""
        missing = (0,) * (len(AXES) - self.problem.ndim)
        f = self._fields | dict(zip(("xn", "xc", "xd", "xh"), (*x.strides[:2], *missing, *x.strides[2:]), strict=False))
        f |= dict(zip(("yn", "yk", "yd", "yh"), (*dy.strides[:2], *missing, *dy.strides[2:]), strict=False))
        job = record_of(FIELDS, f)
        job[_X], job[_Y], job[_W] = address(x), address(dy), address(dw)
        job[_SUMS] = scratch.take(self.work.workers * self.work.sums_bytes)
        return job

    def _readable(self, array: Any) -> Any:
        """Return an array whose columns are neighbours: itself if they are."""
        return array if array.flags.aligned and array.strides[-1] == self.work.size else array.copy(order="C")
