"""The loops around the micro-kernels of pools. What they look up is a record of integers (`JOB`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.elements import get, put
from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import integer, record, word
from fastconv.backends.cpu.pool.picks import pool_picks
from fastconv.backends.cpu.pool.pixel import pool_line, pool_pixel
from fastconv.backends.cpu.pool.plane import pool_plane
from fastconv.backends.cpu.pool.reduction import MAX
from fastconv.backends.cpu.pool.rows import pool_row
from fastconv.backends.cpu.pool.window import pool_halves, pool_whole, pool_window

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh xw            | the input and its strides: image, channel, depth, row, column
    y yn yc yd yh yw            | the output and its strides
    i jn jc jd jh jw            | the indices and theirs, 0 for none
    channels od oh ow bands     | sizes of the output; parts that its rows are cut into
    width before kernel         | columns of the input, padding before them, the greatest number that a window has
    firsts offsets counts       | tables of `windows.picks`
    step_d step_h step_w        | how far apart, in elements, the elements of a window are
    from_d from_h from_w        | tables: the first element of each window
    reads_d reads_h reads_w     | tables: how many it has
    flat_d flat_h               | elements of a plane and of a row
    powers                      | address of a norm's exponent and its inverse
    item wide                   | bytes of an element in the arrays, and as it is computed
    scale scales                | factors of the sums: a table of depths and rows; one of columns, 0 for none
    runs nruns rise             | table of `windows.runs`, its length; rows from window to window
    ahead                       | bytes from a row to one that is read soon
    joined                      | rows of outputs of all maps of an image if some are taken for a tall one, otherwise 0
    packed                      | whether the output's rows follow one another without gaps
    one                         | address of a factor of 1
    lines line_bytes places     | scratch: where that of the first worker is, bytes of each; where in it indices are
    planes size                 | whole maps: how many there are in an image, elements of each
    outputs                     | long windows: elements of the output of an image
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)
_SIGNATURE = task_type(JOB)


@inlined
def _row(op, kernel, stride, rows, indexed, exact, lanes, format, job, x, y, i, d, h):
    """Compute an output row of a plane; return whether NaN may have been lost."""
    d0, h0 = word(job.from_d, d), word(job.from_h, h)
    return pool_row(
        op, kernel, stride, rows, indexed, exact, lanes, format, format,
        x + d0 * job.xd + h0 * job.xh, word(job.reads_d, d), job.step_d * job.xd,
        word(job.reads_h, h), job.step_h * job.xh, job.ahead, job.width, job.before,
        d0 * job.flat_d + h0 * job.flat_h, job.step_d * job.flat_d, job.step_h * job.flat_h,
        y + h * job.yh, i + h * job.jh, job.ow, job.scale + (d * job.oh + h) * job.wide, job.scales, job.powers,
    )  # fmt: skip


@inlined
def split(number, parts):
    """Return remainder and quotient; where there is one part without a division, which takes as long as a small map."""
    if parts == 1:
        return 0, number
    return number % parts, number // parts


@inlined
def _unit(job, unit, single):
    """Return where a unit's image and channel begin in each array, its depth, and its rows."""
    part, rest = split(unit, job.bands)
    d, plane = split(rest, job.od)
    c, n = split(plane, 1 if single else job.channels)
    x = job.x + n * job.xn + c * job.xc
    y = job.y + n * job.yn + c * job.yc + d * job.yd
    i = job.i + n * job.jn + c * job.jc + d * job.jd
    if job.joined:  # the last maps of an image may be fewer
        return x, y, i, d, 0, min(job.oh, job.joined - c * job.oh)
    if job.bands == 1:
        return x, y, i, d, 0, job.oh
    return x, y, i, d, part * job.oh // job.bands, (part + 1) * job.oh // job.bands


@cache
def rows(op: int, kernel: int, stride: int, indexed: int, lanes: int, format: int) -> Any:
    """Return compiled loops whose lanes are columns: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            x, y, i, d, first, last = _unit(job, unit, False)
            lone, nan = word(job.reads_d, d) == 1, 0
            for h in range(first, last):
                reads = word(job.reads_h, h)
                if lone and reads == 3:
                    nan |= _row(op, kernel, stride, 3, indexed, 0, lanes, format, job, x, y, i, d, h)
                elif lone and reads == 2:
                    nan |= _row(op, kernel, stride, 2, indexed, 0, lanes, format, job, x, y, i, d, h)
                else:
                    nan |= _row(op, kernel, stride, 0, indexed, 0, lanes, format, job, x, y, i, d, h)
            if op == MAX and nan != 0:
                for h in range(first, last):
                    _row(op, kernel, stride, 0, indexed, 1, lanes, format, job, x, y, i, d, h)

    return run


@inlined
def _rows(op, kernel, stride, groups, rows, indexed, lanes, format, job, x, y, i, d, h, h0, reads, count, safe):
    """Compute neighbouring output rows of a plane whose windows have as many rows each."""
    return pool_plane(
        op, kernel, stride, groups, rows, indexed, lanes, format,
        x + h0 * job.xh, job.step_h * job.xh, job.rise * job.xh, reads, job.width, job.before,
        h0 * job.flat_h, job.step_h * job.flat_h, job.rise * job.flat_h,
        y + h * job.yh, job.yh, i + h * job.jh, job.jh, count, safe, job.ow,
        job.scale + (d * job.oh + h) * job.wide, job.scales, job.powers,
    )  # fmt: skip


@cache
def planes(op: int, kernel: int, stride: int, groups: int, indexed: int, lanes: int, format: int) -> Any:
    """Return compiled loops as `rows`, for rows of few vectors in at most two dimensions."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            x, y, i, d, first, last = _unit(job, unit, False)
            nan, behind = 0, (groups * lanes + job.ow - 1) // job.ow
            for number in range(job.nruns):
                entry = job.runs + 32 * number
                h, reads = integer(entry), integer(entry + 24)
                skipped = max(0, first - h)
                count = min(integer(entry + 8), last - h) - skipped
                if count <= 0:
                    continue
                safe = max(0, min(count, last - behind + 1 - h - skipped)) if job.packed else 0
                h, h0 = h + skipped, integer(entry + 16) + skipped * job.rise
                if reads == 3:
                    nan |= _rows(
                        op, kernel, stride, groups, 3, indexed, lanes, format,
                        job, x, y, i, d, h, h0, reads, count, safe,
                    )  # fmt: skip
                elif reads == 2:
                    nan |= _rows(
                        op, kernel, stride, groups, 2, indexed, lanes, format,
                        job, x, y, i, d, h, h0, reads, count, safe,
                    )  # fmt: skip
                else:
                    nan |= _rows(
                        op, kernel, stride, groups, 0, indexed, lanes, format,
                        job, x, y, i, d, h, h0, reads, count, safe,
                    )  # fmt: skip
            if op == MAX and nan != 0:
                for h in range(first, last):
                    _row(op, kernel, stride, 0, indexed, 1, lanes, format, job, x, y, i, d, h)

    return run


@inlined
def _picked(op, vectors, few, indexed, exact, lanes, format, job, x, y, i, d, first, lines):
    """Compute rows of outputs from the first on; return whether NaN may have been lost."""
    d0, nan = word(job.from_d, d), 0
    for group in range((job.ow + lanes - 1) // lanes):
        w = group * lanes
        scales = job.scales + w * job.wide if job.scales else 0
        nan |= pool_picks(op, vectors, few, indexed, exact, lanes, format, (
            x + d0 * job.xd, word(job.reads_d, d), job.step_d * job.xd,
            job.from_h + 8 * first, job.reads_h + 8 * first, lines, job.step_h, job.xh,
            word(job.firsts, group), job.width, job.offsets + w * job.wide, job.counts + w * job.wide, job.step_w,
            job.kernel, d0 * job.flat_d, job.step_d * job.flat_d, job.flat_h,
            y + first * job.yh + w * job.item, job.yh, i + first * job.jh + indexed * w, job.jh, min(lanes, job.ow - w),
            job.scale + (d * job.oh + first) * job.wide, scales, job.powers,
        ))  # fmt: skip
    return nan


@cache
def picked(op: int, vectors: int, few: int, indexed: int, lanes: int, format: int) -> Any:
    """Return compiled loops as `rows`, for windows of any size and distance that are not too long."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            x, y, i, d, first, last = _unit(job, unit, False)
            nan = _picked(op, vectors, few, indexed, 0, lanes, format, job, x, y, i, d, first, last - first)
            if op == MAX and nan != 0:
                _picked(op, vectors, few, indexed, 1, lanes, format, job, x, y, i, d, first, last - first)

    return run


@inlined
def _gathered(op, then, indexed, places_of, exact, lanes, format, wide, job, line, x, y, i, d, h):
    """Compute an output row by way of a line of reduced columns, of format ``wide``; ``places_of`` as ``indexed``."""
    d0, h0 = word(job.from_d, d), word(job.from_h, h)
    places = line + job.places
    nan = pool_row(
        op, 1, 1, 0, places_of, exact, lanes, format, wide,
        x + d0 * job.xd + h0 * job.xh, word(job.reads_d, d), job.step_d * job.xd,
        word(job.reads_h, h), job.step_h * job.xh, job.ahead, job.width, 0,
        d0 * job.flat_d + h0 * job.flat_h, job.step_d * job.flat_d, job.step_h * job.flat_h,
        line, places, job.width, job.one, 0, job.powers,
    )  # fmt: skip
    scale = job.scale + (d * job.oh + h) * job.wide
    for w in range(0, job.ow, lanes):
        nan |= pool_line(
            then, indexed, exact, lanes, format,
            line, places, job.from_w + 8 * w, job.reads_w + 8 * w, job.kernel, job.step_w,
            y + h * job.yh + w * job.item, i + h * job.jh + indexed * w, min(lanes, job.ow - w), scale,
            job.scales + w * job.wide if job.scales else 0, job.powers,
        )  # fmt: skip
    return nan


@cache
def gathered(op: int, then: int, indexed: int, lanes: int, format: int) -> Any:
    """Return compiled loops as `rows`, for windows of any size and distance: rows by ``op``, columns by ``then``."""
    sources, wide = fingerprint(), computed(format)
    places_of = 8 if indexed else 0  # bytes of an index in scratch

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        line = job.lines + worker * job.line_bytes
        for unit in range(start, stop):
            x, y, i, d, first, last = _unit(job, unit, False)
            for h in range(first, last):
                if _gathered(op, then, indexed, places_of, 0, lanes, format, wide, job, line, x, y, i, d, h) != 0:
                    _gathered(op, then, indexed, places_of, 1, lanes, format, wide, job, line, x, y, i, d, h)

    return run


@inlined
def _position(op, vectors, columns, indexed, exact, lanes, format, job, x, y, i, d, h, w):
    """Compute all channels of one output position."""
    d0, h0, w0 = word(job.from_d, d), word(job.from_h, h), word(job.from_w, w)
    return pool_pixel(
        op, vectors, columns, indexed, exact, lanes, format,
        x + d0 * job.xd + h0 * job.xh + w0 * job.xw, word(job.reads_d, d), job.step_d * job.xd,
        word(job.reads_h, h), job.step_h * job.xh, word(job.reads_w, w), job.step_w * job.xw,
        d0 * job.flat_d + h0 * job.flat_h + w0, job.step_d * job.flat_d, job.step_h * job.flat_h, job.step_w,
        y + h * job.yh + w * job.yw, i + h * job.jh + w * job.jw, job.channels, job.scale + (d * job.oh + h) * job.wide,
        job.scales + w * job.wide if job.scales else 0, job.powers,
    )  # fmt: skip


@cache
def pixels(op: int, vectors: int, indexed: int, lanes: int, format: int) -> Any:
    """Return compiled loops whose lanes are channels: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            x, y, i, d, first, last = _unit(job, unit, True)
            for h in range(first, last):
                nan = 0
                for w in range(job.ow):
                    reads = word(job.reads_w, w)
                    if reads == 3:
                        nan |= _position(op, vectors, 3, indexed, 0, lanes, format, job, x, y, i, d, h, w)
                    elif reads == 2:
                        nan |= _position(op, vectors, 2, indexed, 0, lanes, format, job, x, y, i, d, h, w)
                    else:
                        nan |= _position(op, vectors, 0, indexed, 0, lanes, format, job, x, y, i, d, h, w)
                if op == MAX and nan != 0:
                    for w in range(job.ow):
                        _position(op, vectors, 0, indexed, 1, lanes, format, job, x, y, i, d, h, w)

    return run


@inlined
def _window(op, vectors, exact, lanes, format, wide, job, n, first, count, lines):
    """Compute some outputs of an image, which are neighbours in memory; return whether NaN may have been lost."""
    factors, nan = lines + lanes * lanes * job.wide, 0
    w, rest = split(first, job.ow)
    h, rest = split(rest, job.oh)
    d, c = split(rest, job.od)
    # Whole maps are all alike.
    many = count if job.od * job.oh * job.ow == 1 else 1
    for i in range(0, count, many):
        d0, h0, w0 = word(job.from_d, d), word(job.from_h, h), word(job.from_w, w)
        nan |= pool_window(
            op, vectors, exact, lanes, format,
            job.x + n * job.xn + c * job.xc + d0 * job.xd + h0 * job.xh + w0 * job.item, job.xc, many,
            word(job.reads_d, d), job.step_d * job.xd, word(job.reads_h, h), job.step_h * job.xh, word(job.reads_w, w),
            lines + i * lanes * job.wide, job.powers,
        )  # fmt: skip
        if op != MAX:
            factor = get(wide, job.scale + (d * job.oh + h) * job.wide)
            factor = factor * get(wide, job.scales + w * job.wide) if job.scales else factor
            for k in range(i, i + many):
                put(wide, factors + k * job.wide, factor)
        w += 1
        if w == job.ow:
            w, h = 0, h + 1
            if h == job.oh:
                h, d = 0, d + 1
                if d == job.od:
                    d, c = 0, c + 1
    pool_halves(op, exact, lanes, format, lines, factors, job.y + n * job.yn + first * job.item, count, job.powers)
    return nan


@cache
def windows(op: int, vectors: int, lanes: int, format: int) -> Any:
    """Return compiled loops whose lanes are elements of a window: a unit is as many outputs as a vector has lanes."""
    sources, wide = fingerprint(), computed(format)

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        lines = job.lines + worker * job.line_bytes
        parts = (job.outputs + lanes - 1) // lanes
        for unit in range(start, stop):
            part, n = split(unit, parts)
            first = part * lanes
            count = min(lanes, job.outputs - first)
            nan = _window(op, vectors, 0, lanes, format, wide, job, n, first, count, lines)
            if op == MAX and nan != 0:
                _window(op, vectors, 1, lanes, format, wide, job, n, first, count, lines)

    return run


@cache
def whole(op: int, lanes: int, format: int) -> Any:
    """Return compiled loops that reduce planes to one element: a unit is as many as a vector has lanes."""
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        parts = (job.planes + lanes - 1) // lanes
        for unit in range(start, stop):
            n, c = unit // parts, unit % parts * lanes
            pool_whole(
                op, lanes, format,
                job.x + n * job.xn + c * job.xc, job.xc, min(lanes, job.planes - c), job.size,
                job.y + n * job.yn + c * job.yc, job.scale, job.powers, job.lines + worker * job.line_bytes,
            )  # fmt: skip

    return run
