"""Phases of an input gradient, each contiguous, brought together in its rows."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.formats import size_of
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, integer, move, record
from fastconv.backends.cpu.shuffles import interleaved
from fastconv.backends.cpu.simd import Emitter, literals

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh               | the gradient and its strides; columns are neighbours
    depth height width          | its sizes
    groups channels             | groups, and channels of one
    sd sh sw                    | the convolution's stride: how many phases there are along each axis
    table                       | six words a phase: address and strides of image, group, channel, depth, row
    zeros                       | as many as a phase has columns
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)

# Bytes of a phase in the table.
ENTRY = 6 * 8

# Numbers of phases that are brought together in registers.
WAYS = (2, 4)


@intrinsic(prefer_literal=True)
def weave(typingctx, ways, lanes, bits, target, sources, count):
    """Store ``count`` elements taken in turn from as many addresses as there are ``ways``, a tuple."""
    given = (ways, lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    phases, width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, sources, count = args[3:]
        e = Emitter(builder, element, width)
        addresses = [builder.extract_value(sources, i) for i in range(phases)]
        step = phases * width
        zero, one = count.type(0), count.type(1)

        def whole(index: Any, values: list[Any]) -> list[Any]:
            at = e.times(index, width * e.bytes)
            woven = interleaved(e, [e.load(e.at(address, at)) for address in addresses])
            for i, vector in enumerate(woven):
                e.store(vector, e.at(target, e.times(index, step * e.bytes), i * width * e.bytes))
            return []

        rounds = builder.sdiv(count, count.type(step))
        with builder.if_then(builder.icmp_signed(">", rounds, zero)):
            e.loop(rounds, [], whole)
        left = builder.sub(count, e.times(rounds, step))
        with builder.if_then(builder.icmp_signed(">", left, zero)):
            done = e.times(rounds, width * e.bytes)
            each = [builder.sdiv(e.at(left, phases - 1 - i), count.type(phases)) for i in range(phases)]
            loaded = [
                e.load_masked(e.at(address, done), e.first(n)) for address, n in zip(addresses, each, strict=True)
            ]
            out = e.at(target, e.times(rounds, step * e.bytes))
            for i, vector in enumerate(interleaved(e, loaded)):
                there = builder.sub(left, count.type(i * width))
                with builder.if_then(builder.icmp_signed(">=", there, one)):
                    e.store_masked(vector, e.at(out, i * width * e.bytes), e.first(there))
        return context.get_dummy_value()

    kind = types.UniTuple(types.int64, phases)
    return types.void(*given, types.int64, kind, types.int64), codegen


@inlined
def _row(job, phase, image, group, channel, d, h):
    """Return the address of a phase's row."""
    start = integer(phase)
    if start == 0:
        return job.zeros
    start += image * integer(phase + 8) + group * integer(phase + 16) + channel * integer(phase + 24)
    return start + d * integer(phase + 32) + h * integer(phase + 40)


@cache
def interleaving(ways: int, lanes: int, bits: int) -> Any:
    """Return the compiled ``interleave(job, start, stop, worker)``, which does a range of (image, channel).

    ``ways`` is one of `WAYS` and the stride of columns, or 0 for any.
    """
    size = size_of(bits)
    sources = fingerprint()

    @callback(task_type(JOB))
    def interleave(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            channel = unit % job.channels
            group = unit // job.channels % job.groups
            image = unit // (job.channels * job.groups)
            x = job.x + image * job.xn + (group * job.channels + channel) * job.xc
            for d in range(job.depth):
                for phase in range(min(job.sh, job.height)):
                    entry = job.table + (d % job.sd * job.sh + phase) * job.sw * ENTRY
                    some = 0
                    for b in range(job.sw):
                        some |= integer(entry + b * ENTRY)
                    down = d // job.sd
                    for row in range((job.height - phase + job.sh - 1) // job.sh):
                        target = x + d * job.xd + (row * job.sh + phase) * job.xh
                        if some == 0:
                            clear(target, job.width * size)
                        elif ways == 2:
                            two = (
                                _row(job, entry, image, group, channel, down, row),
                                _row(job, entry + ENTRY, image, group, channel, down, row),
                            )
                            weave(2, lanes, bits, target, two, job.width)
                        elif ways == 4:
                            four = (
                                _row(job, entry, image, group, channel, down, row),
                                _row(job, entry + ENTRY, image, group, channel, down, row),
                                _row(job, entry + 2 * ENTRY, image, group, channel, down, row),
                                _row(job, entry + 3 * ENTRY, image, group, channel, down, row),
                            )
                            weave(4, lanes, bits, target, four, job.width)
                        else:
                            for b in range(min(job.sw, job.width)):
                                source = _row(job, entry + b * ENTRY, image, group, channel, down, row)
                                for i in range((job.width - b + job.sw - 1) // job.sw):
                                    move(target + (i * job.sw + b) * size, source + i * size, size)

    return interleave
