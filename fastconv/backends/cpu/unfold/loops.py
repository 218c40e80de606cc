"""The loops around the micro-kernels of unfold and fold."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray, njit

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.elements import get, put
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, copy, move, word
from fastconv.backends.cpu.unfold.rows import copy_rows, gather_row

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh xw            | the map and its strides: image, channel, depth, row, column
    y yn yc                     | the columns and their strides: image, kernel position
    slab slab_bytes             | scratch: where that of the first worker is, bytes of each
    channels block blocks       | channels, those of a unit, parts of so many
    bands band                  | parts that the rows are cut into, rows of each
    depths heights width        | sizes of the map
    od oh ow                    | windows along each axis
    kd kh kw                    | sizes of the kernel
    front above before          | padding before each axis
    sd sh sw dd                 | strides; dilation of depths
    line                        | elements of a row in a phase
    channel level               | bytes in the slab: of a channel, of a depth
    phases_h phases_w           | tables: what is in a phase
    nphases_h nphases_w         | how many phases there are
    column_phase row_phase      | bytes from phase to phase
    taps_h taps_w               | tables: of an unfold, bytes to a kernel position; of a fold, the taps of the phases
    taps_d                      | table: the taps of depths
    from_d from_h from_w        | tables: the first entry among the taps, for each depth, row, or phase of columns
    reads_d reads_h reads_w     | tables: how many entries
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_SIGNATURE = task_type(JOB)


@njit
def _unit(job, unit, outer):
    """Return a unit's image, first channel and how many, its depth, its first row."""
    band, rest = unit % job.bands, unit // job.bands
    d, rest = rest % outer, rest // outer
    part, n = rest % job.blocks, rest // job.blocks
    first = part * job.block
    return n, first, min(job.block, job.channels - first), d, band * job.band


@njit
def _lay_line(size, job, row, table, target):
    """Lay a phase of a row out in the slab, zeros where it is padding."""
    start, stop, place = word(table, 0), word(table, 1), word(table, 2)
    if start > 0:
        clear(target, start * size)
    if stop < job.line:
        clear(target + stop * size, (job.line - stop) * size)
    step = job.sw * job.xw
    source, to = row + place * job.xw, target + start * size
    if step == size:
        copy(to, source, (stop - start) * size)
        return
    for _ in range(stop - start):
        move(to, source, size)
        source, to = source + step, to + size


@njit
def _lay(size, job, x, channels, depth, first, slab):
    """Lay a depth of some channels out: the rows that windows from the first on read."""
    for phase in range(job.nphases_h):
        remainder = word(job.phases_h, phase)
        for i in range(job.row_phase // (job.line * size)):
            h = (first + i) * job.sh + remainder - job.above
            target = slab + phase * job.row_phase + i * job.line * size
            inside = 0 <= h < job.heights and 0 <= depth < job.depths
            row = x + depth * job.xd + h * job.xh
            for c in range(channels):
                for column in range(job.nphases_w):
                    to = target + c * job.channel + column * job.column_phase
                    if inside:
                        _lay_line(size, job, row + c * job.xc, job.phases_w + 24 * column, to)
                    else:
                        clear(to, job.line * size)


@njit
def _copy_taps(vector, size, job, slab, y, rows):
    """Copy what the kernel positions of a depth read to their rows of columns."""
    width, pitch = job.ow * size, job.line * size
    for h in range(job.kh):
        for w in range(job.kw):
            source = slab + word(job.taps_h, h) + word(job.taps_w, w)
            if width == pitch:
                copy_rows(vector, source, 0, y, 0, 1, rows * width)
            else:
                copy_rows(vector, source, pitch, y, width, rows, width)
            y += job.yc


@cache
def unfolds(vector: int, size: int) -> Any:
    """Return compiled loops of unfold: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        slab = job.slab + worker * job.slab_bytes
        for unit in range(start, stop):
            n, c, channels, d, first = _unit(job, unit, job.od)
            rows = min(job.band, job.oh - first)
            taps = job.kd * job.kh * job.kw
            x = job.x + n * job.xn + c * job.xc
            y = job.y + n * job.yn + c * taps * job.yc + (d * job.oh + first) * job.ow * size
            for k in range(job.kd):
                _lay(size, job, x, channels, d * job.sd + k * job.dd - job.front, first, slab + k * job.level)
            for i in range(channels):
                for k in range(job.kd):
                    _copy_taps(vector, size, job, slab + i * job.channel + k * job.level, y, rows)
                    y += job.kh * job.kw * job.yc

    return run


@njit
def _gather(vectors, narrows, lanes, format, job, y, d, h, phase, first, target, count):
    gather_row(
        vectors, narrows, lanes, format,
        y, job.yc, job.taps_d + 16 * word(job.from_d, d), word(job.reads_d, d),
        job.taps_h + 16 * word(job.from_h, h), word(job.reads_h, h),
        job.taps_w + 16 * word(job.from_w, phase), word(job.reads_w, phase), first, job.ow, target, count,
    )  # fmt: skip


@njit
def _fold_line(narrows, lanes, format, size, job, y, d, h, phase, target):
    """Compute a phase of a row; ``size`` is that of the target's elements."""
    left, first = word(job.phases_w, 3 * phase + 1), word(job.phases_w, 3 * phase + 2)
    if word(job.reads_d, d) * word(job.reads_h, h) == 0:
        clear(target, left * size)
        return
    while left > 2 * lanes:
        _gather(4, narrows, lanes, format, job, y, d, h, phase, first, target, left)
        first, target, left = first + 4 * lanes, target + 4 * lanes * size, left - 4 * lanes
    while left > 0:
        _gather(1, narrows, lanes, format, job, y, d, h, phase, first, target, left)
        first, target, left = first + lanes, target + lanes * size, left - lanes


@njit
def _spread(format, wide, size, wide_size, job, slab, channels, x):
    """Write rows of some channels, each in phases, to the map; columns that no window reads are cleared."""
    if job.nphases_w < job.sw:
        for w in range(job.width):
            for c in range(channels):
                clear(x + c * job.xc + w * job.xw, size)
    for phase in range(job.nphases_w):
        table = job.phases_w + 24 * phase
        to, step = x + word(table, 0) * job.xw, job.sw * job.xw
        for w in range(word(table, 1)):
            source = slab + phase * job.column_phase + w * wide_size
            for c in range(channels):
                put(format, to + c * job.xc, get(wide, source + c * job.channel))
            to += step


@cache
def folds(last: int, lanes: int, format: int) -> Any:
    """Return compiled loops of fold: ``run(job, start, stop, worker)`` does a range of units."""
    size, wide = size_of(format), computed(format)
    wide_size = size_of(wide)
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        slab = job.slab + worker * job.slab_bytes
        taps = job.kd * job.kh * job.kw
        for unit in range(start, stop):
            n, c, channels, d, first = _unit(job, unit, job.depths)
            rows = min(job.band, job.heights - first)
            x = job.x + n * job.xn + c * job.xc + d * job.xd + first * job.xh
            y = job.y + n * job.yn + c * taps * job.yc
            if last:
                for i in range(channels):
                    for h in range(rows):
                        target = slab + i * job.channel + h * job.level
                        for phase in range(job.nphases_w):
                            to = target + phase * job.column_phase
                            _fold_line(0, lanes, format, wide_size, job, y, d, first + h, phase, to)
                    y += taps * job.yc
                for h in range(rows):
                    _spread(format, wide, size, wide_size, job, slab + h * job.level, channels, x + h * job.xh)
            elif job.sw == 1 and job.xw == size:
                for h in range(rows):
                    _fold_line(1, lanes, format, size, job, y, d, first + h, 0, x + h * job.xh)
            else:
                for h in range(rows):
                    for phase in range(job.nphases_w):
                        to = slab + phase * job.column_phase
                        _fold_line(0, lanes, format, wide_size, job, y, d, first + h, phase, to)
                    _spread(format, wide, size, wide_size, job, slab, 1, x + h * job.xh)

    return run
