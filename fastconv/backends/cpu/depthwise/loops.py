"""The loops around the depthwise micro-kernel: slabs of padded rows, and the tiles that read them.

A slab's row holds the padded columns by phase: all that the first kernel column reads at stride ``s``, then all
that lie one further, to ``s`` of them. So the columns of an output row read neighbours, whatever the stride.
Channels-last needs no phases: there, lanes are channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, njit, types

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.depthwise.tile import depthwise_tile, split
from fastconv.backends.cpu.memory import clear, copy, integer, move

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xh xw               | the input and its strides: image, channel, row, column
    y yn yk yh yw               | the output and its strides
    w wk wt bias activation     | the weight, from channel to channel, from tap to tap; 0 for none
    taps ntaps                  | offsets of the kernel's positions into the slab, how many
    channels multiplier         | input channels, output channels of each
    oh ow bands band            | output sizes; bands of rows
    slab slab_bytes             | where the workers' slabs begin, and how far apart they are
    heights widths item         | rows of a slab; items of a row, and their bytes
    lh sh sw phases phase       | bytes from row to row; of an output row and column; phases, bytes of one
    first last stride           | items that lie inside the input; stride of the rows
    table_h table_w             | input index of each padded position, -1 for zero
    place_w                     | where in a slab's row each padded column goes, in bytes
"""
FIELDS = tuple(name for line in _FIELDS.strip().splitlines() for name in line.split("|")[0].split())
JOB = np.dtype([(name, np.int64) for name in FIELDS])


@njit
def _gather(job, size, target, line, start, stop):
    """Copy some items of a row of a slab one by one, as the table says; zeros stand there already."""
    for w in range(start, stop):
        index, at = integer(job.table_w + 8 * w), target + integer(job.place_w + 8 * w)
        if index < 0:
            continue
        if job.item == size:
            move(at, line + index * job.xw, size)
        else:
            copy(at, line + index * job.xw, job.item)


@njit
def _split_line(job, lanes, bits, target, source):
    """Copy what lies inside the input to the two phases of a row of a slab."""
    even, odd = target + integer(job.place_w + 8 * job.first), target + integer(job.place_w + 8 * job.first + 8)
    left = job.last - job.first
    while left >= 2 * lanes:
        split(lanes, bits, 0, source, even, odd, left)
        source, even, odd = source + lanes * bits // 4, even + lanes * bits // 8, odd + lanes * bits // 8
        left -= 2 * lanes
    if left > 0:
        split(lanes, bits, 1, source, even, odd, left)


@njit
def _fill_line(job, lanes, bits, target, line):
    """Copy one row of a slab: what lies inside the input at once where it can, the padding item by item."""
    size = bits // 8
    if job.xw == job.item and job.phases == 1:
        copy(target + job.first * job.item, line, (job.last - job.first) * job.item)
    elif job.xw == size and job.phases == 2 and job.last - job.first > 1:
        _split_line(job, lanes, bits, target, line)
    else:
        _gather(job, size, target, line, job.first, job.last)
    _gather(job, size, target, line, 0, job.first)
    _gather(job, size, target, line, job.last, job.widths)


@njit
def _fill(job, lanes, bits, slab, x, row):
    for h in range(job.heights):
        source = integer(job.table_h + 8 * (row * job.stride + h))
        if source < 0:
            clear(slab + h * job.lh, job.lh)
        else:
            _fill_line(job, lanes, bits, slab + h * job.lh, x + source * job.xh)


@cache
def columns(rows: int, vectors: int, lanes: int, bits: int, fused: int) -> Any:
    """Return compiled loops whose lanes are columns: ``run(job, start, stop, worker)`` does a range of units."""
    width, step = vectors * lanes, bits // 8 * vectors * lanes
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        slab = job.slab + worker * job.slab_bytes
        clear(slab, job.slab_bytes)  # padding stays zero from unit to unit
        for unit in range(start, stop):
            band = unit % job.bands
            channel = unit // job.bands % job.channels
            image = unit // (job.bands * job.channels)
            # The last band and tile overlap the ones before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - job.band)
            _fill(job, lanes, bits, slab, job.x + image * job.xn + channel * job.xc, first_row)
            for k in range(channel * job.multiplier, (channel + 1) * job.multiplier):
                y = job.y + image * job.yn + k * job.yk + first_row * job.yh
                w = job.w + k * job.wk
                bias = job.bias + k * (bits // 8) if job.bias else 0
                for r in range(0, job.band, rows):
                    row = min(r, job.band - rows)
                    source, target = slab + row * job.sh, y + row * job.yh
                    left = job.ow
                    while left >= width:
                        depthwise_tile(
                            rows, vectors, lanes, bits, fused, 0, 0,
                            source, job.sh, job.taps, job.ntaps, w, job.wt, target, job.yh, left, bias, job.activation,
                        )  # fmt: skip
                        source, target, left = source + step, target + step, left - width
                    if left > 0:
                        depthwise_tile(
                            rows, vectors, lanes, bits, fused, 0, 1,
                            source, job.sh, job.taps, job.ntaps, w, job.wt, target, job.yh, left, bias, job.activation,
                        )  # fmt: skip

    return run


@cache
def channels(cols: int, vectors: int, lanes: int, bits: int, fused: int) -> Any:
    """Return compiled loops whose lanes are channels: ``run(job, start, stop, worker)`` does a range of units."""
    width, step = vectors * lanes, bits // 8 * vectors * lanes
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        slab = job.slab + worker * job.slab_bytes
        clear(slab, job.slab_bytes)  # padding stays zero from unit to unit
        for unit in range(start, stop):
            band, image = unit % job.bands, unit // job.bands
            first_row = min(band * job.band, job.oh - job.band)
            _fill(job, lanes, bits, slab, job.x + image * job.xn, first_row)
            for r in range(job.band):
                for q in range(0, job.ow, cols):
                    col = min(q, job.ow - cols)
                    source = slab + r * job.sh + col * job.sw
                    target = job.y + image * job.yn + (first_row + r) * job.yh + col * job.yw
                    w, bias, left = job.w, job.bias, job.channels
                    while left >= width:
                        depthwise_tile(
                            cols, vectors, lanes, bits, fused, 1, 0,
                            source, job.sw, job.taps, job.ntaps, w, job.wt, target, job.yw, left, bias, job.activation,
                        )  # fmt: skip
                        source, target, w, left = source + step, target + step, w + step, left - width
                        if bias:
                            bias += step
                    if left > 0:
                        depthwise_tile(
                            cols, vectors, lanes, bits, fused, 1, 1,
                            source, job.sw, job.taps, job.ntaps, w, job.wt, target, job.yw, left, bias, job.activation,
                        )  # fmt: skip

    return run
