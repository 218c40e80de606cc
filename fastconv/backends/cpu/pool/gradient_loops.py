"""The loops around the micro-kernels of pools' gradients, and those over recorded positions."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, njit, types

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.memory import clear, integer, move
from fastconv.backends.cpu.pool.loops import split
from fastconv.backends.cpu.pool.pixel import pool_line
from fastconv.backends.cpu.pool.reduction import SUM
from fastconv.backends.cpu.pool.rows import pool_row
from fastconv.backends.cpu.pool.spread import add_element, cover_pixel, route_row, spread_row

# Addresses, sizes and (in bytes) strides. The small side is that of the windows, the large one what they read.
_FIELDS = """
    x xn xc xd xh xw            | the large side and its strides: image, channel, depth, row, column
    y yn yc yd yh yw            | the small side and its strides
    j jn jc jd jh jw            | the indices and theirs: they are of the small side
    channels od oh ow           | sizes of the small side
    depths heights width        | sizes of the large side
    bands before                | parts that the large side's rows are cut into; padding before its columns
    from_d from_h from_w        | tables: the first window that reads each element
    reads_d reads_h reads_w     | tables: how many windows do
    most rise                   | the most windows that read an element of a row; rows of a window
    scale scales one            | factors: table of depths and rows of windows; of columns, 0 for none; address of a 1
    weighted                    | whether the factors of rows differ
    lines line_bytes line plane | scratch: the first worker's, bytes of each; in it a line, and weighted windows
    windows cells               | elements of a map of the small side, of the large one
    y_step j_step x_step        | from element to element of a map
"""
FIELDS = tuple(name for line in _FIELDS.strip().splitlines() for name in line.split("|")[0].split())
JOB = np.dtype([(name, np.int64) for name in FIELDS])
_SIGNATURE = types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64)


@njit
def _entry(table, index):
    return integer(table + 8 * index)


@njit
def _weigh(lanes, bits, job, y, target):
    """Copy a map of windows times their rows' factors."""
    size = bits // 8
    for d in range(job.od):
        for h in range(job.oh):
            row = d * job.oh + h
            pool_row(
                SUM, 1, 1, 1, 0, 0, lanes, bits,
                y + d * job.yd + h * job.yh, 1, 0, 1, 0, 0, job.ow, 0, 0, 0, 0,
                target + row * job.ow * size, 0, job.ow, job.scale + row * size, 0,
            )  # fmt: skip


@cache
def averages(kernel: int, stride: int, lanes: int, bits: int) -> Any:
    """Return compiled loops of an average's gradient: ``run(job, start, stop, worker)`` does a range of units.

    Kernel and stride are those of the columns: 0 and 0 if there is one window, -1 for windows of any kind.
    """
    size = bits // 8
    sources = fingerprint()

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
                    _weigh(lanes, bits, job, y, weighted)
                    ready = plane
                y, yh, scale = weighted, job.ow * size, job.one
                yd = yh * job.oh
            x = job.x + n * job.xn + c * job.xc + d * job.xd
            d0, nd = _entry(job.from_d, d), _entry(job.reads_d, d)
            last_h, last_n = -1, -1
            for h in range(first, last):
                h0, nh = _entry(job.from_h, h), _entry(job.reads_h, h)
                if nd * nh == 0:
                    clear(x + h * job.xh, job.width * size)
                    continue
                if h0 != last_h or nh != last_n:
                    pool_row(
                        SUM, 1, 1, 0, 0, 0, lanes, bits,
                        y + d0 * yd + h0 * yh, nd, yd, nh, yh, 0, job.ow, 0, 0, 0, 0,
                        line, 0, job.ow, scale, job.scales,
                    )  # fmt: skip
                    last_h, last_n = h0, nh
                if kernel >= 0:
                    room = job.width * (last - h if job.xh == job.width * size else 1)
                    spread_row(kernel, stride, lanes, bits, line, job.width, room, job.before, x + h * job.xh)
                else:
                    for w in range(0, job.width, lanes):
                        pool_line(
                            SUM, 0, 0, lanes, bits,
                            line, 0, job.from_w + 8 * w, job.reads_w + 8 * w, job.most, 1,
                            x + h * job.xh + w * size, 0, min(lanes, job.width - w), job.one, 0,
                        )  # fmt: skip

    return run


@cache
def routes(kernel: int, lanes: int, bits: int) -> Any:
    """Return compiled loops of a max pool's gradient whose windows lie side by side: a unit is a plane."""
    size = bits // 8
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
                single = job.width <= kernel * lanes and job.xh == job.width * size
                room = (job.heights - first) * job.width if single else -1
                route_row(
                    kernel, lanes, bits,
                    y + h * job.yh, j + h * job.jh, job.ow, first * job.width, job.rise, job.width,
                    job.width, room, x + first * job.xh, job.xh,
                )  # fmt: skip
            for h in range(job.oh * job.rise, job.heights):
                clear(x + h * job.xh, job.width * size)

    return run


@njit
def _cover(routed, vectors, partial, fused, lanes, bits, job, x, y, j, d, h, w, d0, h0, w0, left):
    size = bits // 8
    cover_pixel(
        routed, vectors, partial, fused, lanes, bits,
        y, _entry(job.reads_d, d), job.yd, _entry(job.reads_h, h), job.yh, _entry(job.reads_w, w), job.yw,
        j, job.jd, job.jh, job.jw, (d * job.heights + h) * job.width + w,
        job.scale + (d0 * job.oh + h0) * size, job.oh * size, job.scales + w0 * size if job.scales else 0, x, left,
    )  # fmt: skip


@cache
def covers(routed: int, vectors: int, fused: int, lanes: int, bits: int) -> Any:
    """Return compiled loops of gradients whose lanes are channels: a unit is a row of the input."""
    size = bits // 8
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
            d0, h0 = _entry(job.from_d, d), _entry(job.from_h, h)
            some = _entry(job.reads_d, d) * _entry(job.reads_h, h)
            for w in range(job.width):
                x = job.x + n * job.xn + d * job.xd + h * job.xh + w * job.xw
                w0, left = _entry(job.from_w, w), job.channels
                if some * _entry(job.reads_w, w) == 0:
                    clear(x, left * size)
                    continue
                y = job.y + n * job.yn + d0 * job.yd + h0 * job.yh + w0 * job.yw
                j = job.j + n * job.jn + d0 * job.jd + h0 * job.jh + w0 * job.jw
                while left >= step:
                    _cover(routed, vectors, 0, fused, lanes, bits, job, x, y, j, d, h, w, d0, h0, w0, left)
                    x, y, j, left = x + step * size, y + step * size, j + step * 8, left - step
                if left > 0:
                    _cover(routed, vectors, 1, fused, lanes, bits, job, x, y, j, d, h, w, d0, h0, w0, left)

    return run


# What is done with recorded positions: gradients are added, values are put, and taken.
ADD, PUT, TAKE = range(3)


@njit
def _move(action, size, bits, x, source, where, cells, step):
    """Do what is to be done with one element and the position recorded for it."""
    index = integer(where)
    inside = 0 <= index < cells
    target = x + index * step
    if action == TAKE:
        if inside:
            move(source, target, size)
        else:
            clear(source, size)
    elif inside:
        if action == ADD:
            add_element(bits, target, source)
        else:
            move(target, source, size)


@cache
def recorded(action: int, last: int, bits: int) -> Any:
    """Return compiled loops over recorded positions; a unit is a plane, or (``last``) an image's channels together."""
    size = bits // 8
    sources = fingerprint()

    @callback(_SIGNATURE)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        # In variables, as what is written might be the job itself for all that the compiler knows.
        windows, cells, channels = job.windows, job.cells, job.channels if last else 1
        x_step, y_step, j_step = job.x_step, job.y_step, job.j_step
        for unit in range(start, stop):
            c, n = split(unit, 1 if last else job.channels)
            x, y = job.x + n * job.xn + c * job.xc, job.y + n * job.yn + c * job.yc
            j = job.j + n * job.jn + c * job.jc
            if action != TAKE:
                clear(x, cells * channels * size)
            for window in range(windows):
                if last:
                    for channel in range(channels):
                        at, source = x + channel * size, y + window * y_step + channel * size
                        _move(action, size, bits, at, source, j + window * j_step + channel * 8, cells, x_step)
                else:
                    _move(action, size, bits, x, y + window * size, j + window * 8, cells, size)

    return run
