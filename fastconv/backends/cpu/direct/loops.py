"""The loops around the tiles: which band and block come next, where they read and where they write.

One function is compiled for all problems: slabs are filled and tiles computed by functions called by address, and all
else about a problem is a record of integers (`JOB`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.direct.job import JOB
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.memory import pointed, record


@inlined
def sweep(job, block, w, source, band_rows, y, bias, residual, sums):
    """Compute a block of output channels for some rows, whose tiles read from ``source`` on and write to ``y``.

    Of the block's weights a stage is used for all tiles before the next, so that it stays in the cache; between stages
    the sums wait in memory.
    """
    whole = block < job.blocks - 1
    full, less, wterm = (job.full0, job.less0, job.wterm0) if whole else (job.full1, job.less1, job.wterm1)
    for run_ in range(0, job.nruns, job.stage):
        nruns = min(job.stage, job.nruns - run_)
        runs = job.runs + 8 * run_
        weights = w + run_ * job.run * wterm
        resumed = sums if run_ > 0 else 0
        kept = sums if run_ + nruns < job.nruns else 0
        # Tiles of one size go over all rows, tiles of two take turns.
        for row in range(0, band_rows, job.turn):
            rows = min(job.turn, band_rows - row)
            for tiles, first, cols in ((full, 0, job.cut), (less, job.cut, job.ow - job.cut)):
                if cols == 0:
                    continue
                at = row * job.yh + first * job.yw
                before = (row * job.ow + rows * first) * wterm  # sums of all tiles before
                call(tiles, (
                    rows, cols,
                    source + row * job.sh + first * job.sw, job.st, job.sh, job.sw,
                    runs, nruns, job.run, weights,
                    y + at, job.yk, job.yh, job.yw, job.oc - block * job.wide,
                    bias, residual + at if residual else 0, job.activation,
                    resumed + before if resumed else 0, kept + before if kept else 0,
                ))  # fmt: skip


@cache
def loops() -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        filled = -1
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            band = rest % job.bands
            depth = rest // job.bands % job.od
            group = rest // (job.bands * job.od) % job.groups
            image = rest // (job.bands * job.od * job.groups)
            # The last band overlaps the one before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - job.rows)
            band_rows = min(job.band, job.oh - first_row)
            if job.fill:
                if rest != filled:
                    call(job.fill, (pointed(jobs), rest, 0, worker))
                    filled = rest
                source = slab - first_row * job.sh
            else:
                source = job.x + image * job.xn + group * job.xg + depth * job.sd
            y = image * job.yn + group * job.oc * job.yk + depth * job.yd
            for block in range(part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts):
                first_k = block * job.wide
                bias = job.bias + (group * job.oc + first_k) * job.size if job.bias else 0
                w = job.w + group * job.wgroup + block * job.wblock
                at = y + first_k * job.yk + first_row * job.yh
                residual = job.residual + at if job.residual else 0
                sums = slab + job.sums
                sweep(job, block, w, source + first_row * job.sh, band_rows, job.y + at, bias, residual, sums)

    return run
