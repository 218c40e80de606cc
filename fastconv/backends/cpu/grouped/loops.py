"""The loops around the micro-kernel: slabs of padded input, the tiles that read them, and what becomes of the sums."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, from_dtype, njit, types

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.grouped.tile import group_tile
from fastconv.backends.cpu.grouped.vectors import put, put_split, put_turned, take, take_turned
from fastconv.backends.cpu.memory import clear, integer, move

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xh xw               | the input and its strides: image, channel, row, column
    y yn yk yh yw               | the output and its strides
    w wk bias residual          | the weight, from output channel to output channel; addresses, 0 for none
    activation places terms     | offsets of a sum's terms into a group's slab, how many
    inputs outputs              | channels of a group
    groups bundle bundles       | groups; how many are done together
    oh ow bands band            | output sizes; bands of rows
    slab slab_bytes             | where the workers' slabs begin, and how far apart they are
    plane sub row heights       | bytes of a slab's channel, phase and row; rows that a band reads
    rows_apart cols_apart       | strides of the convolution: so many phases there are
    pitch vectors               | elements from row to row; vectors that hold a row of a phase
    sums line                   | where in a slab the sums begin; bytes of a channel's
    first inside lead           | first column inside the input, how many are; bytes before these
    pixelwise                   | whether columns lie apart, or are not read in order
    table_h table_w             | input index of each padded position, -1 for zero, -2 for not read
    zeros                       | where in a slab zeros stand for a pixel of padding
"""
FIELDS = tuple(name for line in _FIELDS.strip().splitlines() for name in line.split("|")[0].split())
JOB = np.dtype([(name, np.int64) for name in FIELDS])


@njit
def _prepare(job, size, slab):
    """Clear what no row is copied to: what lies before the first one, and the zeros that stand for padding."""
    for channel in range(job.bundle * job.inputs):
        for phase in range(job.rows_apart * job.cols_apart):
            clear(slab + channel * job.plane + phase * job.sub, job.lead)
    clear(slab + job.zeros, job.bundle * job.inputs * size)


@njit
def _copy_row(job, lanes, bits, target, source, count):
    """Copy what of a row lies inside the input, and zeros up to where the next row's begins."""
    step = lanes * bits // 8
    end = target + job.row
    while count >= lanes:
        put(lanes, bits, 0, source, target, count)
        source, target, count = source + step, target + step, count - lanes
    while target < end:
        put(lanes, bits, 1, source, target, count)
        source, target, count = source + step, target + step, count - lanes


@njit
def _split_row(job, lanes, bits, first, second, source, count):
    """Copy a row as `_copy_row` does, every second element elsewhere."""
    step = lanes * bits // 8
    end = first + job.row
    while count >= 2 * lanes:
        put_split(lanes, bits, 0, source, first, second, count)
        source, first, second, count = source + 2 * step, first + step, second + step, count - 2 * lanes
    while first < end:
        put_split(lanes, bits, 1, source, first, second, count)
        source, first, second, count = source + 2 * step, first + step, second + step, count - 2 * lanes


@njit
def _gather_row(job, lanes, bits, target, source, count):
    """Copy a row element by element, as the table says."""
    size = bits // 8
    for phase in range(job.cols_apart):
        for i in range(job.vectors * lanes):
            index = integer(job.table_w + 8 * (i * job.cols_apart + phase))
            at = target + phase * job.sub + i * size
            if index < 0 or count == 0:
                clear(at, size)
            else:
                move(at, source + index * job.xw, size)


@njit
def _fill_rows(job, lanes, bits, slab, x, row):
    """Fill a slab with the rows from one on, of channels whose columns are neighbours or lie anyhow."""
    size = bits // 8
    for channel in range(job.bundle * job.inputs):
        for h in range(job.heights):
            index = integer(job.table_h + 8 * (row * job.rows_apart + h))
            if index == -2:
                continue
            target = slab + channel * job.plane + h % job.rows_apart * job.cols_apart * job.sub
            target += h // job.rows_apart * job.row
            source, count = x + channel * job.xc + max(index, 0) * job.xh, job.inside if index >= 0 else 0
            if job.pixelwise:
                _gather_row(job, lanes, bits, target, source, count)
            elif job.cols_apart == 1:
                _copy_row(job, lanes, bits, target + job.first * size, source, count)
            else:
                even = target + job.first % 2 * job.sub + job.first // 2 * size
                odd = target + (job.first + 1) % 2 * job.sub + (job.first + 1) // 2 * size
                _split_row(job, lanes, bits, even, odd, source, count)


@njit
def _fill_turned(job, lanes, bits, slab, x, row):
    """Fill a slab with the rows from one on, where channels are neighbours."""
    size = bits // 8
    channels, zeros, apart = job.bundle * job.inputs, slab + job.zeros, job.cols_apart
    for h in range(job.heights):
        index = integer(job.table_h + 8 * (row * job.rows_apart + h))
        if index == -2:
            continue
        line = slab + h % job.rows_apart * apart * job.sub + h // job.rows_apart * job.row
        source = x + max(index, 0) * job.xh
        # Behind the table of the columns stands one of a row of padding.
        table = job.table_w if index >= 0 else job.table_w + 8 * job.vectors * lanes * apart
        for phase in range(apart):
            for v in range(job.vectors):
                target, indices = line + phase * job.sub + v * lanes * size, table + 8 * (v * lanes * apart + phase)
                for c in range(0, channels - lanes + 1, lanes):
                    put_turned(
                        lanes, bits, 0,
                        source + c * size, zeros, indices, 8 * apart, job.xw, target + c * job.plane, job.plane, lanes,
                    )  # fmt: skip
                rest = channels % lanes
                if rest:
                    c = channels - rest
                    put_turned(
                        lanes, bits, 1,
                        source + c * size, zeros, indices, 8 * apart, job.xw, target + c * job.plane, job.plane, rest,
                    )  # fmt: skip


@njit
def _empty_rows(job, lanes, bits, sums, y):
    """Store a bundle's sums where columns are neighbours; ``y`` counts from the output's and the residual's start."""
    step = lanes * bits // 8
    for k in range(job.bundle * job.outputs):
        for r in range(job.band):
            source, at, left = sums + k * job.line + r * job.row, y + k * job.yk + r * job.yh, job.ow
            residual = job.residual + at if job.residual else 0
            target = job.y + at
            while left >= lanes:
                take(lanes, bits, 0, source, target, residual, job.activation, left)
                source, target, left = source + step, target + step, left - lanes
                if residual:
                    residual += step
            if left > 0:
                take(lanes, bits, 1, source, target, residual, job.activation, left)


@njit
def _empty_turned(job, lanes, bits, sums, y):
    """Store a bundle's sums where channels are neighbours; see `_empty_rows`."""
    size = bits // 8
    channels = job.bundle * job.outputs
    for r in range(job.band):
        for q in range(0, job.ow, lanes):
            at, pixels = y + r * job.yh + q * job.yw, min(lanes, job.ow - q)
            source = sums + r * job.row + q * size
            for c in range(0, channels - lanes + 1, lanes):
                residual = job.residual + at + c * size if job.residual else 0
                take_turned(
                    lanes, bits, 0,
                    source + c * job.line, job.line, job.y + at + c * size, job.yw, residual, job.activation,
                    pixels, lanes,
                )  # fmt: skip
            rest = channels % lanes
            if rest:
                c = channels - rest
                residual = job.residual + at + c * size if job.residual else 0
                take_turned(
                    lanes, bits, 1,
                    source + c * job.line, job.line, job.y + at + c * size, job.yw, residual, job.activation,
                    pixels, rest,
                )  # fmt: skip


@cache
def loops(channels: int, vectors: int, less: int, lanes: int, bits: int, fused: int, turned: tuple[bool, bool]) -> Any:
    """Return the compiled loops for a tile shape: ``run(job, start, stop, worker)`` does a range of units.

    ``turned`` says of the input and of the output whether channels are neighbours there.
    """
    size = bits // 8
    step = vectors * lanes * size
    fill = _fill_turned if turned[0] else _fill_rows
    empty = _empty_turned if turned[1] else _empty_rows
    sources = fingerprint()

    @callback(types.void(types.CPointer(from_dtype(JOB)), types.int64, types.int64, types.int64))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        slab = job.slab + worker * job.slab_bytes
        sums = slab + job.sums
        _prepare(job, size, slab)
        for unit in range(start, stop):
            band = unit % job.bands
            bundle = unit // job.bands % job.bundles
            image = unit // (job.bands * job.bundles)
            # The last of each overlap the ones before: what is computed twice comes out the same.
            first_row = min(band * job.band, job.oh - job.band)
            first_group = min(bundle * job.bundle, job.groups - job.bundle)
            fill(job, lanes, bits, slab, job.x + image * job.xn + first_group * job.inputs * job.xc, first_row)
            numbers = (job.band - 1) * job.pitch + job.ow
            for group in range(job.bundle):
                x = slab + group * job.inputs * job.plane
                for block in range(0, job.outputs, channels):
                    channel = group * job.outputs + min(block, job.outputs - channels)
                    w = job.w + (first_group * job.outputs + channel) * job.wk
                    bias = job.bias + (first_group * job.outputs + channel) * size if job.bias else 0
                    source, target, left = x, sums + channel * job.line, numbers
                    while left > less * lanes:
                        group_tile(
                            channels, vectors, lanes, bits, fused,
                            source, job.places, job.terms, w, job.wk, target, job.line, bias,
                        )  # fmt: skip
                        source, target, left = source + step, target + step, left - vectors * lanes
                    if left > 0:
                        group_tile(
                            channels, less, lanes, bits, fused,
                            source, job.places, job.terms, w, job.wk, target, job.line, bias,
                        )  # fmt: skip
            empty(job, lanes, bits, sums, image * job.yn + first_group * job.outputs * job.yk + first_row * job.yh)

    return run
