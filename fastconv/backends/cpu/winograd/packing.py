"""Weights transformed as Winograd's convolution reads them: block of output channels, point, input channel, lane."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, types

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.memory import clear
from fastconv.backends.cpu.winograd.transforms import gather_lanes, transform_filter

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    w stride                    | the weight: for each output channel adjacent elements, rows a stride apart
    packed wblock wpoint wlast  | the result; a block of output channels, a point of it, and of the last
    ic padded                   | input channels of a group, and with those of zero that fill the last chunk
    oc blocks vectors tail      | output channels of a group, their blocks, vectors of a block and of the last
    scratch scratch_bytes       | where the workers' scratch begins, and how far apart they are
"""
JOB = np.dtype([(name, np.int64) for line in _FIELDS.strip().splitlines() for name in line.split("|")[0].split()])


@cache
def pack_kernel(m: int, extent: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled packing ``run(job, start, stop, worker)``; a unit is a block of output channels."""
    size = bits // 8
    width = lanes * size
    points = extent**2
    elements = (extent - m + 1) ** 2  # of a filter
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64))
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
                for c in range(job.ic):
                    if c % lanes == 0:
                        terms = min(lanes, job.ic - c) * elements
                        for e in range(0, terms, lanes):
                            gather_lanes(
                                lanes, bits, source + (c * elements + e) * size, job.stride, rows,
                                min(lanes, terms - e), filters + e * width, lanes * elements * size,
                            )  # fmt: skip
                    transform_filter(
                        m,
                        extent,
                        lanes,
                        bits,
                        fused,
                        filters + c % lanes * elements * width,
                        target + c * count * width,
                        point,
                    )
                for c in range(job.ic, job.padded):
                    for p in range(points):
                        clear(target + c * count * width + p * point, width)

    return run
