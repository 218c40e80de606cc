"""Phases of an input gradient, each contiguous, brought together in its rows."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, integer, move, record
from fastconv.backends.cpu.shuffles import interleaved
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh               | the gradient and its strides; columns are neighbours
    depth height width          | its sizes
    groups channels             | groups, and channels of one
    sd sh sw                    | the convolution's stride: how many phases there are along each axis
    table                       | of every phase of depth, row and column: `ENTRY`
    zeros                       | as many as a phase has columns
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)

# Bytes of a phase in a table: how far behind the zeros its first row is, and its strides for the places image, group,
# channel, depth, row. They are all 0 where nothing contributes.
ENTRY = 6 * 8


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


@intrinsic(prefer_literal=True)
def _rows_of(typingctx, ways, zeros, table, places):
    """Return where a row of each of so many phases is, a tuple: the one of these ``places``.

    The table says of each phase how far behind the zeros its first row is, and its stride for each of the places.
    """
    known = literals(ways)
    if known is None:
        return None
    (phases,) = known
    each = 8 * (1 + places.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, zeros, table, places = args
        found = []
        for phase in range(phases):
            words = [
                builder.load(builder.inttoptr(builder.add(table, I64(phase * each + 8 * i)), I64.as_pointer()))
                for i in range(each // 8)
            ]
            address = builder.add(zeros, words[0])
            for i, stride in enumerate(words[1:]):
                address = builder.add(address, builder.mul(stride, builder.extract_value(places, i)))
            found.append(address)
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.int64, phases)(ways, types.int64, types.int64, places), codegen


@inlined
def weave_row(ways, lanes, bits, target, count, zeros, table, places):
    """Store ``count`` elements of a row of the gradient, taken in turn from a row of each of ``ways`` phases.

    The table and the places are those of `_rows_of`.
    """
    some = 0
    for phase in range(ways):
        some |= integer(table + phase * 8 * (1 + len(places)))
    if some == 0:
        clear(target, count * (abs(bits) // 8))
    else:
        weave(ways, lanes, bits, target, _rows_of(ways, zeros, table, places), count)


@inlined
def _scatter_row(phases, bits, target, count, zeros, table, places):
    """Do what `weave_row` does element by element, for any number of phases."""
    size = abs(bits) // 8
    for phase in range(min(phases, count)):
        (source,) = _rows_of(1, zeros, table + phase * ENTRY, places)
        for i in range((count - phase + phases - 1) // phases):
            move(target + (i * phases + phase) * size, source + i * size, size)


@cache
def interleaving(ways: int, lanes: int, bits: int) -> Any:
    """Return the compiled ``interleave(job, start, stop, worker)``, which does a range of (image, channel).

    ``ways`` is the stride of columns, or 0 for one of more than `MOST_WAYS`.
    """
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
                    row_table = job.table + (d % job.sd * job.sh + phase) * job.sw * ENTRY
                    for row in range((job.height - phase + job.sh - 1) // job.sh):
                        target = x + d * job.xd + (row * job.sh + phase) * job.xh
                        places = (image, group, channel, d // job.sd, row)
                        if ways > 0:
                            weave_row(ways, lanes, bits, target, job.width, job.zeros, row_table, places)
                        else:
                            _scatter_row(job.sw, bits, target, job.width, job.zeros, row_table, places)

    return interleave
