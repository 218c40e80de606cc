"""unfold and fold by a list of positions: of small maps, whose rows are too short for vectors.

The list says for every element of a channel's columns which one of the map it is, and is the same for all channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.formats import size_of
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.memory import clear, record
from fastconv.backends.cpu.pool.gradient_work import WAYS
from fastconv.backends.cpu.pool.scatter import ADD, scatter
from fastconv.backends.cpu.unfold.loops import JOB
from fastconv.geometry import taps
from fastconv.problem import PoolProblem


def positions(problem: PoolProblem, size: int) -> NDArray[np.integer]:
    """Return the list, in the order of the columns, -1 for padding; a position has so many bytes."""
    place, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)
    for length, table in zip(problem.input_size, taps(problem), strict=True):
        along = np.ascontiguousarray(table.T)  # kernel positions, windows
        place = place[:, None, :, None] * length + along[None, :, None, :]
        inside = inside[:, None, :, None] & (along >= 0)[None, :, None, :]
        shape = (place.shape[0] * place.shape[1], -1)
        place, inside = place.reshape(shape), inside.reshape(shape)
    return np.where(inside, place, -1).astype(f"i{size}").ravel()


@inlined
def _channels(action, ways, index, format, size, job, unit, aside):
    """Do a few channels of one image, in turns."""
    n, c = unit // job.channels, unit % job.channels
    x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.listed * size
    if action == ADD:
        for way in range(ways):
            clear(x + way * job.xc, job.cells * size)
    scatter(
        action, ways, 1, index, format,
        job.listed, x, job.xc, 0, 0, job.cells, y, job.listed * size, size, job.positions, 0, index, aside,
    )  # fmt: skip


@cache
def lists(action: int, index: int, format: int) -> Any:
    """Return compiled loops, whose units are channels: of an unfold if elements are taken, of a fold if added.

    Literal integers: action (`TAKE` or `ADD`), index (bytes of a position), format (of an element).
    """
    sources, size = fingerprint(), size_of(format)

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        aside = job.slab + worker * job.slab_bytes
        unit = start
        while unit < stop:
            if min(stop - unit, job.channels - unit % job.channels) >= WAYS:
                _channels(action, WAYS, index, format, size, job, unit, aside)
                unit += WAYS
            else:
                _channels(action, 1, index, format, size, job, unit, aside)
                unit += 1

    return run
