"""Slabs: a channel's rows copied with their padding, for what the micro-kernel does not read in place.

That is padding which is not zeros, and strides above two. A slab's row holds the padded columns by phase: all that the
first kernel column reads at stride ``s``, then all that lie one further, to ``s`` of them. So the columns of an output
row read neighbours, whatever the stride. Where lanes are channels, there is one phase, and an item of a row is all
channels of a pixel.
"""

from __future__ import annotations

from typing import Any

from fastconv.backends.cpu.compiling import inlined
from fastconv.backends.cpu.memory import clear, copy, move, word


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


@inlined
def fill(job: Any, size: int, slab: int, x: int, row: int) -> None:
    """Copy what the output rows from ``row`` on read of a plane at ``x``."""
    for h in range(job.slab_rows):
        source = word(job.table_h, (row * job.stride + h))
        target = slab + h * job.slab_row
        if source < 0:
            clear(target, job.slab_row)
            continue
        line = x + source * job.xh
        if job.xw == job.item and job.together:
            copy(target + job.first * job.item, line, (job.last - job.first) * job.item)
            _gather(job, size, target, line, 0, job.first)
            _gather(job, size, target, line, job.last, job.slab_cols)
        else:
            _gather(job, size, target, line, 0, job.slab_cols)
