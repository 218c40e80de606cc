"""The loops of the woven input gradient, and the run that starts them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import from_dtype, types

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.dgrad.exact import input_gradient
from fastconv.backends.cpu.dgrad.interleave import weave_rows
from fastconv.backends.cpu.dgrad.packing import GradientPacker
from fastconv.backends.cpu.dgrad.woven_work import Work
from fastconv.backends.cpu.direct import job as direct
from fastconv.backends.cpu.direct.loops import sweep
from fastconv.backends.cpu.direct.record import places, reading_fields, summing_fields
from fastconv.backends.cpu.direct.tile import ROWS
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import clear, pointed, record
from fastconv.backends.cpu.runner import Packed, Runner, fresh, kept
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import AXES, Sizes

_FIELDS = """
    depth height width          | sizes of the gradient
    ways_d ways_h               | phases along depth and rows
    compute phases count        | who computes a phase; the phases' records, how many
    zeros results               | where in a slab a row of zeros lies, and the results of a block behind it
    table                       | of every phase of depth, row and column: `ENTRY`
"""
# What fills the slabs reads the fields of the forward convolution, which stand first. A phase has these alone: its w
# says how many terms of a block stand before its own, its y how far behind the zeros its results begin.
FIELDS = fields_of(_FIELDS, direct.FIELDS)
JOB = job_type(FIELDS)

# Of a phase, in bytes: how far behind the zeros its results begin, and their strides: channel, row. All 0: nothing
# contributes to it.
ENTRY = 3 * 8
_PHASE_BYTES = 8 * len(direct.FIELDS)


@cache
def computing() -> Any:
    """Return the compiled ``compute(phase, depth, block, weights, source, first, rows, results, bias, sums)``."""
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(direct.JOB)), *(types.int64,) * 9))
    def compute(phases, depth, block, weights, source, first, rows, results, bias, sums):
        if sources == 0:
            return
        phase = record(phases, 0)
        if depth >= phase.od:
            return
        # Of a band that ends behind the phase a row too many is computed, which is there in the slab.
        rows = min(rows, phase.oh)
        wterm = phase.wterm0 if block < phase.blocks - 1 else phase.wterm1
        weights += phase.w * wterm
        sweep(phase, block, weights, source, depth, first, rows, results + phase.y, bias, 0, sums, True)

    return compute


@inlined
def _store(job, ways, lanes, bits, zeros, dx, channels, depth, first, rows):
    """Weave the phases of a block's channels into rows of the gradient."""
    for c in range(channels):
        for i in range(min(job.ways_d, job.depth - depth * job.ways_d)):
            plane = dx + c * job.yk + (depth * job.ways_d + i) * job.yd
            for phase in range(job.ways_h):
                table = job.table + (i * job.ways_h + phase) * ways * ENTRY
                top = first * job.ways_h + phase
                left = min(rows, (job.height - top + job.ways_h - 1) // job.ways_h)
                weave_rows(
                    ways, lanes, bits, plane + top * job.yh, job.ways_h * job.yh, left, job.width, zeros, table, (c,)
                )  # fmt: skip


@cache
def loops(ways: int, lanes: int, bits: int) -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units, of so many column phases."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        clear(slab + job.zeros, job.results - job.zeros)
        filled = -1
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            depth = rest // job.bands % job.od
            group = rest // (job.bands * job.od) % job.groups
            image = rest // (job.bands * job.od * job.groups)
            # The last band overlaps the one before: what is computed twice comes out the same.
            first = min(rest % job.bands * job.band, job.oh - job.rows)
            rows = min(job.band, job.oh - first)
            source = job.x + image * job.xn + group * job.xg + depth * job.sd + first * job.sh
            if job.fill:
                if rest != filled:
                    call(job.fill, (pointed(jobs), rest, 0, worker))
                    filled = rest
                source = slab
            for block in range(part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts):
                channel = group * job.oc + block * job.wide
                bias = job.bias + channel * job.size if job.bias else 0
                weights = job.w + group * job.wgroup + block * job.wblock
                for phase in range(job.count):
                    call(job.compute, (
                        job.phases + phase * _PHASE_BYTES, depth, block, weights, source, first, rows,
                        slab + job.zeros, bias, slab + job.sums,
                    ))  # fmt: skip
                channels = min(job.wide, job.oc - block * job.wide)
                dx = job.y + image * job.yn + channel * job.yk
                _store(job, ways, lanes, bits, slab + job.zeros, dx, channels, depth, first, rows)

    return run


class Weight(NamedTuple):
    """A weight packed for all phases, and the weight itself if it must not be multiplied by padding."""

    packed: Packed
    plain: Any


class WovenRunner(Runner):
    """Runs one problem on arrays of any strides. Its `pack` returns a `Weight`."""

    fields = FIELDS

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.scratch_bytes)
        self.work, self.gradient = work, work.gradient
        # The loops look at these by address.
        self._tables = [source_line(axis) for axis in work.axes]
        self._packed_bytes = work.packed_size * work.size
        padded = any(pads != (0, 0) for pads in work.problem.padding)
        offsets = [_offsets(work, vectors) for vectors in (work.tile.vectors, work.tile.tail)]
        # What no weight goes to must be zero.
        self._has_gaps = any(phase.terms > work.inputs * phase.group.taps for phase in work.phases)
        self._packer = GradientPacker(
            work.gradient, work.format, work.lanes, work.block, work.terms, offsets, padded, work.workers
        )

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Any:
        """Return the weight as the micro-kernel reads it."""
        packed = new(self._packed_bytes)
        if self._has_gaps:
            packed[: self._packed_bytes] = 0
        where = address(packed)
        special = self._packer.pack(w, where)
        return Weight(Packed(packed, where), np.array(w) if special else None)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        dy, w, *bias = inputs
        weight = w if isinstance(w, Weight) else self.pack(w, kept)
        if weight.plain is None:
            super().run((dy, weight.packed, *bias), outputs)
            return
        (dx,) = outputs
        input_gradient(self.gradient, dy, weight.plain, dx, *bias)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, gradient, size = self.work, self.gradient, self.work.size
        stored = gradient.itemsize
        if y[-1] != stored:
            return None
        missing = (1,) * (len(AXES) - gradient.ndim)
        sizes, ways = missing + gradient.input_size, missing + gradient.stride
        f, steps = reading_fields(work, x, self._tables)
        f |= dict(zip(("yn", "yk", "yd", "yh", "yw"), y, strict=True))
        f |= {"blocks": work.blocks, "parts": work.parts, "wide": work.block, "rows": work.tile.rows}
        f |= {"oc": work.outputs, "size": stored, "wblock": work.block * work.terms * size}
        f |= {"wgroup": work.packed_size // gradient.groups * size, "slab_bytes": work.scratch_bytes}
        sums = work.slab_bytes(work.band)
        zeros = sums + work.sums_bytes
        f |= {"sums": sums, "zeros": zeros, "results": zeros + work.zeros_bytes}
        f |= dict(zip(("depth", "height", "width"), sizes, strict=True))
        phases, table, runs = self._phases(steps, f["st"], f["sh"], f["sw"], ways)
        f |= {"compute": computing().address, "phases": address(phases), "count": len(phases)}
        f |= {"table": address(table), "ways_d": ways[0], "ways_h": ways[1]}
        return f, loops(ways[2], work.lanes, work.format).address, (phases, table, runs)

    def _phases(self, steps: Sizes, term: int, row: int, pixel: int, ways: Sizes) -> tuple[Any, Any, Any]:
        """Return the phases' records, the table of where their results are, and arrays that the records point to."""
        work = self.work
        records, kept_runs = [], []
        table = np.zeros((*ways, ENTRY // 8), np.int64)
        place = work.zeros_bytes
        for phase, before, channel in zip(work.phases, work.before, work.result_bytes, strict=True):
            shift = sum(count * step for count, step in zip(phase.shift, steps[1:], strict=True))
            f, runs = summing_fields(phase, steps, term, pixel, ROWS, shift)
            kept_runs.append(runs)
            f |= {"st": term, "sh": row, "sw": pixel, "w": before, "y": place, "activation": self.activation}
            f |= {"yk": channel, "yh": phase.pitch, "yw": work.problem.itemsize}
            records.append(record_of(direct.FIELDS, f))
            remainder = (0,) * (len(AXES) - self.gradient.ndim) + phase.group.members[0].remainder
            table[remainder] = place, channel, phase.pitch
            place += work.block * channel
        return np.array(records), table, kept_runs


def _offsets(work: Work, vectors: int) -> Any:
    """Return where in a packed block of so many vectors each (channel that is summed, tap) goes.

    The last place is that of taps that no phase sums.
    """
    kernel = work.gradient.kernel_size
    found = np.full((work.inputs, math.prod(kernel)), work.terms - 1, np.int64)
    number = np.arange(math.prod(kernel)).reshape(kernel)
    for phase, before in zip(work.phases, work.before, strict=True):
        taps = number[np.ix_(*phase.group.members[0].taps)].ravel()
        found[:, taps] = before + places(phase)
    return found * (vectors * work.lanes * work.size)
