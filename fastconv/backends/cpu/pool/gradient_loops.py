"""The loops around the micro-kernels of pools' gradients, and those over recorded positions."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import carray, njit

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, word
from fastconv.backends.cpu.pool.block import route_block
from fastconv.backends.cpu.pool.gradient_work import WAYS
from fastconv.backends.cpu.pool.loops import split
from fastconv.backends.cpu.pool.maps import spread_rows
from fastconv.backends.cpu.pool.pixel import pool_line
from fastconv.backends.cpu.pool.reduction import SUM
from fastconv.backends.cpu.pool.rows import pool_row
from fastconv.backends.cpu.pool.scatter import ADD, TAKE, scatter
from fastconv.backends.cpu.pool.spread import cover_pixel, route_row, spread_row

# Addresses, sizes and (in bytes) strides. The small side is that of the windows, the large one what they read.
_FIELDS = """
    x xn xc xd xh xw            | the large side and its strides: image, channel, depth, row, column
    y yn yc yd yh yw            | the small side and its strides
    j jn jc jd jh jw            | the indices and theirs: they are of the small side
    channels od oh ow           | sizes of the small side
    depths heights width        | sizes of the large side
    bands before above          | parts that the large side's rows are cut into; padding before columns and rows
    from_d from_h from_w        | tables: the first window that reads each element
    reads_d reads_h reads_w     | tables: how many windows do
    most rise                   | the most windows that read an element of a row; rows of a window
    scale scales one            | factors: table of depths and rows of windows; of columns, 0 for none; address of a 1
    weighted                    | whether the factors of rows differ
    block_rows block_columns    | blocks of elements along rows and columns of the large side
    block waiting               | rows of windows done before the next columns; bytes that wait for the next rows
    lines line_bytes line plane | scratch: the first worker's, bytes of each; in it a line, and weighted windows
    windows cells               | elements of a map of the small side, of the large one
    y_step j_step x_step        | from element to element of a map
    item wide                   | bytes of an element in the arrays, and as it is computed
    apart turns                 | recorded: whether sums are in scratch, whether planes take turns
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_SIGNATURE = task_type(JOB)


@njit
def _weigh(lanes, format, wide, job, y, target):
    """Copy a map of windows times their rows' factors, to format ``wide``."""
    for d in range(job.od):
        for h in range(job.oh):
            row = d * job.oh + h
            pool_row(
                SUM, 1, 1, 1, 0, 0, lanes, format, wide,
                y + d * job.yd + h * job.yh, 1, 0, 1, 0, 0, job.ow, 0, 0, 0, 0,
                target + row * job.ow * job.wide, 0, job.ow, job.scale + row * job.wide, 0, 0,
            )  # fmt: skip


@cache
def averages(kernel: int, stride: int, lanes: int, format: int) -> Any:
    """Return compiled loops of an average's gradient: ``run(job, start, stop, worker)`` does a range of units.

    Kernel and stride are those of the columns: 0 and 0 if there is one window, -1 for windows of any kind.
    """
    sources, wide = fingerprint(), computed(format)

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        scratch = job.lines + worker * job.line_bytes
        line, weighted = scratch + job.line, scratch + job.plane
        clear(scratch, job.plane)
        ready = -1
        for unit in range(start, stop):
            part, rest = split(unit, job.bands)
            d, plane = split(rest, job.depths)
            c, n = split(plane, job.channels)
            first, last = part * job.heights // job.bands, (part + 1) * job.heights // job.bands
            y, yd, yh, scale = job.y + n * job.yn + c * job.yc, job.yd, job.yh, job.scale
            if job.weighted:
                if ready != plane:
                    _weigh(lanes, format, wide, job, y, weighted)
                    ready = plane
                y, yh, scale = weighted, job.ow * job.wide, job.one
                yd = yh * job.oh
            x = job.x + n * job.xn + c * job.xc + d * job.xd
            d0, nd = word(job.from_d, d), word(job.reads_d, d)
            last_h, last_n = -1, -1
            for h in range(first, last):
                h0, nh = word(job.from_h, h), word(job.reads_h, h)
                if nd * nh == 0:
                    clear(x + h * job.xh, job.width * job.item)
                    continue
                if h0 != last_h or nh != last_n:
                    pool_row(
                        SUM, 1, 1, 0, 0, 0, lanes, wide, wide,
                        y + d0 * yd + h0 * yh, nd, yd, nh, yh, 0, job.ow, 0, 0, 0, 0,
                        line, 0, job.ow, scale, job.scales, 0,
                    )  # fmt: skip
                    last_h, last_n = h0, nh
                if kernel >= 0:
                    room = job.width * (last - h if job.xh == job.width * job.item else 1)
                    spread_row(kernel, stride, lanes, format, line, job.width, room, job.before, x + h * job.xh)
                else:
                    for w in range(0, job.width, lanes):
                        pool_line(
                            SUM, 0, 0, lanes, format,
                            line, 0, job.from_w + 8 * w, job.reads_w + 8 * w, job.most, 1,
                            x + h * job.xh + w * job.item, 0, min(lanes, job.width - w), job.one, 0, 0,
                        )  # fmt: skip

    return run


@cache
def routes(kernel: int, lanes: int, format: int) -> Any:
    """Return compiled loops of a max pool's gradient whose windows lie side by side: a unit is a plane."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        for plane in range(start, stop):
            c, n = split(plane, job.channels)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            j = job.j + n * job.jn + c * job.jc
            for h in range(job.oh):
                first = h * job.rise
                # What lies behind is written later, if every row is written at once.
                single = job.width <= kernel * lanes and job.xh == job.width * job.item
                room = (job.heights - first) * job.width if single else -1
                route_row(
                    kernel, lanes, format,
                    y + h * job.yh, j + h * job.jh, job.ow, first * job.width, job.rise, job.width,
                    job.width, room, x + first * job.xh, job.xh,
                )  # fmt: skip
            for h in range(job.oh * job.rise, job.heights):
                clear(x + h * job.xh, job.width * job.item)

    return run


@cache
def maps(op: int, kernel: int, stride: int, lanes: int, format: int) -> Any:
    """Return compiled loops of the gradient of square windows, a unit is a plane."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        lead = 0 if stride == 1 else job.before
        groups = (job.width + lead + stride * lanes - 1) // (stride * lanes)
        # What a vector writes beyond its row is written later, but behind the last rows.
        behind = (stride * lanes + job.width - 1) // job.width
        safe = job.heights - behind if groups == 1 and job.xh == job.width * job.item else 0
        lines = job.lines + worker * job.line_bytes
        for plane in range(start, stop):
            c, n = split(plane, job.channels)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            j = job.j + n * job.jn + c * job.jc
            if kernel > stride:
                clear(lines, job.line_bytes)
            for h in range(0, job.oh, job.block):
                rows = min(job.block, job.oh - h)
                for group in range(groups):
                    spread_rows(
                        op, kernel, stride, lanes, format,
                        y + h * job.yh, job.yh, j + h * job.jh, job.jh, job.ow, group * lanes,
                        h * stride - job.above, rows, h + rows == job.oh,
                        x, job.xh, job.width, job.heights, job.before, safe,
                        job.scale + h * job.wide, job.scales, lines + group * job.waiting,
                    )  # fmt: skip

    return run


@cache
def blocks(kernel: int, stride: int, lanes: int, format: int) -> Any:
    """Return compiled loops of a max pool's gradient whose lanes are channels: a unit is a row of blocks."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        for unit in range(start, stop):
            row, n = split(unit, job.block_rows)
            x, y, j = job.x + n * job.xn, job.y + n * job.yn, job.j + n * job.jn
            for column in range(job.block_columns):
                route_block(
                    kernel, stride, lanes, format,
                    y, job.yh, job.yw, j, job.jh, job.jw, job.oh, job.ow, row, column,
                    x, job.xh, job.xw, job.heights, job.width, job.above, job.before, job.channels,
                )  # fmt: skip

    return run


@njit
def _cover(vectors, partial, fused, lanes, format, job, x, y, d, h, w, d0, h0, w0, left):
    cover_pixel(
        vectors, partial, fused, lanes, format,
        y, word(job.reads_d, d), job.yd, word(job.reads_h, h), job.yh, word(job.reads_w, w), job.yw,
        job.scale + (d0 * job.oh + h0) * job.wide, job.oh * job.wide, job.scales + w0 * job.wide if job.scales else 0,
        x, left,
    )  # fmt: skip


@cache
def covers(vectors: int, fused: int, lanes: int, format: int) -> Any:
    """Return compiled loops of an average's gradient whose lanes are channels: a unit is a row of the input."""
    step = vectors * lanes
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        for unit in range(start, stop):
            h, rest = unit % job.heights, unit // job.heights
            d, n = rest % job.depths, rest // job.depths
            d0, h0 = word(job.from_d, d), word(job.from_h, h)
            some = word(job.reads_d, d) * word(job.reads_h, h)
            for w in range(job.width):
                x = job.x + n * job.xn + d * job.xd + h * job.xh + w * job.xw
                w0, left = word(job.from_w, w), job.channels
                if some * word(job.reads_w, w) == 0:
                    clear(x, left * job.item)
                    continue
                y = job.y + n * job.yn + d0 * job.yd + h0 * job.yh + w0 * job.yw
                while left >= step:
                    _cover(vectors, 0, fused, lanes, format, job, x, y, d, h, w, d0, h0, w0, left)
                    x, y, left = x + step * job.item, y + step * job.item, left - step
                if left > 0:
                    _cover(vectors, 1, fused, lanes, format, job, x, y, d, h, w, d0, h0, w0, left)

    return run


@njit
def _scatter(
    action, ways, dense, format, job, count, x, x_way, x_next, step, y, y_way, y_next, j, j_way, j_next, aside,
):  # fmt: skip
    scatter(
        action, ways, dense, format,
        count, x, x_way, x_next, step, job.cells, y, y_way, y_next, j, j_way, j_next, aside,
    )  # fmt: skip


@njit
def _narrow(lanes, format, wide, job, source, target, count):
    """Copy neighbouring sums to where they are stored."""
    pool_row(
        SUM, 1, 1, 1, 0, 0, lanes, wide, format,
        source, 1, 0, 1, 0, 0, count, 0, 0, 0, 0, target, 0, count, job.one, 0, 0,
    )  # fmt: skip


@njit
def _recorded_planes(action, ways, lanes, format, wide, job, plane, aside):
    """Do a few planes of one image."""
    c, n = split(plane, job.channels)
    x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
    j = job.j + n * job.jn + c * job.jc
    cells, way_step, size = (aside + 64, job.cells * job.wide, job.wide) if job.apart else (x, job.xc, job.item)
    if action != TAKE:
        for way in range(ways):
            clear(cells + way * way_step, job.cells * size)
    _scatter(
        action, ways, 1, format, job, job.windows,
        cells, way_step, 0, 0, y, job.yc, job.item, j, job.jc, 8, aside,
    )  # fmt: skip
    if action == ADD and job.apart:
        for way in range(ways):
            _narrow(lanes, format, wide, job, cells + way * way_step, x + way * job.xc, job.cells)


@njit
def _recorded_image(action, lanes, format, wide, job, unit, aside):
    """Do an image whose channels are neighbours, or a part of these."""
    size, item = job.item, 64 // job.item
    part, n = split(unit, job.bands)
    lines = (job.channels + item - 1) // item
    first = part * lines // job.bands * item
    channels = min((part + 1) * lines // job.bands * item, job.channels) - first
    x, y, j = job.x + n * job.xn + first * size, job.y + n * job.yn + first * size, job.j + n * job.jn + first * 8
    cells, step, cell = (aside + 64, channels * job.wide, job.wide) if job.apart else (x, job.x_step, size)
    whole = channels // WAYS
    done = whole * WAYS
    if action != TAKE:
        if step == channels * cell:
            clear(cells, job.cells * step)
        else:
            for i in range(job.cells):
                clear(cells + i * step, channels * cell)
    for _ in range(job.windows):
        if whole > 0:
            _scatter(
                action, WAYS, 0, format, job, whole,
                cells, cell, WAYS * cell, step, y, size, WAYS * size, j, 8, WAYS * 8, aside,
            )  # fmt: skip
        if done < channels:
            _scatter(
                action, 1, 0, format, job, channels - done,
                cells + done * cell, 0, cell, step, y + done * size, 0, size, j + done * 8, 0, 8, aside,
            )  # fmt: skip
        y, j = y + job.y_step, j + job.j_step
    if action == ADD and job.apart:
        for i in range(job.cells):
            _narrow(lanes, format, wide, job, cells + i * step, x + i * job.x_step, channels)


@cache
def recorded(action: int, last: int, lanes: int, format: int) -> Any:
    """Return compiled loops over recorded positions; a unit is a plane, or (``last``) channels of an image."""
    sources, wide = fingerprint(), computed(format)

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        aside = job.lines + worker * job.line_bytes
        unit = start
        while unit < stop:
            if last:
                _recorded_image(action, lanes, format, wide, job, unit, aside)
                unit += 1
            elif job.turns and min(stop - unit, job.channels - unit % job.channels) >= WAYS:
                _recorded_planes(action, WAYS, lanes, format, wide, job, unit, aside)
                unit += WAYS
            else:
                _recorded_planes(action, 1, lanes, format, wide, job, unit, aside)
                unit += 1

    return run
