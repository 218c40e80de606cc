"""Packing the weight of an input gradient for all phases of the stride at once, straight from where it is.

Input channels are the lanes: a filter's taps stand in neighbouring elements, those of the next channel behind them, so
that a few channels are the rows of a square to be turned, as the forward weight's output channels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import carray

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.dgrad.weights import special
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import move
from fastconv.backends.cpu.packing import turn_square
from fastconv.backends.cpu.scratch import address, contiguous
from fastconv.problem import ConvProblem

FIELDS = fields_of(
    """
    w packed                | the weight, (groups, inputs, outputs, taps), and where its packed form goes
    inputs outputs taps     | of a group: channels that are summed and that are computed; kernel positions
    chunks                  | of `_ROWS` inputs, of a group
    blocks block terms      | blocks of outputs, outputs of one, terms of one
    group_bytes             | of the packed weight
    offsets tail_offsets    | where in a block each (input, tap) goes: in whole ones, in the last
    special                 | where to say that an element is not finite; 0 not to look
    """
)
JOB = job_type(FIELDS)
_W, _PACKED, _SPECIAL = map(FIELDS.index, ("w", "packed", "special"))

# Summed channels that are packed for every block in turn, before the next: of a term's place those behind it are near.
_ROWS = 16


@cache
def _kernel(lanes: int, bits: int) -> Any:
    size = size_of(bits)
    vector = lanes * size_of(computed(bits))
    sources = fingerprint()

    @callback(task_type(JOB))
    def pack(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        found = 0
        row = job.outputs * job.taps * size
        for unit in range(start, stop):
            group, first = unit // job.chunks, unit % job.chunks * _ROWS
            last = min(first + _ROWS, job.inputs)
            for block in range(job.blocks):
                table = job.offsets if block < job.blocks - 1 else job.tail_offsets
                target = job.packed + group * job.group_bytes + block * job.block // lanes * job.terms * vector
                for channel in range(block * job.block, min((block + 1) * job.block, job.outputs), lanes):
                    rows = min(lanes, job.outputs - channel)
                    for k in range(first, last):
                        source = job.w + (group * job.inputs + k) * row + channel * job.taps * size
                        if job.special:
                            found |= special(lanes, bits, source, rows * job.taps)
                        for tap in range(0, job.taps, lanes):
                            turn_square(
                                lanes, bits, source + tap * size, job.taps * size, rows, min(lanes, job.taps - tap),
                                target, table + 8 * (k * job.taps + tap),
                            )  # fmt: skip
                    target += vector
        if found:
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
        self._kernel = _kernel(lanes, format).address
        self._places = places  # the kernel looks at these by address
        self._padded, self._workers = padded, workers
        inputs, outputs = problem.oc // problem.groups, problem.ic // problem.groups
        chunks = -(-inputs // _ROWS)
        self._units = problem.groups * chunks
        f = {"inputs": inputs, "outputs": outputs, "taps": places[0].size // inputs, "chunks": chunks}
        f |= {"blocks": -(-outputs // block), "block": block, "terms": terms}
        f |= {"group_bytes": -(-outputs // lanes) * lanes * terms * size_of(computed(format))}
        f |= dict(zip(("offsets", "tail_offsets"), map(address, places), strict=True))
        self._job = record_of(FIELDS, f)

    def pack(self, w: Any, packed: int) -> bool:
        """Pack a weight to an address; return whether it must not be multiplied by padding."""
        w = contiguous(w)
        found = np.array([0, 1], np.int64)
        job = self._job.copy()
        job[_W], job[_PACKED], job[_SPECIAL] = address(w), packed, address(found) if self._padded else 0
        threads.run(self._kernel, address(job), self._units, self._workers)
        return bool(found[0])
