"""The loops of the grouped input gradient, and the run that starts them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.dgrad.grouped_work import Work
from fastconv.backends.cpu.dgrad.interleave import weave_rows
from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.dgrad.unturned import Finite, Unturned
from fastconv.backends.cpu.grouped.loops import FIELDS as FORWARD
from fastconv.backends.cpu.grouped.loops import prepare
from fastconv.backends.cpu.grouped.run import GroupedRunner
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, integer, pointed, record
from fastconv.backends.cpu.runner import fresh
from fastconv.backends.cpu.scratch import address
from fastconv.problem import Sizes

_FIELDS = """
    channels parts              | channels of a group of the gradient; phases
    table                       | of every phase, where the places of its terms are listed, and how many
    wgroup                      | bytes of a group's weights
    rows cols                   | sizes of the gradient
    ways_h woven idle           | phases of rows; `ENTRY` of every phase; where in a slab a row of zeros is
"""
# What fills the slabs reads the fields of the forward convolution, which stand first.
FIELDS = fields_of(_FIELDS, FORWARD)
JOB = job_type(FIELDS)

# Of a phase, in bytes: how far behind the zeros its sums begin, and their strides: channel, row. All 0: nothing
# contributes to it.
_ENTRY = 3 * 8


@inlined
def _sum(job, slab, group):
    """Sum all phases of a group; the weights of some channels are used for all of them while they are near."""
    sums, step = slab + job.sums, job.wide * job.size
    numbers = (job.band - 1) * job.pitch + job.ow
    for block in range(0, job.channels, job.height):
        channel = min(block, job.channels - job.height)
        w = job.w + group * job.wgroup + channel * job.wk
        for part in range(job.parts):
            places, terms = integer(job.table + 16 * part), integer(job.table + 16 * part + 8)
            if terms == 0:
                continue
            source, target, left = slab, sums + (part * job.channels + channel) * job.line, numbers
            while left > 0:
                tile = job.tile0 if left > job.less else job.tile1
                call(tile, (source, places, terms, w, job.wk, target, job.line, 0))
                source, target, left = source + step, target + step, left - job.wide


@inlined
def _store(job, lanes, bits, ways, idle, y, row):
    """Weave the phases of a group's channels into rows of the gradient, from cell ``row`` on."""
    for c in range(job.channels):
        for phase in range(job.ways_h):
            top = row * job.ways_h + phase
            left = min(job.band, (job.rows - top + job.ways_h - 1) // job.ways_h)
            weave_rows(
                ways, lanes, bits, y + c * job.yk + top * job.yh, job.ways_h * job.yh, left, job.cols,
                idle, job.woven + phase * ways * _ENTRY, (c,),
            )  # fmt: skip


@cache
def loops(lanes: int, bits: int, ways: int) -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units, of so many column phases."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        prepare(slab, job.inputs, 1, job.plane, job.sub, job.lead, job.zeros, job.size)
        clear(slab + job.idle, job.slab_bytes - job.idle)
        for unit in range(start, stop):
            call(job.fill, (pointed(jobs), unit, 0, worker))
            # The last band overlaps the one before: what is computed twice comes out the same.
            row = min(unit % job.bands * job.band, job.oh - job.band)
            image, group = unit // job.bands // job.bundles, unit // job.bands % job.bundles
            _sum(job, slab, group)
            y = job.y + image * job.yn + group * job.channels * job.yk
            _store(job, lanes, bits, ways, slab + job.idle, y, row)

    return run


class GroupedDgradRunner(Unturned, GroupedRunner):
    """Runs one problem on arrays of any strides."""

    fields = FIELDS
    listed = 1
    work: Work

    def __init__(self, work: Work) -> None:
        self._phases = _phases(work)
        self.gradient, self.finite = work.gradient, Finite(work.gradient, work)
        super().__init__(work)

    def _known(self) -> dict[str, int]:
        work, gradient = self.work, self.work.gradient
        self._table = np.array([(address(places), len(places)) for places in self._phases], np.int64)
        f = super()._known() | {"channels": work.channels, "parts": work.parts, "table": address(self._table)}
        filter_bytes = math.prod(gradient.kernel_size) * work.size
        f |= {"wk": filter_bytes, "wgroup": work.inputs * work.channels * filter_bytes}
        f |= {"rows": work.height.size, "cols": work.width.size, "ways_h": work.height.stride}
        f["idle"] = work.slab_bytes - work.idle_bytes
        self._woven = self._places_of_sums(f["sums"] - f["idle"])
        return f | {"woven": address(self._woven)}

    def _places_of_sums(self, first: int) -> Any:
        """Return `_ENTRY` of every phase, the sums of the ``first`` one beginning so far behind the zeros."""
        work = self.work
        table = [
            (first + part * work.channels * work.line, work.line, work.pitch * work.size) if len(places) else (0, 0, 0)
            for part, places in enumerate(self._phases)
        ]
        return np.array(table, np.int64)

    def _term_places(self) -> Any:
        return np.zeros(0, np.int64)  # every phase has its own

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Any:
        """Return the weight as it is."""
        return self.looked_at(super().pack(w, new))

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        return super().describe(x, y) if y[-1] == self.work.size else None

    def _storing(self, turned: bool) -> tuple[dict[str, int], int]:
        work = self.work
        return {}, loops(work.lanes, 8 * work.size, work.width.stride).address


def _phases(work: Work) -> list[Any]:
    """Return for every phase where its terms lie: in a group's slab, and behind a channel's first weight."""
    size, height, width = work.size, work.height, work.width
    sub, filter_size = work.phase_bytes(work.band), math.prod(work.gradient.kernel_size)
    phases = []
    for rows, cols in itertools.product(shifts_of(height).terms, shifts_of(width).terms):
        taps = [
            (below * work.pitch + beside, r * width.kernel + s)
            for (r, below), (s, beside) in itertools.product(rows, cols)
        ]
        every = np.arange(work.inputs)[:, None, None] * (sub, work.channels * filter_size * size)
        phases.append(np.ascontiguousarray(every + np.array(taps, np.int64).reshape(-1, 2) * size).reshape(-1, 2))
    return phases
