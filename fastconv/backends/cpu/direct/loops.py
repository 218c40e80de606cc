"""The loops around the micro-kernel: which tile comes next, where it reads and where it writes.

One function is compiled for a tile's shape. All else about a problem is a record of integers (`JOB`), so the
number of compiled functions does not grow with the shapes that come.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.direct.job import JOB
from fastconv.backends.cpu.direct.tile import conv_tile
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.threads import call


@cache
def loops(rows: int, cols: int, vectors: int, tail: int, lanes: int, bits: int, fused: int, last: int) -> Any:
    """Return the compiled loops for a tile shape: ``run(job, start, stop, worker)`` does a range of units.

    ``vectors`` vectors of output channels make a block; the last block has ``tail`` vectors, the last of
    them perhaps not full. Of a block's weights a stage is used for all tiles of a band before the next, so that it
    stays in the cache; between stages the sums wait in memory.
    """
    size = size_of(bits)
    width = lanes * size_of(computed(bits))
    sums_bytes = rows * cols * vectors * width
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        jobs_array = carray(jobs, 1)
        job = jobs_array[0]
        slab = job.slab + worker * job.slab_bytes
        filled = -1
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            band = rest % job.bands
            depth = rest // job.bands % job.od
            group = rest // (job.bands * job.od) % job.groups
            image = rest // (job.bands * job.od * job.groups)
            # The last band and tile overlap the ones before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - rows)
            band_rows = min(job.band, job.oh - first_row)
            if job.fill:
                if rest != filled:
                    call(job.fill, jobs_array.ctypes.data, rest, 0, worker)
                    filled = rest
                source = slab - first_row * job.sh
            else:
                source = job.x + image * job.xn + group * job.xg + depth * job.sd
            y = image * job.yn + group * job.oc * job.yk + depth * job.yd
            for block in range(part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts):
                first_k = block * vectors * lanes
                channel = group * job.oc + first_k
                w = job.w + group * job.wgroup + block * job.wblock
                bias = job.bias + channel * size if job.bias else 0
                for run_ in range(0, job.nruns, job.stage):
                    nruns = min(job.stage, job.nruns - run_)
                    runs = job.runs + 8 * run_
                    terms = run_ * job.run
                    sums = slab + job.sums
                    for r in range(0, band_rows, rows):
                        row = first_row + min(r, band_rows - rows)
                        for q in range(0, job.ow, cols):
                            col = min(q, job.ow - cols)
                            at = y + first_k * job.yk + row * job.yh + col * job.yw
                            from_ = source + row * job.sh + col * job.sw
                            residual = job.residual + at if job.residual else 0
                            resumed = sums if run_ > 0 else 0
                            kept = sums if run_ + nruns < job.nruns else 0
                            if block < job.blocks - 1:
                                conv_tile(
                                    rows, cols, vectors, lanes, bits, fused, last, 0,
                                    from_, job.st, job.sh, job.sw, runs, nruns, job.run, w + terms * vectors * width,
                                    job.y + at, job.yk, job.yh, job.yw, job.oc - first_k,
                                    bias, residual, job.activation, resumed, kept,
                                )  # fmt: skip
                            else:
                                conv_tile(
                                    rows, cols, tail, lanes, bits, fused, last, 1,
                                    from_, job.st, job.sh, job.sw, runs, nruns, job.run, w + terms * tail * width,
                                    job.y + at, job.yk, job.yh, job.yw, job.oc - first_k,
                                    bias, residual, job.activation, resumed, kept,
                                )  # fmt: skip
                            sums += sums_bytes

    return run
