"""The loops around the depthwise micro-kernel: which tile comes next, where it reads and where it writes.

One function is compiled for a tile's form. All else about a problem is a record of integers (`JOB`), so the number of
compiled functions does not grow with the shapes that come.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.depthwise.job import JOB
from fastconv.backends.cpu.depthwise.tile import depthwise_tile
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.memory import clear, pointed, record


@inlined
def _inside(first: int, extent: int, size: int) -> bool:
    return first >= 0 and first + extent <= size


@cache
def columns(
    rows: int, vectors: int, lanes: int, bits: int, fused: int, height: int, stride: int, phases: int, slab: int
) -> Any:
    """Return compiled loops whose lanes are columns: ``run(job, start, stop, worker)`` does a range of units.

    The parameters are those of `depthwise_tile`, and whether it reads slabs.
    """
    width, size = vectors * lanes, bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        filled = -1
        if slab and job.clean:
            clear(job.slab + worker * job.slab_bytes, job.slab_bytes)
        # Divisions take as long as a small tile: later units count on.
        turn, rest = start % job.multiplier, start // job.multiplier
        band, depth, plane = rest % job.bands, rest // job.bands % job.od, rest // (job.bands * job.od)
        channel, image = plane % job.inputs, plane // job.inputs
        for _ in range(start, stop):
            # The last band and tile overlap the ones before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - job.band)
            x, k = job.x + image * job.xn + channel * job.xc, channel * job.multiplier + turn
            if slab:
                wanted = (image * job.inputs + channel) * job.bands + band
                at = job.slab + worker * job.slab_bytes
                if wanted != filled:
                    call(job.fill, (pointed(jobs), at, x, first_row))
                    filled = wanted
                x, xh, origin = at, job.slab_row, first_row * job.stride
            else:
                xh, origin = job.xh, job.before_h
            w = job.w + k * job.wblock
            bias = job.bias + k * size if job.bias else 0
            offset = image * job.yn + k * job.yk + depth * job.yd
            deep = depth * job.stride_d - job.before_d
            whole = _inside(deep, job.reach_d + 1, job.depths)
            for r in range(0, job.band, rows):
                row = first_row + min(r, job.band - rows)
                high = row * job.stride - origin
                level = whole and _inside(high, (rows - 1) * job.stride + job.reach_h + 1, job.heights)
                for col in range(0, job.ow, width):
                    left = job.ow - col
                    across = col * phases - job.before_w
                    at = offset + row * job.yh + col * size
                    residual = job.residual + at if job.residual else 0
                    if slab:
                        if left >= width:
                            depthwise_tile(
                                rows, vectors, lanes, bits, fused, 0, 0, 0, height, stride, 1,
                                (x, 0, xh, size, 0, high, col, 1, 0, 0,
                                 job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, 0,
                                 w, job.wgroup, job.wrow, job.wstep, job.y + at, job.yh, 0, left,
                                 bias, residual, job.activation, job.zeros, job.far),
                            )  # fmt: skip
                        else:
                            depthwise_tile(
                                rows, vectors, lanes, bits, fused, 0, 0, 1, height, stride, 1,
                                (x, 0, xh, size, 0, high, col, 1, 0, 0,
                                 job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, 0,
                                 w, job.wgroup, job.wrow, job.wstep, job.y + at, job.yh, 0, left,
                                 bias, residual, job.activation, job.zeros, job.far),
                            )  # fmt: skip
                    elif level and left >= width and _inside(across, width * phases + job.reach_w, job.widths):
                        depthwise_tile(
                            rows, vectors, lanes, bits, fused, 0, 0, 0, height, stride, phases,
                            (x, job.xd, xh, size, deep, high, across, job.depths, job.heights, job.widths,
                             job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, 0,
                             w, job.wgroup, job.wrow, job.wstep, job.y + at, job.yh, 0, left,
                             bias, residual, job.activation, job.zeros, job.far),
                        )  # fmt: skip
                    else:
                        depthwise_tile(
                            rows, vectors, lanes, bits, fused, 0, 1, 1, height, stride, phases,
                            (x, job.xd, xh, size, deep, high, across, job.depths, job.heights, job.widths,
                             job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, 0,
                             w, job.wgroup, job.wrow, job.wstep, job.y + at, job.yh, 0, left,
                             bias, residual, job.activation, job.zeros, job.far),
                        )  # fmt: skip
            # What an input channel becomes is computed together: a slab is filled once for all of it.
            turn += 1
            if turn == job.multiplier:
                turn, band = 0, band + 1
                if band == job.bands:
                    band, depth = 0, depth + 1
                    if depth == job.od:
                        depth, channel = 0, channel + 1
                        if channel == job.inputs:
                            channel, image = 0, image + 1

    return run


@cache
def channels(rows: int, vectors: int, lanes: int, bits: int, fused: int, height: int, stride: int, slab: int) -> Any:
    """Return compiled loops whose lanes are channels: ``run(job, start, stop, worker)`` does a range of units.

    The parameters are those of `depthwise_tile`, and whether it reads slabs.
    """
    size = bits // 8
    step = lanes * size
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        filled = -1
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            band, plane = rest % job.bands, rest // job.bands
            depth, image = plane % job.od, plane // job.od
            first_row = min(band * job.band, job.oh - job.band)
            x = job.x + image * job.xn
            if slab:
                at = job.slab + worker * job.slab_bytes
                if rest != filled:
                    call(job.fill, (pointed(jobs), at, x, first_row))
                    filled = rest
                x, xh, xw, origin = at, job.slab_row, job.item, first_row * job.stride
                heights, widths = job.slab_rows, job.slab_cols
            else:
                xh, xw, origin, heights, widths = job.xh, job.xw, job.before_h, job.heights, job.widths
            deep = depth * job.stride_d - job.before_d
            whole = _inside(deep, job.reach_d + 1, job.depths)
            begin, end = part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts
            for r in range(0, job.band, rows):
                row = first_row + min(r, job.band - rows)
                high = row * job.stride - origin
                level = whole and _inside(high, (rows - 1) * job.stride + job.reach_h + 1, heights)
                for q in range(0, job.ow, vectors):
                    col = min(q, job.ow - vectors)
                    across = col * job.stride_w - job.before_w
                    inner = level and _inside(across, (vectors - 1) * job.stride_w + job.reach_w + 1, widths)
                    offset = image * job.yn + depth * job.yd + row * job.yh + col * job.yw
                    for block in range(begin, end):
                        left = job.channels - block * lanes
                        at = offset + block * step
                        bias = job.bias + block * step if job.bias else 0
                        residual = job.residual + at if job.residual else 0
                        if inner and left >= lanes:
                            depthwise_tile(
                                rows, vectors, lanes, bits, fused, 1, 0, 0, height, stride, 1,
                                (x + block * step, job.xd, xh, xw, deep, high, across, job.depths, heights, widths,
                                 job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, job.stride_w,
                                 job.w + block * job.wblock, job.wgroup, job.wrow, job.wstep,
                                 job.y + at, job.yh, job.yw, left, bias, residual, job.activation, job.zeros, job.far),
                            )  # fmt: skip
                        else:
                            depthwise_tile(
                                rows, vectors, lanes, bits, fused, 1, 1, 1, height, stride, 1,
                                (x + block * step, job.xd, xh, xw, deep, high, across, job.depths, heights, widths,
                                 job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, job.stride_w,
                                 job.w + block * job.wblock, job.wgroup, job.wrow, job.wstep,
                                 job.y + at, job.yh, job.yw, left, bias, residual, job.activation, job.zeros, job.far),
                            )  # fmt: skip

    return run
