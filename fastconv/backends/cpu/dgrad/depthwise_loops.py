"""The loops around the micro-kernel of the depthwise input gradient, and the run that starts them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.dgrad.depthwise_tile import cells_tile
from fastconv.backends.cpu.dgrad.depthwise_work import Work
from fastconv.backends.cpu.dgrad.exact import input_gradient
from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.dgrad.unturned import Finite, Weight
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.scratch import address, contiguous
from fastconv.problem import AXES

_FIELDS = """
    y yn yk yd yh w                 | the output's gradient and its strides: image, channel, plane, row; the weight
    x xn xc xd xh                   | the gradient and its strides
    channels band                   | channels; rows of cells that are done together
    planes rows cols                | sizes of the gradient
    depths heights widths           | sizes of the output's gradient
    depth row col                   | the first element that the first cells read
    zeros                           | address of zeros that stand for a row of padding
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_ARRAYS = FIELDS.index("channels")


@cache
def loops(
    lanes: int, bits: int, fused: int, deep: tuple[int, ...], down: tuple[int, ...], right: tuple[int, ...], held: int
) -> Any:
    """Return compiled loops ``run(job, start, stop, worker)``, which do a range of channels of images.

    The parameters are those of `cells_tile`; ``deep``, ``down`` and ``right`` are its four of an axis.
    """
    size = bits // 8
    (kd, sd, dd, bd), (kh, sh, dh, bh), (kw, sw, dw, bw) = deep, down, right
    taps = kd * kh * kw
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        cells = (job.cols + sw - 1) // sw
        for unit in range(start, stop):
            image, channel = unit // job.channels, unit % job.channels
            y, x = job.y + image * job.yn + channel * job.yk, job.x + image * job.xn + channel * job.xc
            w = job.w + channel * taps * size
            for deep in range(0, job.planes, sd):
                for top in range(0, job.rows, sh * job.band):
                    row, rows = job.row + top // sh, min(sh * job.band, job.rows - top)
                    for cell in range(0, cells, lanes):
                        # The last vector overlaps the one before: what is computed twice comes out the same.
                        first = max(0, min(cell, cells - lanes))
                        left = job.cols - sw * first
                        at = x + deep * job.xd + top * job.xh + sw * first * size
                        values = (
                            y, job.yd, job.yh, job.depth + deep // sd, row, job.col + first,
                            job.depths, job.heights, job.widths, job.zeros, w,
                            at, job.xd, job.xh, job.planes - deep, rows, left,
                        )  # fmt: skip
                        if left >= sw * lanes:
                            cells_tile(
                                lanes, bits, fused, kd, sd, dd, bd, kh, sh, dh, bh, kw, sw, dw, bw, held, 0, values
                            )
                        else:
                            cells_tile(
                                lanes, bits, fused, kd, sd, dd, bd, kh, sh, dh, bh, kw, sw, dw, bw, held, 1, values
                            )

    return run


class CellsRunner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem, self._finite = work, work.problem, Finite(work.problem, work)
        forms = ((axis.kernel, axis.stride, axis.dilation, axis.before % axis.stride) for axis in work.axes)
        self._loops = loops(work.vector, 8 * work.size, int(work.simd.fma), *forms, work.held).address
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        f = {"channels": self.problem.ic, "band": work.band, "zeros": address(self._zeros)}
        f |= dict(zip(("planes", "rows", "cols"), (axis.size for axis in work.axes), strict=True))
        f |= dict(zip(("depths", "heights", "widths"), (axis.out for axis in work.axes), strict=True))
        f |= dict(zip(("depth", "row", "col"), (shifts_of(axis).first for axis in work.axes), strict=True))
        self._known = record_of(FIELDS, f)
        # Strides of axes that the arrays lack.
        self._missing = (0,) * (len(AXES) - self.problem.ndim)

    def pack(self, w: Any) -> Weight:
        """Return the weight as `run` takes it where the problem is prepacked."""
        w = contiguous(w)
        return Weight(w, address(w), self._finite(w))

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        dy, w = inputs
        (dx,) = outputs
        weight = w if self.problem.prepacked else self.pack(w)
        if not weight.finite:  # padding must not be multiplied
            input_gradient(self.problem, dy, weight.array, dx)
            return
        dy, result = (array if self._fits(array) else np.empty(array.shape, array.dtype) for array in (dy, dx))
        if dy is not inputs[0]:
            dy[...] = inputs[0]
        job = self._known.copy()
        read, written, no = dy.strides, result.strides, self._missing
        job[:_ARRAYS] = (
            address(dy), *read[:2], *no, *read[2:-1], weight.address,
            address(result), *written[:2], *no, *written[2:-1],
        )  # fmt: skip
        threads.run(self._loops, address(job), self.work.units, self.work.workers)
        if result is not dx:
            dx[...] = result

    def _fits(self, array: Any) -> bool:
        """Whether the columns of an array are neighbours."""
        return bool(array.flags.aligned) and array.strides[-1] == self.work.size
