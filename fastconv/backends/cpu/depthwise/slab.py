"""Slabs: a channel's rows copied with their padding, for what the micro-kernel does not read in place.

That is padding which is not zeros, and strides above two. A slab's row holds the padded columns by phase: all that the
first kernel column reads at stride ``s``, then all that lie one further, to ``s`` of them. So the columns of an output
row read neighbours, whatever the stride: what lies inside the input is dealt to the phases in registers. Where lanes
are channels, there is one phase, and an item of a row is all channels of a pixel.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.dealing import deal
from fastconv.backends.cpu.depthwise.job import JOB
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.memory import clear, copy, move, record, word
from fastconv.backends.cpu.phases import UNREAD


@inlined
def _gather(job: Any, size: int, target: int, line: int, start: int, stop: int) -> None:
    """Copy some items of a row one by one, as the table says."""
    for w in range(start, stop):
        index, at = word(job.table_w, w), target + word(job.place_w, w)
        source = line + index * job.xw if index >= 0 else job.zeros
        if job.item == size:
            move(at, source, size)
        else:
            copy(at, source, job.item)


@cache
def filling(ways: int, lanes: int, bits: int) -> Any:
    """Return the compiled ``fill(job, slab, x, row)``: of a plane at ``x``, what output rows from ``row`` on read.

    ``ways``: the phases of a row, 0 for too many to be dealt in registers.
    """
    size = bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def fill(jobs, slab, x, row):
        if sources == 0:
            return
        job = record(jobs, 0)
        # Names of their own for what no store can change: masks are made once.
        first, last, phase, clean, slab_row = job.first, job.last, job.phase, job.clean, job.slab_row
        together = ways > 0 and job.xw == job.item
        for h in range(job.slab_rows):
            source, target = word(job.table_h, (row * job.stride + h)), slab + h * slab_row
            if source == UNREAD:
                continue
            if source < 0:
                clear(target, slab_row)
                continue
            line = x + source * job.xh
            if not together:
                _gather(job, size, target, line, 0, job.slab_cols)
                continue
            if ways > 1:
                deal(ways, lanes, bits, line, last - first, target + job.place, phase)
            else:
                copy(target + job.place, line, (last - first) * job.item)
            if not clean:
                _gather(job, size, target, line, 0, first)
                _gather(job, size, target, line, last, job.slab_cols)

    return fill
