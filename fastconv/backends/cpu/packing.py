"""Weights as the direct micro-kernel reads them: block of output channels, input channel, kernel position, lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.finite import traces
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import HEAD, Start, fields_of, job_type, never, record_of, start_of, task_type
from fastconv.backends.cpu.memory import put, record, word
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Bytes of a packed weight for which one more thread is worth its start.
_SHARED = 128 << 10


@intrinsic(prefer_literal=True)
def turn_square(typingctx, lanes, bits, source, stride, rows, count, target, offsets):
    """Transpose a square: ``count`` elements of ``rows`` rows, ``stride`` bytes apart, both at most ``lanes``.

    Element ``e`` of all rows becomes a vector, widened and zero beyond ``rows``, at ``target + offsets[e]``. Returns
    whether an element is not finite.
    """
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, rows, count, target, offsets = args[2:]
        e = Emitter(builder, element, width)

        def row(index: int) -> Any:
            return e.at(source, e.times(stride, index))

        def store(i: int, vector: Any) -> None:
            e.wide.store(vector, e.at(target, e.load_integer(e.at(offsets, 8 * i))))

        def load(index: int, mask: Any) -> Any:
            there = builder.zext(builder.icmp_signed("<", I64(index), rows), I64)
            return e.unless_zero(there, [e.zero], lambda _: [e.load_masked(row(index), mask)])[0]

        found: list[tuple[Any, Any]] = []
        least = builder.select(builder.icmp_signed("<", rows, count), rows, count)
        with builder.if_else(builder.icmp_signed(">=", least, I64(width)), likely=True) as (whole, part):
            with whole:
                loaded = [e.load(row(index)) for index in range(width)]
                found.append((traces(e, loaded), builder.block))
                for i, vector in enumerate(e.transpose(loaded)):
                    store(i, vector)
            with part:
                mask = e.first(count)
                loaded = [load(index, mask) for index in range(width)]
                trace = traces(e, loaded)
                for i, vector in enumerate(e.transpose(loaded)):
                    with builder.if_then(builder.icmp_signed("<", I64(i), count)):
                        store(i, vector)
                found.append((trace, builder.block))
        either = builder.phi(found[0][0].type)
        for value, block in found:
            either.add_incoming(value, block)
        return e.any_nan(either)

    return types.int64(lanes, bits, *(types.int64,) * 6), codegen


_LINES = fields_of(
    """
    x w stride                  | the weight, where its packed form goes; bytes of a row
    groups outputs terms        | groups, output channels of each, elements of a row
    blocks block places         | blocks of a group, output channels of one, elements of a row that it has room for
    group_bytes                 | of the packed weight
    found                       | how far behind it are words, one a block: 1 if an element is not finite; 0 for none
    offsets tail_offsets        | where in a block each element goes: in whole ones, in the last
    """,
    HEAD,
)
_LINES_JOB = job_type(_LINES)


@inlined
def _pack_rows(bits, lanes, size, vector, source, stride, rows, terms, target, table):
    """Pack ``terms`` elements of the rows of a block, and return whether one of them is not finite; see `Packer`."""
    special = 0
    for v in range((rows + lanes - 1) // lanes):
        there = min(lanes, rows - v * lanes)
        for e in range(0, terms, lanes):
            special |= turn_square(
                lanes, bits, source + v * lanes * stride + e * size, stride, there, min(lanes, terms - e),
                target + v * vector, table + 8 * e,
            )  # fmt: skip
    return special


@cache
def pack_rows(bits: int, lanes: int) -> Any:
    """Return what packs one block of output channels, and says whether an element is not finite.

    Its arguments: weight (address of the block's first row), bytes of a row, rows, elements of a row, where the block
    goes (address), where in it each element goes (address of offsets).
    """
    size = size_of(bits)
    vector = lanes * size_of(computed(bits))
    sources = fingerprint()

    @callback(types.int32(*(types.int64,) * 6))
    def run(source, stride, rows, terms, target, table):
        if sources == 0:
            return 0
        return _pack_rows(bits, lanes, size, vector, source, stride, rows, terms, target, table)

    return run


@cache
def _lines_kernel(bits: int, lanes: int) -> Any:
    size = size_of(bits)
    vector = lanes * size_of(computed(bits))
    sources = fingerprint()

    @callback(task_type(_LINES_JOB))
    def pack(jobs, first_unit, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(first_unit, stop):
            group, block = unit // job.blocks, unit % job.blocks
            first = block * job.block
            there = min(job.block, job.outputs - first)
            table = job.offsets if block < job.blocks - 1 else job.tail_offsets
            source = job.x + (group * job.outputs + first) * job.stride
            target = job.w + group * job.group_bytes + block * (job.places * job.block // lanes * vector)
            special = _pack_rows(bits, lanes, size, vector, source, job.stride, there, job.terms, target, table)
            if job.found:
                put(job.w + job.found + 8 * unit, special)

    return pack


class Packer:
    """Packs weights of one shape whose rows, one for each output channel, are adjacent elements; widens them.

    Parameters
    ----------
    format, lanes : int
        How elements are stored, and those of a vector.
    groups, outputs, terms : int
        Groups, output channels of each, and elements of a row.
    block : int
        Output channels of a block, whole vectors; the last of a group is smaller by whole vectors.
    places : int
        Elements of a row that a block has room for, at least ``terms``.
    offsets : sequence of arrays of int64
        Where in a block the first vector of each element goes: in whole ones, and in the last of a group.
    workers : int
        Threads that may share the work.
    found : int
        How far behind the beginning of a packed weight there are words, one a block, that become 1 where an element is
        not finite, else 0; 0 for none.
    """

    def __init__(
        self, format: int, lanes: int, groups: int, outputs: int, terms: int, block: int, places: int,
        offsets: Sequence[Any], workers: int, found: int = 0,
    ) -> None:  # fmt: skip
        self._kernel = _lines_kernel(format, lanes).address
        self._offsets = offsets  # the kernel looks at these by address
        blocks = -(-outputs // block)
        group = -(-outputs // lanes) * places * lanes * size_of(computed(format))
        f = {"stride": terms * size_of(format), "groups": groups, "outputs": outputs, "terms": terms, "blocks": blocks}
        f |= {"block": block, "places": places, "group_bytes": group, "found": found}
        f |= dict(zip(("offsets", "tail_offsets"), map(address, offsets), strict=True))
        self._record = record_of(_LINES, f)
        self._start: Start = never
        self._units = groups * blocks
        self._workers = min(workers, 1 + groups * group // _SHARED)

    def pack(self, w: Any, packed: int) -> None:
        """Pack an array, of the output channels of all groups and whatever makes their rows, to an address."""
        if self._start(w, None, None, None, None, packed, 0):
            return
        arrays = ordered(w, self._workers), None, None, None, None
        if not self._start(*arrays, packed, 0):
            self._start = start_of(self._kernel, self._record, self._units, self._workers, arrays)
            self._start(*arrays, packed, 0)


_COLUMNS = ("w", "stride", "inputs", "places", "outputs", "block", "packed", "offsets", "tail_offsets")
_COLUMNS_JOB = job_type(_COLUMNS)

# Input channels that are packed for every block in turn, before the next: as many rows are read side by side.
_ROWS = 16


@intrinsic(prefer_literal=True)
def _copy_pieces(typingctx, lanes, bits, piece, source, count, target, apart):
    """Copy ``count`` elements, widened, in pieces of ``piece`` that go ``apart`` bytes apart, filled with zeros."""
    known = literals(lanes, bits, piece)
    if known is None:
        return None
    width, element, length = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, target, apart = args[3:]
        e = Emitter(builder, element, width)

        def store(vector: Any, first: int) -> None:
            place = e.at(target, e.times(apart, first // length), -first * e.wide.bytes)
            e.wide.store_part(vector, place, first, length)

        starts = range(0, width, length)
        with builder.if_else(builder.icmp_signed(">=", count, I64(width)), likely=True) as (whole, part):
            with whole:
                vector = e.load(source)
                for first in starts:
                    store(vector, first)
            with part:
                vector = e.load_masked(source, e.first(count))
                for first in starts:
                    with builder.if_then(builder.icmp_signed("<", I64(first), count)):
                        store(vector, first)
        return context.get_dummy_value()

    return types.void(lanes, bits, piece, *(types.int64,) * 4), codegen


@cache
def _columns_kernel(bits: int, lanes: int, piece: int) -> Any:
    size, wide = size_of(bits), size_of(computed(bits))
    sources = fingerprint()

    @callback(task_type(_COLUMNS_JOB))
    def pack(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        # Blocks narrower than a vector are packed together, each line of the weight being read once.
        together, apart = max(job.block, lanes), job.places * job.block * wide
        for unit in range(start, stop):
            target = job.packed
            for first in range(0, job.outputs, together):
                there = min(together, job.outputs - first)
                vectors = (there + lanes - 1) // lanes
                table = job.offsets if first + job.block < job.outputs else job.tail_offsets
                for k in range(unit * _ROWS, min((unit + 1) * _ROWS, job.inputs)):
                    source = job.w + k * job.stride + first * size
                    at = target + word(table, k)
                    for v in range(vectors):
                        i = v * lanes
                        _copy_pieces(lanes, bits, piece, source + i * size, there - i, at + i * wide, apart)
                target += job.places * vectors * lanes * wide

    return pack


@cache
def copy_blocks(bits: int, lanes: int, block: int) -> Any:
    """Return what copies ``lanes`` adjacent output channels of a weight with one tap, in blocks, for input channels.

    Its arguments: weight (address), bytes from an input channel to the next, input channels, where they go (address),
    bytes from a block to the next there, output channels that exist.
    """
    wide = size_of(computed(bits))
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 6))
    def run(source, step, inputs, target, apart, there):
        if sources == 0:
            return
        for k in range(inputs):
            _copy_pieces(lanes, bits, block, source + k * step, there, target + k * block * wide, apart)

    return run


def has_adjacent_outputs(w: Any, groups: int) -> bool:
    """Whether the output channels of a weight with one tap lie side by side, as in one that was transposed."""
    one_tap = math.prod(w.shape[2:]) == 1
    return bool(groups == 1 and one_tap and w.strides[0] == w.itemsize < w.strides[1] and w.flags.aligned)


def pack_columns(
    w: Any, format: int, lanes: int, block: int, places: int, packed: int, offsets: Sequence[int], workers: int
) -> None:
    """Pack a weight that `has_adjacent_outputs` as `Packer` does, by copying vectors.

    Parameters
    ----------
    w : array
        (output channels, input channels, one tap).
    format, lanes, block, places, packed : int
        As `Packer` takes them.
    offsets : sequence of int
        Its two addresses of offsets, those of whole blocks and of the last.
    workers : int
        Threads that share the work.
    """
    outputs, inputs = w.shape[:2]
    job = np.array([address(w), w.strides[1], inputs, places, outputs, block, packed, *offsets], np.int64)
    kernel = _columns_kernel(format, lanes, min(lanes, block)).address
    threads.run(kernel, address(job), -(-inputs // _ROWS), workers)
