"""Weights transformed as Winograd's convolution reads them: block of output channels, point, input channel, lane."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, record
from fastconv.backends.cpu.winograd.transforms import gather_lanes, separate_taps, transform_filter

# What every run fills in, addresses and (in bytes) strides: the weight, of which for each output channel adjacent
# elements are taken, rows a stride apart, or turned, for each input channel, rows ``down`` apart, its filters a stride
# apart; which elements of a filter's plane the taps of each phase are; the result; where the workers' scratch begins.
HEAD = ("w", "stride", "down", "places", "packed", "scratch")

# Sizes and (in bytes) strides.
_FIELDS = """
    wpoint wlast                | the result: a point of a block of output channels, and of the last
    ic padded depths            | input channels of a group, and with those of zero that fill the last chunk; so many
                                | for every depth of the kernel
    phases points elements      | of the stride, of a tile, of a filter's plane
    oc blocks vectors tail      | output channels of a group, their blocks, vectors of a block and of the last
    wunit wworker               | how far apart the results of two units lie, and those of two workers
    scratch_bytes               | how far apart the workers' scratch is
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)

# How many input channels ahead a turned weight is fetched.
_AHEAD = 4


@cache
def pack_kernel(
    mh: int, mw: int, eh: int, ew: int, together: int, lanes: int, bits: int, fused: int, turned: int
) -> Any:  # fmt: skip
    """Return the compiled packing ``run(job, start, stop, worker)``; a unit is a block of output channels.

    ``together``: how many elements of a filter `separate_taps` takes at once, 0 if it does not.
    ``turned``: the weight is that of the gradient's convolution, channels exchanged and taps in reverse order.
    """
    size = bits // 8
    width = lanes * size
    taps = (eh - mh + 1) * (ew - mw + 1)  # of a phase
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        filters = job.scratch + worker * job.scratch_bytes
        filter_ = job.depths * job.elements
        for unit in range(start, stop):
            group, block = unit // job.blocks, unit % job.blocks
            last = block == job.blocks - 1
            count, point = (job.tail, job.wlast) if last else (job.vectors, job.wpoint)
            for v in range(count):
                first = (block * job.vectors + v) * lanes
                rows = min(lanes, job.oc - first)
                source = job.w + (group * job.oc + first) * job.stride
                target = job.packed + unit * job.wunit + worker * job.wworker + v * width
                for c in range(job.ic):
                    # Of a turned weight one channel's filters lie together, otherwise those of many.
                    apart = 0 if turned else c % lanes
                    if apart == 0:
                        terms = (1 if turned else min(lanes, job.ic - c)) * filter_
                        at = source + c * (job.down if turned else filter_ * size)
                        ahead = _AHEAD * job.down if turned else lanes * filter_ * size
                        if together and rows == lanes and job.depths == 1 and job.stride == filter_ * size:
                            separate_taps(together, lanes, bits, at, filters, ahead)
                        else:
                            for e in range(0, terms, lanes):
                                gather_lanes(
                                    lanes, bits, at + e * size, job.stride, rows, min(lanes, terms - e),
                                    filters + e * width, ahead,
                                )  # fmt: skip
                    for d in range(job.depths):
                        at = apart * filter_ + (job.depths - 1 - d if turned else d) * job.elements
                        for phase in range(job.phases):
                            transform_filter(
                                mh, mw, eh, ew, lanes, bits, fused, filters + at * width, job.places + phase * taps * 8,
                                target + ((phase * job.depths + d) * job.padded + c) * count * width, point,
                            )  # fmt: skip
                for d in range(job.phases * job.depths):
                    for c in range(job.ic, job.padded):
                        for p in range(job.points):
                            clear(target + (d * job.padded + c) * count * width + p * point, width)

    return run
