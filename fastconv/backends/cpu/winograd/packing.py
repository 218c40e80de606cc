"""Weights transformed as Winograd's convolution reads them: block of output channels, point, input channel, lane."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear
from fastconv.backends.cpu.winograd.transforms import gather_lanes, transform_filter

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    w stride down               | the weight: for each output channel adjacent elements, rows a stride apart; turned:
                                | for each input channel, rows ``down`` apart, its filters a stride apart
    packed wblock wpoint wlast  | the result; a block of output channels, a point of it, and of the last
    ic padded                   | input channels of a group, and with those of zero that fill the last chunk
    oc blocks vectors tail      | output channels of a group, their blocks, vectors of a block and of the last
    scratch scratch_bytes       | where the workers' scratch begins, and how far apart they are
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)

# How many input channels ahead a turned weight is fetched.
_AHEAD = 4


@cache
def pack_kernel(m: int, extent: int, lanes: int, bits: int, fused: int, turned: int) -> Any:
    """Return the compiled packing ``run(job, start, stop, worker)``; a unit is a block of output channels.

    ``turned``: the weight is that of the gradient's convolution, channels exchanged and taps in reverse order.
    """
    size = bits // 8
    width = lanes * size
    points = extent**2
    elements = (extent - m + 1) ** 2  # of a filter
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        filters = job.scratch + worker * job.scratch_bytes
        for unit in range(start, stop):
            group, block = unit // job.blocks, unit % job.blocks
            last = block == job.blocks - 1
            count, point = (job.tail, job.wlast) if last else (job.vectors, job.wpoint)
            for v in range(count):
                first = (block * job.vectors + v) * lanes
                rows = min(lanes, job.oc - first)
                source = job.w + (group * job.oc + first) * job.stride
                target = job.packed + unit * job.wblock + v * width
                for c in range(job.ic if turned else 0):
                    source = job.w + c * job.down + (group * job.oc + first) * job.stride
                    for e in range(0, elements, lanes):
                        gather_lanes(
                            lanes, bits, source + e * size, job.stride, rows, min(lanes, elements - e),
                            filters + e * width, _AHEAD * job.down,
                        )  # fmt: skip
                    transform_filter(m, extent, lanes, bits, fused, 1, filters, target + c * count * width, point)
                for c in range(0 if turned else job.ic):
                    if c % lanes == 0:
                        terms = min(lanes, job.ic - c) * elements
                        for e in range(0, terms, lanes):
                            gather_lanes(
                                lanes, bits, source + (c * elements + e) * size, job.stride, rows,
                                min(lanes, terms - e), filters + e * width, lanes * elements * size,
                            )  # fmt: skip
                    transform_filter(
                        m, extent, lanes, bits, fused, 0,
                        filters + c % lanes * elements * width, target + c * count * width, point,
                    )  # fmt: skip
                for c in range(job.ic, job.padded):
                    for p in range(points):
                        clear(target + c * count * width + p * point, width)

    return run
