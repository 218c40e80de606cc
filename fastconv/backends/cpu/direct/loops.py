"""The loops around the tiles: which band and block come next, where they read and where they write.

One function is compiled for all problems: slabs are filled and tiles computed by functions called by address, and all
else about a problem is a record of integers (`JOB`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.direct.job import JOB, located
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.memory import clear, pointed, record, word
from fastconv.backends.cpu.shared_words import call_integer


@inlined
def _alike(job, row, left):
    """Return how many of the rows that are left, from one on, sum the same taps: those of whole tiles."""
    alike = min(left, job.inner_stop - row) if row >= job.inner else 0
    return max(job.rows, left if alike == left else alike - alike % job.rows)


@inlined
def _met(job, depth, row, stop):
    """Return the first run of terms that meets the input in some rows of a depth, and the run behind the last."""
    first, last = 0, job.nruns
    if job.met_d:
        first, last = word(job.met_d, 2 * depth) * job.plane, word(job.met_d, 2 * depth + 1) * job.plane
    if row < job.inner or stop > job.inner_stop:
        # A band may end behind the rows that there are.
        first = max(first, word(job.met_h, 2 * min(stop, job.oh) - 2) * job.line)
        last = min(last, word(job.met_h, 2 * min(row, job.oh - 1) + 1) * job.line)
    return first, last


@inlined
def sweep(job, block, w, source, depth, first_row, band_rows, y, bias, residual, sums, cut):
    """Compute a block of output channels for some rows, whose tiles read from ``source`` on and write to ``y``.

    With ``cut``, taps are left out that meet nothing but padding, by which the weight is not to be multiplied then.
    Of the block's weights a stage is used for all tiles before the next, so that it stays in the cache; between stages
    the sums wait in memory.
    """
    whole = block < job.blocks - 1
    full, less, wterm = (job.full0, job.less0, job.wterm0) if whole else (job.full1, job.less1, job.wterm1)
    for run_ in range(0, job.nruns, job.stage):
        end = min(run_ + job.stage, job.nruns)
        resumed = sums if run_ > 0 else 0
        kept = sums if end < job.nruns else 0
        # Tiles of one size go over all rows, tiles of two take turns.
        for row in range(0, band_rows, job.turn):
            rows = min(job.turn, band_rows - row)
            for tiles, first, cols, strip in (
                (full, 0, job.cut, job.strip), (less, job.cut, job.ow - job.cut, job.ow - job.cut),
            ):  # fmt: skip
                if cols == 0:
                    continue
                done = 0
                while done < rows:
                    # The last tile of a band overlaps the one before.
                    line = row + min(done, rows - job.rows)
                    height = _alike(job, first_row + line, rows - done) if cut else rows
                    start, stop = run_, end
                    if cut:
                        met, last = _met(job, depth, first_row + line, first_row + line + height)
                        start, stop = max(run_, met), min(end, last)
                        if start >= stop:  # what is summed then is zeros
                            start, stop = run_, run_ + 1
                    at = line * job.yh + first * job.yw
                    before = (row * job.ow + rows * first + done * strip) * wterm  # sums of all tiles before
                    call(tiles, (
                        height, cols,
                        source + line * job.sh + first * job.sw, job.st, job.sh, job.sw,
                        job.runs + 8 * start, stop - start, job.run, w + start * job.run * wterm,
                        y + at, job.yk, job.yh, job.yw, job.oc - block * job.wide,
                        bias, residual + at if residual else 0, job.activation,
                        resumed + before if resumed else 0, kept + before if kept else 0,
                    ))  # fmt: skip
                    done += height


@inlined
def _packed(job, group, block, target):
    """Pack a block of output channels to ``target``, and return whether taps may be left out of it."""
    first = block * job.wide
    table = job.offsets if block < job.blocks - 1 else job.tail_offsets
    if job.padded:
        clear(target, job.wblock)
    source, rows = job.w + (group * job.oc + first) * job.row, min(job.wide, job.oc - first)
    special = call_integer(job.pack, (source, job.row, rows, job.row_terms, target, table))
    return job.cuts > 0 and special == 0


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
            image, group, depth, first_col, band = located(job, rest)
            # The last band overlaps the one before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - job.rows)
            band_rows = min(job.band, job.oh - first_row)
            if job.fill:
                behind = depth % job.deep
                if rest - behind != filled:
                    filled = rest - behind
                    call(job.fill, (pointed(jobs), filled, 0, worker))
                source = slab + behind * job.sd - first_row * job.sh
            else:
                source = job.x + image * job.xn + group * job.xg + depth * job.sd + first_col * job.sw
            y = image * job.yn + group * job.oc * job.yk + depth * job.yd + first_col * job.yw
            for block in range(part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts):
                first_k = block * job.wide
                bias = job.bias + (group * job.oc + first_k) * job.size if job.bias else 0
                w = job.w + group * job.wgroup + block * job.wblock
                at = y + first_k * job.yk + first_row * job.yh
                residual = job.residual + at if job.residual else 0
                sums = slab + job.sums
                if job.pack:
                    w = slab + job.room
                    cut = _packed(job, group, block, w)
                else:
                    cut = job.found > 0 and not word(job.w + job.found, group * job.blocks + block)
                sweep(
                    job, block, w, source + first_row * job.sh, depth, first_row, band_rows,
                    job.y + at, bias, residual, sums, cut,
                )  # fmt: skip

    return run
