"""The loops around the micro-kernel: which tile comes next, where it reads and where it writes.

One function is compiled for a tile's shape. All else about a problem is a record of integers (`JOB`), so the
number of compiled functions does not grow with the shapes that come.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, njit, types

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.direct.tile import conv_tile
from fastconv.backends.cpu.memory import clear, copy, integer, move

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xg xc xd xh xw         | the input and its strides: image, group, channel, depth, row, column
    taps ntaps nc               | offsets of the kernel's positions into the source, how many; input channels
    sc sd sh sw                 | the source that tiles read: a step of a channel, of an output depth, row, column
    w wgroup wblock blocks      | the packed weight, a group of it, a block of output channels; blocks of a group
    y yn yk yd yh yw            | the output and its strides: image, channel, depth, row, column
    oc od oh ow                 | output channels of a group, output sizes
    bias residual activation    | addresses, 0 for none
    groups bands band parts     | a unit of work: image, group, depth, band of rows, part of the blocks
    slab slab_bytes             | where the workers' slabs begin, and how far apart they are; 0 for none
    lc ld lh                    | the slab's strides: line, depth, row
    lines item                  | lines of a row (channels, if they lie apart), and bytes of an item of a line
    depths heights              | planes of a slab and their rows
    widths first last           | items of a line, and which of these lie inside the input
    step_d step_h               | stride of the convolution, in positions
    table_d table_h table_w     | input index of each padded position, -1 for zero
"""
FIELDS = tuple(name for line in _FIELDS.strip().splitlines() for name in line.split("|")[0].split())
JOB = np.dtype([(name, np.int64) for name in FIELDS])


@njit
def _fill_line(job, size, target, source):
    """Copy one line of a slab: padding by the table, what lies inside the input in one go where it can."""
    if job.xw == job.item:
        copy(target + job.first * job.item, source, (job.last - job.first) * job.item)
    for w in range(job.widths):
        if job.first <= w < job.last and job.xw == job.item:
            continue
        index, at = integer(job.table_w + 8 * w), target + w * job.item
        if index < 0:
            clear(at, job.item)
        elif job.item == size:
            move(at, source + index * job.xw, size)
        else:
            copy(at, source + index * job.xw, job.item)


@njit
def _fill(job, size, slab, x, depth, row):
    """Copy what the output rows from ``row`` at ``depth`` read of an image, with its padding, into a slab."""
    for d in range(job.depths):
        source_d = integer(job.table_d + 8 * (depth * job.step_d + d))
        for h in range(job.heights):
            source_h = integer(job.table_h + 8 * (row * job.step_h + h))
            for line in range(job.lines):
                target = slab + line * job.lc + d * job.ld + h * job.lh
                if source_d < 0 or source_h < 0:
                    clear(target, job.widths * job.item)
                else:
                    _fill_line(job, size, target, x + line * job.xc + source_d * job.xd + source_h * job.xh)


@cache
def loops(rows: int, cols: int, vectors: int, tail: int, lanes: int, bits: int, fused: int, last: int) -> Any:
    """Return the compiled loops for a tile shape: ``run(job, start, stop, worker)`` does a range of units.

    ``vectors`` vectors of output channels make a block; the last block has ``tail`` vectors, the last of
    them perhaps not full.
    """
    size = bits // 8
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        slab = job.slab + worker * job.slab_bytes
        filled = -1
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            band = rest % job.bands
            depth = rest // job.bands % job.od
            group = rest // (job.bands * job.od) % job.groups
            image = rest // (job.bands * job.od * job.groups)
            # The last band and tile overlap the ones before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - job.band)
            x = job.x + image * job.xn + group * job.xg
            if job.slab:
                if rest != filled:
                    _fill(job, size, slab, x, depth, first_row)
                    filled = rest
                source = slab - first_row * job.sh
            else:
                source = x + depth * job.sd
            y = image * job.yn + group * job.oc * job.yk + depth * job.yd
            for block in range(part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts):
                first_k = block * vectors * lanes
                channel = group * job.oc + first_k
                w = job.w + group * job.wgroup + block * job.wblock
                bias = job.bias + channel * size if job.bias else 0
                for r in range(0, job.band, rows):
                    row = first_row + min(r, job.band - rows)
                    for q in range(0, job.ow, cols):
                        col = min(q, job.ow - cols)
                        at = y + first_k * job.yk + row * job.yh + col * job.yw
                        from_ = source + row * job.sh + col * job.sw
                        residual = job.residual + at if job.residual else 0
                        if block < job.blocks - 1:
                            conv_tile(
                                rows, cols, vectors, lanes, bits, fused, last, 0,
                                from_, job.sc, job.sh, job.sw, job.taps, job.ntaps, job.nc, w,
                                job.y + at, job.yk, job.yh, job.yw, job.oc - first_k, bias, residual, job.activation,
                            )  # fmt: skip
                        else:
                            conv_tile(
                                rows, cols, tail, lanes, bits, fused, last, 1,
                                from_, job.sc, job.sh, job.sw, job.taps, job.ntaps, job.nc, w,
                                job.y + at, job.yk, job.yh, job.yw, job.oc - first_k, bias, residual, job.activation,
                            )  # fmt: skip

    return run
