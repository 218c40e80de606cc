"""What becomes of sums: those of slices of the reduction are added up, and all go to rows of dw."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import inlined
from fastconv.backends.cpu.simd import Emitter, literals
from fastconv.backends.cpu.wgrad.tile import lift, turn


@intrinsic(prefer_literal=True)
def _add(typingctx, lanes, bits, target, source):
    """Add a vector to another one, in memory."""
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source = args[2:]
        e = Emitter(builder, element, width)
        e.store(builder.fadd(e.load(target), e.load(source)), target)
        return context.get_dummy_value()

    return types.void(lanes, bits, types.int64, types.int64), codegen


@inlined
def add_slices(lanes, accumulated, vector, job, room):
    """Add the sums of all slices to those of the first, always in the same order; ``vector``: bytes of one."""
    for part in range(1, job.slices):
        for at in range(0, job.unit_sums, vector):
            _add(lanes, accumulated, room + at, room + part * job.unit_sums + at)


@inlined
def first_input(job, block):
    """Return the first input of a block. Where x is read directly, the last block overlaps the one before."""
    return min(block * job.channels, job.inputs - job.channels) if job.direct else block * job.channels


@inlined
def store_sums(lanes, accumulated, bits, vector, size, job, group, part, k, room):
    """Store the sums of a block of output channels and some blocks of inputs in rows of dw.

    ``vector`` and ``size``: bytes of a vector of sums, and of an element of dw.
    """
    is_last = k == job.kblocks - 1
    wide, order = (job.tail, job.tail_order) if is_last else (job.vectors, job.order)
    pixel = wide * vector
    first_c, last_c = part * job.csuper, min((part + 1) * job.csuper, job.cblocks)
    first_k = k * job.vectors * lanes
    for v in range(wide):
        outputs = min(lanes, job.outputs - first_k - v * lanes)
        row = job.dw + (group * job.outputs + first_k + v * lanes) * job.dwk
        for c in range(first_c, last_c):
            first = first_input(job, c)
            entries = min(job.channels, job.inputs - first) * job.kernel
            if job.spread:
                entries = job.spread * job.kernel
            from_ = room + (c - first_c) * job.ntiles * job.span * pixel + v * vector
            if job.turned:
                to = job.dw + (group * job.inputs + first) * job.dwe + (first_k + v * lanes) * size
                for e in range(entries):
                    lift(lanes, accumulated, bits, 0, from_ + e * pixel, outputs, to + e * job.dwe)
                continue
            for e in range(0, entries, lanes):
                turn(
                    lanes, accumulated, bits, 1, 0, from_, order + 8 * e, min(lanes, entries - e), outputs,
                    row + (first * job.kernel + e) * size, job.wsteps,
                )  # fmt: skip
