"""The loops around the micro-kernels of pools' gradients, and those over recorded positions."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, record, stream, word
from fastconv.backends.cpu.pool.block import route_block
from fastconv.backends.cpu.pool.cover import cover_columns, weigh_rows
from fastconv.backends.cpu.pool.fill import fill_maps
from fastconv.backends.cpu.pool.gradient_work import WAYS
from fastconv.backends.cpu.pool.loops import split
from fastconv.backends.cpu.pool.maps import spread_rows
from fastconv.backends.cpu.pool.pixel import pool_line
from fastconv.backends.cpu.pool.reduction import SUM
from fastconv.backends.cpu.pool.rows import pool_row
from fastconv.backends.cpu.pool.scatter import ADD, TAKE, scatter
from fastconv.backends.cpu.pool.shares import ENTRY, share_rows
from fastconv.backends.cpu.pool.spread import route_row, spread_row
from fastconv.backends.cpu.pool.tiles import fill_tiles

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
    alike entries joined        | table of rows that the same windows read, its length, and that of all maps joined or 0
    firsts offsets counts       | tables of `windows.picks`
    most rise                   | the most windows that read an element of a row; rows of a window
    scale scales one            | factors: table of depths and rows of windows; of columns, 0 for none; address of a 1
    values roots powers         | norms: the elements and the norms, which lie as both sides do, and their exponents
    block_rows block_columns    | blocks of elements along rows and columns of the large side
    block waiting               | rows of windows done before the next columns; bytes that wait for the next rows
    lines line_bytes line plane | scratch: the first worker's, bytes of each; in it a line, and a row of sums
    passes ready                | whether rows go past the caches, and where in scratch they are made then
    windows cells               | elements of a map of the small side, of the large one
    y_step j_step x_step        | from element to element of a map
    item wide                   | bytes of an element in the arrays, and as it is computed
    apart turns                 | recorded: whether sums are in scratch, whether planes take turns
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_SIGNATURE = task_type(JOB)


@inlined
def _weigh(norm, fused, lanes, format, job, y, count, d0, nd, h0, nh, scales, line):
    """Sum the rows of windows that read a row: elements that follow one another, from an address on."""
    weigh_rows(
        norm, fused, lanes, format,
        y, nd, job.yd, nh, job.yh, count, job.scale + (d0 * job.oh + h0) * job.wide, job.oh * job.wide, scales,
        job.roots + (y - job.y), job.powers, line,
    )  # fmt: skip


@inlined
def _base(job, worker, x, top):
    """Return the address of a map whose rows from ``top`` on are where they are made: there, or in scratch."""
    return job.lines + worker * job.line_bytes + job.ready - top * job.xh if job.passes else x


@inlined
def _done(job, worker, x, top, bottom, begins, ends):
    """Send on what was made in scratch: the next rows of the worker's run, which its first unit begins."""
    if job.passes:
        source = job.lines + worker * job.line_bytes + job.ready
        stream(x + top * job.xh, source, (bottom - top) * job.width * job.item, begins, ends)


@cache
def averages(kernel: int, stride: int, norm: int, fused: int, lanes: int, format: int) -> Any:
    """Return compiled loops of gradients of averages and norms: ``run(job, start, stop, worker)`` does some units.

    Kernel and stride are those of the columns: 0 and 0 if there is one window, -1 for windows of any kind.
    """
    sources = fingerprint()
    # What a norm's elements receive is made aside, since it is multiplied before it is stored.
    target = computed(format) if norm else format

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        scratch = job.lines + worker * job.line_bytes
        line, aside = scratch + job.line, scratch + job.plane
        size = job.wide if norm else job.item
        clear(scratch, job.plane)
        for unit in range(start, stop):
            part, rest = split(unit, job.bands)
            d, plane = split(rest, job.depths)
            c, n = split(plane, job.channels)
            first, last = part * job.heights // job.bands, (part + 1) * job.heights // job.bands
            x = job.x + n * job.xn + c * job.xc + d * job.xd
            d0, nd = word(job.from_d, d), word(job.reads_d, d)
            y = job.y + n * job.yn + c * job.yc + d0 * job.yd
            last_h, last_n = -1, -1
            for h in range(first, last):
                h0, nh = word(job.from_h, h), word(job.reads_h, h)
                if h0 != last_h or nh != last_n:
                    _weigh(norm, fused, lanes, format, job, y + h0 * job.yh, job.ow, d0, nd, h0, nh, job.scales, line)
                    last_h, last_n = h0, nh
                dx = x + h * job.xh
                row = aside if norm else dx
                if kernel >= 0:
                    room = job.width * (last - h if norm == 0 and job.xh == job.width * job.item else 1)
                    spread_row(kernel, stride, lanes, target, line, job.width, room, job.before, row)
                else:
                    for w in range(0, job.width, lanes):
                        pool_line(
                            SUM, 0, 0, lanes, target,
                            line, 0, job.from_w + 8 * w, job.reads_w + 8 * w, job.most, 1,
                            row + w * size, 0, min(lanes, job.width - w), job.one, 0, 0,
                        )  # fmt: skip
                if norm:
                    cover_columns(
                        norm, 1, fused, lanes, format,
                        row, 1, 0, 0, job.width, dx, job.values + (dx - job.x), job.powers,
                    )  # fmt: skip

    return run


@cache
def fills(lanes: int, format: int) -> Any:
    """Return compiled loops of averages over whole maps: a unit is a map."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        while start < stop:
            c, n = split(start, job.channels)
            maps = min(stop - start, job.channels - c)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            fill_maps(lanes, format, maps, y, job.yc, job.scale, x, job.xc, job.cells)
            start += maps

    return run


@cache
def shares(norm: int, vectors: int, few: int, fused: int, lanes: int, format: int) -> Any:
    """Return compiled loops as `averages`, for windows of any kind; some maps may be taken for a tall one."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            part, rest = split(unit, job.bands)
            d, plane = split(rest, job.depths)
            c, n = split(plane, job.channels)
            first, last = part * job.entries // job.bands, (part + 1) * job.entries // job.bands
            if job.joined:  # the last maps of an image may be fewer
                last = min(last, job.joined - c * job.entries)
            x, d0 = job.x + n * job.xn + c * job.xc + d * job.xd, word(job.from_d, d)
            y = job.y + n * job.yn + c * job.yc + d0 * job.yd
            dx = _base(job, worker, x, 0)
            share_rows(
                norm, vectors, few, fused, lanes, format,
                y, word(job.reads_d, d), job.yd, job.yh, job.ow, job.alike + 8 * ENTRY * first, last - first,
                job.scale + d0 * job.oh * job.wide, job.oh * job.wide, job.scales, job.roots + (y - job.y), job.powers,
                job.firsts, job.offsets, job.counts, job.most, job.values + (x - job.x), dx, job.xh, job.width,
            )  # fmt: skip
            _done(job, worker, x, 0, job.heights, unit == start, unit + 1 == stop)

    return run


@cache
def routes(kernel: int, index: int, lanes: int, format: int) -> Any:
    """Return compiled loops of a max pool's gradient whose windows lie side by side: a unit is a plane."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for plane in range(start, stop):
            c, n = split(plane, job.channels)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            j = job.j + n * job.jn + c * job.jc
            for h in range(job.oh):
                first = h * job.rise
                bottom = first + job.rise if h + 1 < job.oh else job.heights
                rows = _base(job, worker, x, first)
                # What lies behind is written later, if every row is written at once.
                single = job.width <= kernel * lanes and job.xh == job.width * job.item
                room = (job.heights - first) * job.width if single else -1
                route_row(
                    kernel, index, lanes, format,
                    y + h * job.yh, j + h * job.jh, job.ow, first * job.width, job.rise, job.width,
                    job.width, room, rows + first * job.xh, job.xh,
                )  # fmt: skip
                for rest in range(first + job.rise, bottom):
                    clear(rows + rest * job.xh, job.width * job.item)
                _done(job, worker, x, first, bottom, plane == start and h == 0, plane + 1 == stop and h + 1 == job.oh)

    return run


@cache
def tiles(op: int, kernel: int, index: int, lanes: int, format: int) -> Any:
    """Return compiled loops of the gradient of windows side by side on narrow maps: a unit is a plane."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        many = lanes // kernel
        strips = (job.width + many * kernel - 1) // (many * kernel)
        # What a vector writes beyond its row is written later, but behind the last rows.
        behind = (lanes + job.width - 1) // job.width
        whole = (job.heights - behind) // kernel if strips == 1 and job.xh == job.width * job.item else 0
        for plane in range(start, stop):
            c, n = split(plane, job.channels)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            j, rows = job.j + n * job.jn + c * job.jc, _base(job, worker, x, 0)
            for strip in range(strips):
                fill_tiles(
                    op, kernel, index, lanes, format,
                    y, job.yh, j, job.jh, job.ow, strip * many, job.oh, job.width, rows, job.xh, whole,
                    job.scale, job.scales,
                )  # fmt: skip
            for h in range(job.oh * kernel, job.heights):
                clear(rows + h * job.xh, job.width * job.item)
            _done(job, worker, x, 0, job.heights, plane == start, plane + 1 == stop)

    return run


@cache
def maps(op: int, kernel: int, stride: int, phase: int, along: int, index: int, lanes: int, format: int) -> Any:
    """Return compiled loops of the gradient of square windows, a unit is a plane: down its columns, or along rows."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        groups = (job.width + stride * lanes - 1) // (stride * lanes)
        # What a vector writes beyond its row is written later, but behind the last rows.
        behind = (stride * lanes + job.width - 1) // job.width
        safe = job.heights - behind if job.xh == job.width * job.item else 0
        lines = job.lines + worker * job.line_bytes
        for plane in range(start, stop):
            c, n = split(plane, job.channels)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            j = job.j + n * job.jn + c * job.jc
            if kernel > stride:
                clear(lines, groups * job.waiting)
            for h in range(0, job.oh, job.block):
                rows = min(job.block, job.oh - h)
                top = max(h * stride - job.above, 0)
                bottom = (h + rows) * stride - job.above if h + rows < job.oh else job.heights
                base = _base(job, worker, x, top)
                spread_rows(
                    op, kernel, stride, phase, along, index, lanes, format,
                    y + h * job.yh, job.yh, j + h * job.jh, job.jh, job.ow, groups,
                    h * stride - job.above, rows, h + rows == job.oh,
                    base, job.xh, job.width, job.heights, job.before, safe,
                    job.scale + h * job.wide, job.scales, lines, job.waiting,
                )  # fmt: skip
                _done(job, worker, x, top, bottom, plane == start and h == 0, plane + 1 == stop and h + rows == job.oh)

    return run


@cache
def blocks(kernel: int, stride: int, index: int, lanes: int, format: int) -> Any:
    """Return compiled loops of a max pool's gradient whose lanes are channels: a unit is a row of blocks."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            row, n = split(unit, job.block_rows)
            x, y, j = job.x + n * job.xn, job.y + n * job.yn, job.j + n * job.jn
            for column in range(job.block_columns):
                route_block(
                    kernel, stride, index, lanes, format,
                    y, job.yh, job.yw, j, job.jh, job.jw, job.oh, job.ow, row, column,
                    x, job.xh, job.xw, job.heights, job.width, job.above, job.before, job.channels,
                )  # fmt: skip

    return run


@cache
def covers(norm: int, vectors: int, fused: int, lanes: int, format: int) -> Any:
    """Return compiled loops as `averages` whose lanes are channels: a unit is a row of the input."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        line, step = job.lines + worker * job.line_bytes, job.channels * job.wide
        ready, ready_d, ready_h = -1, -1, -1
        for unit in range(start, stop):
            h, rest = split(unit, job.heights)
            d, n = split(rest, job.depths)
            d0, h0, nd, nh = word(job.from_d, d), word(job.from_h, h), word(job.reads_d, d), word(job.reads_h, h)
            y = job.y + n * job.yn + d0 * job.yd + h0 * job.yh
            if y != ready or nd != ready_d or nh != ready_h:
                pieces = 1 if job.yw == job.channels * job.item else job.ow
                count = job.ow // pieces * job.channels
                for w in range(pieces):
                    _weigh(
                        norm, fused, lanes, format, job, y + w * job.yw, count, d0, nd, h0, nh, 0, line + w * step
                    )  # fmt: skip
                ready, ready_d, ready_h = y, nd, nh
            x = job.x + n * job.xn + d * job.xd + h * job.xh
            for w in range(job.width):
                w0 = word(job.from_w, w)
                dx = x + w * job.xw
                cover_columns(
                    norm, vectors, fused, lanes, format,
                    line + w0 * step, word(job.reads_w, w), step, job.scales + w0 * job.wide if job.scales else 0,
                    job.channels, dx, job.values + (dx - job.x), job.powers,
                )  # fmt: skip

    return run


@inlined
def _scatter(
    action, ways, dense, index, format, job, count, x, x_way, x_next, step, y, y_way, y_next, j, j_way, j_next, aside,
):  # fmt: skip
    scatter(
        action, ways, dense, index, format,
        count, x, x_way, x_next, step, job.cells, y, y_way, y_next, j, j_way, j_next, aside,
    )  # fmt: skip


@inlined
def _narrow(lanes, format, wide, job, source, target, count):
    """Copy neighbouring sums to where they are stored."""
    pool_row(
        SUM, 1, 1, 1, 0, 0, lanes, wide, format,
        source, 1, 0, 1, 0, 0, count, 0, 0, 0, 0, target, 0, count, job.one, 0, 0,
    )  # fmt: skip


@inlined
def _recorded_planes(action, ways, index, lanes, format, wide, job, plane, aside):
    """Do a few planes of one image."""
    c, n = split(plane, job.channels)
    x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
    j = job.j + n * job.jn + c * job.jc
    cells, way_step, size = (aside + 64, job.cells * job.wide, job.wide) if job.apart else (x, job.xc, job.item)
    if action != TAKE:
        for way in range(ways):
            clear(cells + way * way_step, job.cells * size)
    _scatter(
        action, ways, 1, index, format, job, job.windows,
        cells, way_step, 0, 0, y, job.yc, job.item, j, job.jc, index, aside,
    )  # fmt: skip
    if action == ADD and job.apart:
        for way in range(ways):
            _narrow(lanes, format, wide, job, cells + way * way_step, x + way * job.xc, job.cells)


@inlined
def _recorded_image(action, index, lanes, format, wide, job, unit, aside):
    """Do an image whose channels are neighbours, or a part of these."""
    size, item = job.item, 64 // job.item
    part, n = split(unit, job.bands)
    lines = (job.channels + item - 1) // item
    first = part * lines // job.bands * item
    channels = min((part + 1) * lines // job.bands * item, job.channels) - first
    x, y, j = job.x + n * job.xn + first * size, job.y + n * job.yn + first * size, job.j + n * job.jn + first * index
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
                action, WAYS, 0, index, format, job, whole,
                cells, cell, WAYS * cell, step, y, size, WAYS * size, j, index, WAYS * index, aside,
            )  # fmt: skip
        if done < channels:
            _scatter(
                action, 1, 0, index, format, job, channels - done,
                cells + done * cell, 0, cell, step, y + done * size, 0, size, j + done * index, 0, index, aside,
            )  # fmt: skip
        y, j = y + job.y_step, j + job.j_step
    if action == ADD and job.apart:
        for i in range(job.cells):
            _narrow(lanes, format, wide, job, cells + i * step, x + i * job.x_step, channels)


@cache
def recorded(action: int, last: int, index: int, lanes: int, format: int) -> Any:
    """Return compiled loops over recorded positions; a unit is a plane, or (``last``) channels of an image."""
    sources, wide = fingerprint(), computed(format)

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        aside = job.lines + worker * job.line_bytes
        unit = start
        while unit < stop:
            if last:
                _recorded_image(action, index, lanes, format, wide, job, unit, aside)
                unit += 1
            elif job.turns and min(stop - unit, job.channels - unit % job.channels) >= WAYS:
                _recorded_planes(action, WAYS, index, lanes, format, wide, job, unit, aside)
                unit += WAYS
            else:
                _recorded_planes(action, 1, index, lanes, format, wide, job, unit, aside)
                unit += 1

    return run
