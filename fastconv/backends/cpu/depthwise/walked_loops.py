"""The loops around the depthwise micro-kernel that walks down strips of columns."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.depthwise.walked_tile import walk
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import record

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xh heights widths   | the input, its strides and sizes
    y yn yk yh oh ow            | the output, its strides and sizes
    w wc wstep                  | the weight, a channel of it, a tap
    bias residual activation    | addresses, 0 for none
    channels pairs bands band   | channels, those that are done together; bands of rows
    before_h before_w zeros     | padding before; address of zeros that stand for a row of it
    far                         | whether rows are fetched ahead
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@cache
def loops(planes: int, vectors: int, lanes: int, bits: int, fused: int, stride: int) -> Any:
    """Return the compiled ``run(job, start, stop, worker)``, which does a range of units; see `walk`."""
    width, size = vectors * lanes, bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        # Divisions take as long as a small plane: later units count on.
        band, rest = start % job.bands, start // job.bands
        pair, image = rest % job.pairs, rest // job.pairs
        for _ in range(start, stop):
            # The last band, planes and strip overlap the ones before: what is computed twice comes out the same.
            row = min(band * job.band, job.oh - job.band)
            channel = min(pair * planes, job.channels - planes)
            x = job.x + image * job.xn + channel * job.xc
            bias = job.bias + channel * size if job.bias else 0
            offset = image * job.yn + channel * job.yk + row * job.yh
            for start_col in range(0, job.ow, width):
                col = max(0, min(start_col, job.ow - width))
                at = offset + col * size
                across = col * stride - job.before_w
                walk(
                    planes, vectors, lanes, bits, fused, stride,
                    (x + across * size, job.xc, job.xh, row * stride - job.before_h, job.heights, across, job.widths,
                     job.w + channel * job.wc, job.wc, job.wstep, job.y + at, job.yk, job.yh, job.band, job.ow - col,
                     bias, job.residual + at if job.residual else 0, job.activation, job.zeros, job.far),
                )  # fmt: skip
            band += 1
            if band == job.bands:
                band, pair = 0, pair + 1
                if pair == job.pairs:
                    pair, image = 0, image + 1

    return run
