"""The loops around the micro-kernel of the depthwise input gradient, and the run that starts them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.dgrad.depthwise_tile import pairs_tile
from fastconv.backends.cpu.dgrad.depthwise_work import Work
from fastconv.backends.cpu.dgrad.exact import input_gradient
from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.dgrad.unturned import Finite, Weight
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.scratch import address, contiguous

_FIELDS = """
    y yn yk yh w                | the output's gradient and its strides: image, channel, row; the weight
    x xn xc xh                  | the gradient and its strides
    channels band               | channels; pairs of rows that are done together
    rows cols heights widths    | sizes of the gradient and of the output's
    row col                     | the first element that the first pairs read
    zeros                       | address of zeros that stand for a row of padding
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_ARRAYS = FIELDS.index("channels")


@cache
def loops(lanes: int, bits: int, fused: int, kh: int, kw: int, odd_top: int, odd_side: int, held: int) -> Any:
    """Return compiled loops ``run(job, start, stop, worker)``, which do a range of planes.

    The parameters are those of `pairs_tile`.
    """
    size = bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        pairs = (job.cols + 1) // 2
        for unit in range(start, stop):
            image, channel = unit // job.channels, unit % job.channels
            y, x = job.y + image * job.yn + channel * job.yk, job.x + image * job.xn + channel * job.xc
            w = job.w + channel * kh * kw * size
            for top in range(0, job.rows, 2 * job.band):
                row, rows = job.row + top // 2, min(2 * job.band, job.rows - top)
                for pair in range(0, pairs, lanes):
                    # The last vector overlaps the one before: what is computed twice comes out the same.
                    first = max(0, min(pair, pairs - lanes))
                    left = job.cols - 2 * first
                    at = x + top * job.xh + 2 * first * size
                    if left >= 2 * lanes:
                        pairs_tile(
                            lanes, bits, fused, kh, kw, odd_top, odd_side, held, 0,
                            y, job.yh, row, job.col + first, job.heights, job.widths, job.zeros, w,
                            at, job.xh, rows, left,
                        )  # fmt: skip
                    else:
                        pairs_tile(
                            lanes, bits, fused, kh, kw, odd_top, odd_side, held, 1,
                            y, job.yh, row, job.col + first, job.heights, job.widths, job.zeros, w,
                            at, job.xh, rows, left,
                        )  # fmt: skip

    return run


class PairsRunner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem, self._finite = work, work.problem, Finite(work.problem, work)
        _, height, width = work.axes
        kernel = (height.kernel, width.kernel, height.before % 2, width.before % 2)
        self._loops = loops(work.vector, 8 * work.size, int(work.simd.fma), *kernel, int(work.held)).address
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        self._known = record_of(FIELDS, {
            "channels": self.problem.ic, "band": work.band, "zeros": address(self._zeros),
            "rows": height.size, "cols": width.size, "heights": height.out, "widths": width.out,
            "row": shifts_of(height).first, "col": shifts_of(width).first,
        })  # fmt: skip

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
        yn, yk, yh, _ = dy.strides
        xn, xc, xh, _ = result.strides
        job[:_ARRAYS] = address(dy), yn, yk, yh, weight.address, address(result), xn, xc, xh
        threads.run(self._loops, address(job), self.work.units, self.work.workers)
        if result is not dx:
            dx[...] = result

    def _fits(self, array: Any) -> bool:
        """Whether the columns of an array are neighbours."""
        return bool(array.flags.aligned) and array.strides[-1] == self.work.size
