"""Phases of an input gradient, each contiguous, brought together in its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import integer, move, record
from fastconv.backends.cpu.shuffles import interleaved
from fastconv.backends.cpu.simd import Emitter, literals

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

# Bytes of a phase in the table: how far behind the zeros it begins, and its strides: image, group, channel, depth, row.
ENTRY = 6 * 8


class _Weaver:
    """Emits what stores a row of so many elements, taken in turn from several places."""

    def __init__(self, e: Emitter, phases: int, count: Any) -> None:
        b = e.builder
        self.e, self.phases, self.zero, self.one = e, phases, count.type(0), count.type(1)
        step = phases * e.lanes
        self.rounds = b.sdiv(count, count.type(step))
        self.left = b.sub(count, e.times(self.rounds, step))
        # Masks are made once for all rows.
        each = [b.sdiv(e.at(self.left, phases - 1 - i), count.type(phases)) for i in range(phases)]
        self.loaded = [e.first(n) for n in each]
        self.there = [b.sub(self.left, count.type(i * e.lanes)) for i in range(phases)]
        self.stored = [e.first(n) for n in self.there]

    def row(self, target: Any, sources: Sequence[Any]) -> None:
        """Store a row."""
        e, b, size = self.e, self.e.builder, self.e.lanes * self.e.bytes

        def whole(index: Any, values: list[Any]) -> list[Any]:
            at = e.times(index, size)
            for i, vector in enumerate(interleaved(e, [e.load(e.at(source, at)) for source in sources])):
                e.store(vector, e.at(target, e.times(index, self.phases * size), i * size))
            return []

        with b.if_then(b.icmp_signed(">", self.rounds, self.zero)):
            e.loop(self.rounds, [], whole)
        with b.if_then(b.icmp_signed(">", self.left, self.zero)):
            done = e.times(self.rounds, size)
            parts = [e.load_masked(e.at(s, done), mask) for s, mask in zip(sources, self.loaded, strict=True)]
            out = e.at(target, e.times(self.rounds, self.phases * size))
            for i, vector in enumerate(interleaved(e, parts)):
                with b.if_then(b.icmp_signed(">=", self.there[i], self.one)):
                    e.store_masked(vector, e.at(out, i * size), self.stored[i])


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
        _Weaver(Emitter(builder, element, width), phases, count).row(target, cgutils.unpack_tuple(builder, sources))
        return context.get_dummy_value()

    kind = types.UniTuple(types.int64, phases)
    return types.void(*given, types.int64, kind, types.int64), codegen


@intrinsic(prefer_literal=True)
def weave_rows(typingctx, ways, lanes, bits, target, step, rows, count, zeros, table, places):
    """Store ``rows`` rows of ``count`` elements, ``step`` bytes apart, taken in turn from the rows of as many phases.

    The table says of each phase how far behind the ``zeros`` it begins, and its stride for each of the ``places``, a
    tuple, and for rows. All are 0 where nothing contributes.
    """
    given = (ways, lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    phases, width, element = known
    words = 2 + places.count

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, step, rows, count, zeros, table, places = args[3:]
        e = Emitter(builder, element, width)
        found, steps = [], []
        for phase in range(phases):
            first, *strides = (e.load_integer(e.at(table, (phase * words + i) * 8)) for i in range(words))
            steps.append(strides.pop())
            terms = zip(strides, cgutils.unpack_tuple(builder, places), strict=True)
            found.append(e.at(zeros, first, *(builder.mul(stride, place) for stride, place in terms)))
        weaver = _Weaver(e, phases, count)

        def row(index: Any, values: list[Any]) -> list[Any]:
            weaver.row(values[0], values[1:])
            return [e.at(value, far) for value, far in zip(values, (step, *steps), strict=True)]

        with builder.if_then(builder.icmp_signed(">", rows, rows.type(0))):
            e.loop(rows, [target, *found], row)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 6, places), codegen


@inlined
def _scatter_rows(phases, bits, target, step, rows, count, zeros, table, places):
    """Do what `weave_rows` does element by element, for any number of phases."""
    size = abs(bits) // 8
    image, group, channel, depth = places
    for phase in range(min(phases, count)):
        entry = table + phase * ENTRY
        source = zeros + integer(entry) + image * integer(entry + 8) + group * integer(entry + 16)
        source += channel * integer(entry + 24) + depth * integer(entry + 32)
        for row in range(rows):
            for i in range((count - phase + phases - 1) // phases):
                at = target + row * step + (i * phases + phase) * size
                move(at, source + row * integer(entry + 40) + i * size, size)


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
                    target, step = x + d * job.xd + phase * job.xh, job.sh * job.xh
                    rows = (job.height - phase + job.sh - 1) // job.sh
                    places = (image, group, channel, d // job.sd)
                    if ways > 0:
                        weave_rows(
                            ways, lanes, bits, target, step, rows, job.width, job.zeros, row_table, places
                        )  # fmt: skip
                    else:
                        _scatter_rows(job.sw, bits, target, step, rows, job.width, job.zeros, row_table, places)

    return interleave
