"""Weights taken apart into phases and transformed: block of output channels, point, (input channel, phase), channel."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, record
from fastconv.backends.cpu.simd import Emitter, literals
from fastconv.backends.cpu.winograd.points import matrices
from fastconv.backends.cpu.winograd.transforms import both_axes, gather_lanes

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    w packed scratch        | the weight, the result, where the workers' scratch begins
    ic oc vectors           | channels of a group; vectors of output channels
    taps phases places      | kernel positions; phases, and where the taps of each lie in the scratch
    filter_bytes            | bytes of a worker's scratch
    block group point       | of the result: a block of output channels, a group, a point
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)


@intrinsic(prefer_literal=True)
def _transform_filter(typingctx, m, extent, rows, lanes, bits, fused, source, places, target, block, point):
    """Transform the vectors of a phase, and store ``rows`` lanes of each together, then the next ``block`` bytes on."""
    shape = literals(m, extent, rows, lanes, bits, fused)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, places, target, block, point = args[6:]
        m, extent, rows, lanes, bits, fused = shape
        e = Emitter(builder, bits, lanes, bool(fused))
        taps, piece = extent - m + 1, min(rows, lanes)

        def load(i: int, j: int) -> Any:
            return e.load(e.at(source, e.load_integer(e.at(places, 8 * (i * taps + j)))))

        matrix = matrices(m, taps).filter
        for line in both_axes(e, matrix, matrix, load):
            for value in line:
                address = target
                for first in range(0, lanes, piece):
                    e.store_part(value, e.at(address, -first * e.bytes), first, piece)
                    address = builder.add(address, block)
                target = builder.add(target, point)
        return context.get_dummy_value()

    return types.void(m, extent, rows, lanes, bits, fused, *(types.int64,) * 5), codegen


@cache
def pack_kernel(m: int, extent: int, rows: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled packing ``run(job, start, stop, worker)``; a unit is a vector of output channels."""
    size = bits // 8
    width = lanes * size
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        filters = job.scratch + worker * job.filter_bytes
        clear(filters + job.filter_bytes - width, width)
        for unit in range(start, stop):
            group, first = unit // job.vectors, unit % job.vectors * lanes
            # Beyond the last channel it is repeated.
            channel = min(first, job.oc - 1)
            step = job.ic * job.taps * size
            source = job.w + (group * job.oc + channel) * step
            target = job.packed + group * job.group + first // rows * job.block + first % rows * size
            for c in range(job.ic):
                for e in range(0, job.taps, lanes):
                    gather_lanes(
                        lanes, bits, source + (c * job.taps + e) * size, step, min(lanes, job.oc - channel),
                        min(lanes, job.taps - e), filters + e * width, 0,
                    )  # fmt: skip
                for phase in range(job.phases):
                    _transform_filter(
                        m, extent, rows, lanes, bits, fused, filters,
                        job.places + phase * 8 * (extent - m + 1) ** 2,
                        target + (c * job.phases + phase) * rows * size, job.block, job.point,
                    )  # fmt: skip

    return run
