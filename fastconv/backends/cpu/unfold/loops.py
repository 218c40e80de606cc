"""The loops around the micro-kernels of unfold and fold."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.dgrad.interleave import weave
from fastconv.backends.cpu.elements import get, put
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, copy, fetch, move, record, stream, word
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.unfold.rows import copy_rows, every_other, gather_row, turn

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
    ahead                       | bytes from what is read to what is read soon
    passes                      | whether rows go past the caches, and are made in scratch before
    taps_d                      | table: the taps of depths
    from_d from_h from_w        | tables: the first entry among the taps, for each depth, row, or phase of columns
    reads_d reads_h reads_w     | tables: how many entries
    positions listed cells      | table of `listed.positions`, its length; elements of a map
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_SIGNATURE = task_type(JOB)


@inlined
def _unit(job, unit, outer):
    """Return a unit's image, first channel and how many, its depth, its first row."""
    band, rest = unit % job.bands, unit // job.bands
    d, rest = rest % outer, rest // outer
    part, n = rest % job.blocks, rest // job.blocks
    first = part * job.block
    return n, first, min(job.block, job.channels - first), d, band * job.band


# How elements get from the map to its phases and back: one by one; transposed in blocks, of neighbouring channels or of
# the phases of a row; two phases woven; whole rows as they are; from windows side by side, without any sums.
ELEMENTS, CHANNELS, PHASES, WOVEN, ROWS, PATCHES = range(6)


@inlined
def _turn(lanes, format, size, wide, source, source_step, count, target, target_step, length):
    """Transpose ``count`` lines of ``length`` elements of ``wide`` bytes, block by block."""
    for i in range(0, count, lanes):
        for j in range(0, length, lanes):
            turn(
                lanes, format,
                source + i * source_step + j * wide, source_step, min(lanes, count - i),
                target + j * target_step + i * size, target_step, min(lanes, length - j),
            )  # fmt: skip


@inlined
def _lay_line(lanes, bits, job, source, target, count):
    """Lay a phase of a row out in the slab."""
    size = bits // 8
    step = job.sw * job.xw
    if step == size:
        copy(target, source, count * size)
        return
    if size >= 4 and step == 2 * size:
        every_other(lanes, bits, source, target, count)
        return
    for _ in range(count):
        move(target, source, size)
        source, target = source + step, target + size


@inlined
def _lay_row(how, lanes, bits, job, row, channels, slab):
    """Lay a row of some channels out in the slab, zeros where it is padding."""
    size = bits // 8
    if how == PHASES:
        source = row + word(job.phases_w, 2) * job.xw
        _turn(
            lanes, bits, size, size,
            source, job.sw * job.xw, job.line, slab, job.channel, job.nphases_w * channels,
        )  # fmt: skip
        return
    for phase in range(job.nphases_w):
        table, target = job.phases_w + 24 * phase, slab + phase * job.column_phase
        start, stop = word(table, 0), word(table, 1)
        source = row + word(table, 2) * job.xw
        for c in range(channels):
            to = target + c * job.channel
            if start > 0:
                clear(to, start * size)
            if stop < job.line:
                clear(to + stop * size, (job.line - stop) * size)
            if how == ELEMENTS and stop > start:
                _lay_line(lanes, bits, job, source + c * job.xc, to + start * size, stop - start)
        if how == CHANNELS:
            _turn(
                lanes, bits, size, size,
                source, job.sw * job.xw, stop - start, target + start * size, job.channel, channels,
            )  # fmt: skip


@inlined
def _lay(how, lanes, bits, job, x, channels, depth, first, slab):
    """Lay a depth of some channels out: the rows that windows from the first on read."""
    row_bytes = job.line * (bits // 8)
    for phase in range(job.nphases_h):
        remainder = word(job.phases_h, phase)
        for i in range(job.row_phase // row_bytes):
            h = (first + i) * job.sh + remainder - job.above
            target = slab + phase * job.row_phase + i * row_bytes
            if 0 <= h < job.heights and 0 <= depth < job.depths:
                _lay_row(how, lanes, bits, job, x + depth * job.xd + h * job.xh, channels, target)
            else:
                for column in range(job.nphases_w):
                    for c in range(channels):
                        clear(target + column * job.column_phase + c * job.channel, row_bytes)


@inlined
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
def unfolds(how: int, vector: int, bits: int) -> Any:
    """Return compiled loops of unfold: ``run(job, start, stop, worker)`` does a range of units."""
    size = bits // 8
    lanes = vector // size
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        for unit in range(start, stop):
            n, c, channels, d, first = _unit(job, unit, job.od)
            rows = min(job.band, job.oh - first)
            taps = job.kd * job.kh * job.kw
            x = job.x + n * job.xn + c * job.xc
            y = job.y + n * job.yn + c * taps * job.yc + (d * job.oh + first) * job.ow * size
            for k in range(job.kd):
                depth = d * job.sd + k * job.dd - job.front
                _lay(how, lanes, bits, job, x, channels, depth, first, slab + k * job.level)
            for i in range(channels):
                for k in range(job.kd):
                    _copy_taps(vector, size, job, slab + i * job.channel + k * job.level, y, rows)
                    y += job.kh * job.kw * job.yc

    return run


@inlined
def _gather(vectors, narrows, lanes, format, job, y, d, h, phase, first, target, count):
    gather_row(
        vectors, narrows, lanes, format,
        y, job.yc, job.ahead, job.taps_d + 16 * word(job.from_d, d), word(job.reads_d, d),
        job.taps_h + 16 * word(job.from_h, h), word(job.reads_h, h),
        job.taps_w + 16 * word(job.from_w, phase), word(job.reads_w, phase), first, job.ow, target, count,
    )  # fmt: skip


@inlined
def _fold_line(narrows, lanes, format, size, job, y, d, h, phase, target):
    """Compute a phase of a row; ``size`` is that of the target's elements."""
    left, first = word(job.phases_w, 3 * phase + 1), word(job.phases_w, 3 * phase + 2)
    if word(job.reads_d, d) * word(job.reads_h, h) == 0:
        clear(target, left * size)
        return
    while left > 2 * lanes:
        _gather(4, narrows, lanes, format, job, y, d, h, phase, first, target, left)
        first, target, left = first + 4 * lanes, target + 4 * lanes * size, left - 4 * lanes
    if left > lanes:
        _gather(2, narrows, lanes, format, job, y, d, h, phase, first, target, left)
        return
    if left > 0:
        _gather(1, narrows, lanes, format, job, y, d, h, phase, first, target, left)


@inlined
def _spread_phase(format, wide, size, wide_size, job, phase, first, slab, channels, x):
    """Write the elements of a phase, from the first on, to a row of the map."""
    table = job.phases_w + 24 * phase
    step = job.sw * job.xw
    to = x + word(table, 0) * job.xw + first * step
    for w in range(first, word(table, 1)):
        source = slab + phase * job.column_phase + w * wide_size
        for c in range(channels):
            put(format, to + c * job.xc, get(wide, source + c * job.channel))
        to += step


@inlined
def _spread(how, lanes, format, wide, size, wide_size, job, slab, channels, x):
    """Write a row of some channels, each in phases, to the map; columns that no window reads are cleared."""
    if job.nphases_w < job.sw:
        for w in range(job.width):
            for c in range(channels):
                clear(x + c * job.xc + w * job.xw, size)
    step = job.sw * job.xw
    if how == PHASES:
        least = word(job.phases_w + 24 * (job.nphases_w - 1), 1)
        _turn(
            lanes, format, size, wide_size,
            slab, job.channel, job.nphases_w * channels, x + word(job.phases_w, 0) * job.xw, step, least,
        )  # fmt: skip
        for phase in range(job.nphases_w):
            _spread_phase(format, wide, size, wide_size, job, phase, least, slab, channels, x)
    elif how == WOVEN:
        for c in range(channels):
            pair = (slab + c * job.channel, slab + c * job.channel + job.column_phase)
            weave(2, lanes, wide, x + c * job.xc, pair, job.width)
    elif how == CHANNELS:
        for phase in range(job.nphases_w):
            table = job.phases_w + 24 * phase
            _turn(
                lanes, format, size, wide_size,
                slab + phase * job.column_phase, job.channel, channels, x + word(table, 0) * job.xw, step,
                word(table, 1),
            )  # fmt: skip
    else:
        for phase in range(job.nphases_w):
            _spread_phase(format, wide, size, wide_size, job, phase, 0, slab, channels, x)


@inlined
def _fold_row(lanes, format, wide_size, job, y, d, h, target):
    """Compute the phases of a row in the slab."""
    for phase in range(job.nphases_w):
        _fold_line(0, lanes, format, wide_size, job, y, d, h, phase, target + phase * job.column_phase)


@inlined
def _patch_row(lanes, bits, job, y, d, h, x):
    """Write a row of the map, each element of which is in one window at most, and the windows are side by side."""
    size = bits // 8
    if job.ow * job.kw < job.width or word(job.reads_d, d) * word(job.reads_h, h) == 0:
        clear(x, job.width * size)
        if word(job.reads_d, d) * word(job.reads_h, h) == 0:
            return
    depth, row = job.taps_d + 16 * word(job.from_d, d), job.taps_h + 16 * word(job.from_h, h)
    source = y + (word(depth, 0) + word(row, 0)) * job.yc + word(depth, 1) + word(row, 1)
    if job.kw == 2:
        weave(2, lanes, bits, x, (source, source + job.yc), 2 * job.ow)
    else:
        _turn(lanes, bits, size, size, source, job.yc, job.kw, x, job.kw * size, job.ow)


@inlined
def _patch_rows(lanes, bits, job, y, soon, d, first, end, x, slab):
    """Write some rows of the map, in the order of memory, and ask for as much from ``soon`` on, unless that is 0."""
    row = job.width * (bits // 8)
    for h in range(first, end):
        to = x + h * job.xh
        if soon:
            fetch(soon + (d * job.heights + h) * row, row)
        _patch_row(lanes, bits, job, y, d, h, slab + LINE if job.passes else to)
        if job.passes:
            stream(to, slab + LINE, row, h == first, h + 1 == end)


@cache
def folds(how: int, lanes: int, format: int) -> Any:
    """Return compiled loops of fold: ``run(job, start, stop, worker)`` does a range of units."""
    size, wide = size_of(format), computed(format)
    wide_size = size_of(wide)
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        taps = job.kd * job.kh * job.kw
        for unit in range(start, stop):
            n, c, channels, d, first = _unit(job, unit, job.depths)
            end = min(first + job.band, job.heights)
            x = job.x + n * job.xn + c * job.xc + d * job.xd
            y = job.y + n * job.yn + c * taps * job.yc
            if how == PATCHES:
                another = job.ahead > 0 and unit + job.bands * job.depths < stop
                _patch_rows(lanes, wide, job, y, y + job.ahead if another else 0, d, first, end, x, slab)
                continue
            # Rows that the same kernel positions read follow each other, in what these hold as well.
            if channels == 1:
                for phase in range(min(job.sh, end - first)):
                    for h in range(first + phase, end, job.sh):
                        to = x + h * job.xh
                        if how == ROWS:
                            _fold_line(1, lanes, format, size, job, y, d, h, 0, to)
                        else:
                            _fold_row(lanes, format, wide_size, job, y, d, h, slab)
                            _spread(how, lanes, format, wide, size, wide_size, job, slab, 1, to)
                continue
            for i in range(channels):
                for phase in range(min(job.sh, end - first)):
                    for h in range(first + phase, end, job.sh):
                        target = slab + (h - first) * job.level + i * job.channel
                        _fold_row(lanes, format, wide_size, job, y, d, h, target)
                y += taps * job.yc
            for h in range(first, end):
                to = slab + (h - first) * job.level
                _spread(how, lanes, format, wide, size, wide_size, job, to, channels, x + h * job.xh)

    return run
