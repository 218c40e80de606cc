"""Turning a weight: output and input channels exchanged, taps in reverse order or only those of a phase."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.dgrad.interleave import weave
from fastconv.backends.cpu.finite import special
from fastconv.backends.cpu.formats import size_of
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import integer, move, record
from fastconv.backends.cpu.ordering import transpose_square
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Addresses and sizes; strides follow from them, since both weights are contiguous.
_FIELDS = """
    w                       | (groups, inputs, outputs, terms)
    inputs outputs terms    | of the forward convolutions, a group's; kernel positions of w
    parts count             | `PART` words for each of the forward convolutions
    block blocks            | output channels turned together, and how many such blocks a group has: units of work
    room room_bytes         | for a block of so many input channels, transposed; how far apart the workers' lie
    special                 | where to say that an element is not finite; 0 not to look
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)

# Of a forward convolution: the address of its weight, (groups, members, outputs, inputs, taps); members; taps; where
# the offsets are, in bytes, of every member's taps among the terms.
PART = 4

# How a weight is turned, beside the number of taps of a kernel that is turned whole.
PICK, TRANSPOSE = 0, 1


@intrinsic(prefer_literal=True)
def _reverse(typingctx, taps, lanes, bits, source, target, room):
    """Copy ``taps`` elements in reverse order; what follows them, of ``room`` elements, may be overwritten."""
    shape = literals(taps, lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count, width, element = shape
        source, target, room = args[3:]
        e = Emitter(builder, element, width)
        loaded = e.load_masked(source, e.first(count) if count < width else None)
        turned = e.shuffle(loaded, loaded, [count - 1 - i if i < count else i for i in range(width)])
        with builder.if_else(builder.icmp_signed(">=", room, I64(width)), likely=True) as (inside, end):
            with inside:
                e.store(turned, target)
            with end:
                e.store_masked(turned, target, e.first(count))
        return context.get_dummy_value()

    return types.void(taps, lanes, bits, *(types.int64,) * 3), codegen


@intrinsic(prefer_literal=True)
def _collect(typingctx, lanes, bits, source, table, taps, count, target, step):
    """Store, for ``count`` input channels, the elements of ``taps`` vectors of them, at ``source + table[tap]``."""
    shape = literals(lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, element = shape
        source, table, taps, count, target, step = args[2:]
        e = Emitter(builder, element, width)

        def load(tap: int) -> Any:
            # A tap that does not exist reads the last one's place.
            there = builder.icmp_signed("<", I64(tap), taps)
            index = builder.select(there, I64(tap), builder.sub(taps, I64(1)))
            return e.load(e.at(source, e.load_integer(e.at(table, e.times(index, 8)))))

        mask = e.first(taps)
        for i, vector in enumerate(e.transpose([load(tap) for tap in range(width)])):
            with builder.if_then(builder.icmp_signed("<", I64(i), count), likely=True):
                e.store_masked(vector, e.at(target, e.times(step, i)), mask)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 6), codegen


@inlined
def _pick(job, lanes, bits, part, room, first, channels, group, k, count):
    """Store the taps of every member for some output channels and ``count`` input channels, from vectors of these."""
    size, width = abs(bits) // 8, lanes * (abs(bits) // 8)
    members, taps = integer(part + 8), integer(part + 16)
    for m in range(members):
        table = integer(part + 24) + 8 * m * taps
        for c in range(channels):
            source = room + c * job.terms * width
            row = (group * members + m) * job.outputs + first + c
            at = integer(part) + (row * job.inputs + k) * taps * size
            if taps == 1:
                weave(1, lanes, bits, at, (source + integer(table),), count)
            elif taps == 2:
                weave(2, lanes, bits, at, (source + integer(table), source + integer(table + 8)), 2 * count)
            elif taps == 4:
                four = (
                    source + integer(table), source + integer(table + 8),
                    source + integer(table + 16), source + integer(table + 24),
                )  # fmt: skip
                weave(4, lanes, bits, at, four, 4 * count)
            else:
                for t in range(0, taps, lanes):
                    _collect(
                        lanes, bits, source, table + 8 * t, min(lanes, taps - t), count,
                        at + t * size, taps * size,
                    )  # fmt: skip


@cache
def looking(lanes: int, bits: int) -> Any:
    """Return the compiled ``look(job, start, stop, worker)``: of rows of a weight, whether all elements are finite."""
    size = size_of(bits)
    sources = fingerprint()

    @callback(task_type(JOB))
    def look(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        row = job.outputs * job.terms
        for k in range(start, stop):
            if special(lanes, bits, job.w + k * row * size, row):
                move(job.special, job.special + 8, 8)

    return look


@cache
def turning(how: int, lanes: int, bits: int) -> Any:
    """Return the compiled ``turn(job, start, stop, worker)``, which does a range of blocks of output channels.

    ``how`` is the number of taps, at most ``lanes``, if a kernel of one member is turned whole, or `PICK` or
    `TRANSPOSE`.
    """
    size = size_of(bits)
    sources = fingerprint()

    @callback(task_type(JOB))
    def turn(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        found = 0
        room = job.room + worker * job.room_bytes
        for unit in range(start, stop):
            group, first = unit // job.blocks, unit % job.blocks * job.block
            channels = min(job.block, job.outputs - first)
            w = job.w + (group * job.inputs * job.outputs + first) * job.terms * size
            # Where a weight is turned whole, to one forward convolution of one member.
            row = job.inputs * job.terms * size
            target = integer(job.parts) + (group * job.outputs + first) * row
            down = job.outputs * job.terms * size
            for k in range(0, job.inputs, lanes):
                together = min(lanes, job.inputs - k)
                if job.special:
                    for i in range(together):
                        found |= special(lanes, bits, w + (k + i) * down, channels * job.terms)
                if how == TRANSPOSE:
                    for c in range(0, channels, lanes):
                        transpose_square(
                            lanes, bits, w + k * down + c * size, down, together, min(lanes, channels - c),
                            target + c * row + k * size, row,
                        )  # fmt: skip
                elif how == PICK:
                    for e in range(0, channels * job.terms, lanes):
                        transpose_square(
                            lanes, bits, w + k * down + e * size, down, together, min(lanes, channels * job.terms - e),
                            room + e * lanes * size, lanes * size,
                        )  # fmt: skip
                    for part in range(job.count):
                        at = job.parts + part * PART * 8
                        _pick(job, lanes, bits, at, room, first, channels, group, k, together)
                else:
                    for c in range(channels):
                        for i in range(together):
                            source = w + (k + i) * down + c * how * size
                            _reverse(
                                how, lanes, bits, source, target + c * row + (k + i) * how * size,
                                (job.inputs - k - i) * how,
                            )  # fmt: skip
        if found:
            move(job.special, job.special + 8, 8)

    return turn
