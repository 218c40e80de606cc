"""Packing the weight of an input gradient for all phases of the stride at once, straight from where it is.

Input channels are the lanes: a filter's taps stand in neighbouring elements, those of the next channel behind them, so
that a few channels are the rows of a square to be turned, as the forward weight's output channels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.finite import special, trace
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import move, record
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.packing import turn_square
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.simd import Emitter, literals
from fastconv.problem import ConvProblem

FIELDS = fields_of(
    """
    w packed                | the weight, (groups, inputs, outputs, taps), and where its packed form goes
    inputs outputs taps     | of a group: channels that are summed and that are computed; kernel positions
    together chunks         | inputs that are packed for every block in turn, before the next; so many of a group
    blocks block terms      | blocks of outputs, outputs of one, terms of one
    group_bytes             | of the packed weight
    offsets tail_offsets    | where in a block each (input, tap) goes: in whole ones, in the last
    special                 | where to say that an element is not finite; 0 not to look
    """
)
JOB = job_type(FIELDS)
_W, _PACKED, _SPECIAL = map(FIELDS.index, ("w", "packed", "special"))

# More taps are turned by squares.
_MOST_DEALT = 32

# Vectors that are written near one another before the next place's turn comes.
_NEAR = 16

# Bytes of what instructions rearrange most cheaply, and put together to wider vectors as they load.
_PIECE = 16


def _dealt(taps: int, lanes: int, bits: int) -> int:
    """Return the taps for which `_deal` is compiled, 0 if squares are turned instead."""
    wide = abs(bits) == 8 * size_of(computed(bits)) and lanes * size_of(bits) >= _PIECE
    return taps if wide and (taps == 1 or _PIECE // size_of(bits) <= taps <= _MOST_DEALT) else 0


@intrinsic(prefer_literal=True)
def _deal(typingctx, taps, lanes, bits, source, target, offsets):
    """Turn ``lanes`` rows of ``taps`` elements, one behind the other: tap ``t`` goes to ``target + offsets[t]``.

    Return 1 if one of the elements is not finite, otherwise 0.
    """
    given = (taps, lanes, bits)
    known = literals(*given)
    if known is None:
        return None
    terms, width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target, offsets = args[3:]
        e = Emitter(builder, element, width)
        side = min(terms, _PIECE // e.bytes)
        total = e.zero
        for done in range(0, terms, side):
            column = min(done, terms - side)  # the last squares overlap the ones before
            turned = _squares(e, e.at(source, column * e.bytes), terms, side)
            for tap in range(done, column + side):
                vector = turned[tap - column]
                e.store(vector, e.at(target, e.load_integer(e.at(offsets, 8 * tap))))
                total = trace(e, vector, total)
        return e.any_nan(total)

    return types.int64(*given, *(types.int64,) * 3), codegen


def _squares(e: Emitter, source: Any, pitch: int, side: int) -> list[Any]:
    """Load squares that lie below one another, their rows ``pitch`` elements apart, side by side, and turn them."""
    if side == pitch == 1:
        return [e.load(source)]
    rows = range(0, e.lanes, side)
    return _zipped(
        e,
        [
            _joined(e, [e.load_few(e.at(source, (row + i) * pitch * e.bytes), side) for row in rows])
            for i in range(side)
        ],
    )


def _joined(e: Emitter, parts: list[Any]) -> Any:
    """Return short vectors side by side."""
    while len(parts) > 1:
        order = range(2 * parts[0].type.count)
        parts = [e.shuffle(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _zipped(e: Emitter, rows: list[Any]) -> list[Any]:
    """Turn squares that lie side by side: of two rows, elements in turn, half a piece of each."""
    if len(rows) == 1:
        return rows
    half = _PIECE // e.bytes // 2
    pairs = [(lane, e.lanes + lane) for lane in range(e.lanes)]
    low, high = (
        [lane for i, pair in enumerate(pairs) if i // half % 2 == part for lane in pair] for part in (0, 1)
    )  # fmt: skip
    halves = zip(_zipped(e, rows[0::2]), _zipped(e, rows[1::2]), strict=True)
    return [e.shuffle(a, b, part) for a, b in halves for part in (low, high)]


@cache
def _kernel(taps: int, lanes: int, bits: int) -> Any:
    """Return the compiled ``pack(job, start, stop, worker)``, for so many taps or, if 0, for any."""
    size = size_of(bits)
    vector = lanes * size_of(computed(bits))
    sources = fingerprint()

    @callback(task_type(JOB))
    def pack(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        found = 0
        row = job.outputs * job.taps * size
        for unit in range(start, stop):
            group, first = unit // job.chunks, unit % job.chunks * job.together
            last = min(first + job.together, job.inputs)
            for block in range(job.blocks):
                offsets = job.offsets if block < job.blocks - 1 else job.tail_offsets
                target = job.packed + group * job.group_bytes + block * job.block // lanes * job.terms * vector
                for channel in range(block * job.block, min((block + 1) * job.block, job.outputs), lanes):
                    rows = min(lanes, job.outputs - channel)
                    for k in range(first, last):
                        source = job.w + (group * job.inputs + k) * row + channel * job.taps * size
                        table = offsets + 8 * k * job.taps
                        if taps > 0 and rows == lanes:
                            found |= _deal(taps, lanes, bits, source, target, table)
                            continue
                        if job.special:
                            found |= special(lanes, bits, source, rows * job.taps)
                        for tap in range(0, job.taps, lanes):
                            turn_square(
                                lanes, bits, source + tap * size, job.taps * size, rows, min(lanes, job.taps - tap),
                                target, table + 8 * tap,
                            )  # fmt: skip
                    target += vector
        if found and job.special:
            move(job.special, job.special + 8, 8)

    return pack


class GradientPacker:
    """Packs weights of one gradient for several phases, each with taps of its own; widens them.

    Parameters
    ----------
    problem : ConvProblem
        The gradient.
    format, lanes : int
        How elements are stored, and those of a vector.
    block, terms : int
        Channels of a block, whole vectors, and terms of one, of all phases together.
    places : sequence of arrays of int64
        Where in a block, in bytes, each (channel that is summed, tap) goes: in whole ones, and in the last.
    padded : bool
        Whether padding is multiplied by the weight.
    workers : int
        Threads that share the work.
    """

    def __init__(
        self, problem: ConvProblem, format: int, lanes: int, block: int, terms: int, places: Sequence[Any],
        padded: bool, workers: int,
    ) -> None:  # fmt: skip
        taps = places[0].size // (problem.oc // problem.groups)
        self._kernel = _kernel(_dealt(taps, lanes, format), lanes, format).address
        self._places = places  # the kernel looks at these by address
        self._padded, self._workers = padded, workers
        inputs, outputs = problem.oc // problem.groups, problem.ic // problem.groups
        together = max(1, _NEAR // taps)
        chunks = -(-inputs // together)
        self._units = problem.groups * chunks
        f = {"inputs": inputs, "outputs": outputs, "taps": taps}
        f |= {"together": together, "chunks": chunks}
        f |= {"blocks": -(-outputs // block), "block": block, "terms": terms}
        f |= {"group_bytes": -(-outputs // lanes) * lanes * terms * size_of(computed(format))}
        f |= dict(zip(("offsets", "tail_offsets"), map(address, places), strict=True))
        self._job = record_of(FIELDS, f)

    def pack(self, w: Any, packed: int) -> bool:
        """Pack a weight to an address; return whether it must not be multiplied by padding."""
        w = ordered(w, self._workers)
        found = np.array([0, 1], np.int64)
        job = self._job.copy()
        job[_W], job[_PACKED], job[_SPECIAL] = address(w), packed, address(found) if self._padded else 0
        threads.run(self._kernel, address(job), self._units, self._workers)
        return bool(found[0])
