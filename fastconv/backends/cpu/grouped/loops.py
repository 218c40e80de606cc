"""The loops around the micro-kernel: slabs of padded input, the tiles that read them, and what becomes of the sums."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.grouped.vectors import put, put_split, put_turned, take, take_turned
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, integer, move, pointed, record, word

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xh xw               | the input and its strides: image, channel, row, column
    y yn yk yh yw               | the output and its strides
    w wk bias residual          | the weight, from output channel to output channel; addresses, 0 for none
    activation places terms     | offsets of a sum's terms into a group's slab, how many
    inputs outputs              | channels of a group
    height wide less            | of a tile: output channels, outputs; outputs of the smaller one that ends a line
    tile0 tile1                 | the tiles, this and the smaller one
    fill empty size             | who fills the slab, who stores the sums; bytes of an element
    groups bundle bundles       | groups; how many are done together
    oh ow bands band            | output sizes; bands of rows
    slab slab_bytes             | where the workers' slabs begin, and how far apart they are
    plane sub row heights       | bytes of a slab's channel, phase and row; rows that a band reads
    rows_apart cols_apart       | strides of the convolution: so many phases there are
    pitch vectors               | elements from row to row; vectors that hold a row of a phase
    sums line                   | where in a slab the sums begin; bytes of a channel's
    even odd inside lead        | where in a row columns inside the input go, every second one; how many; bytes before
    pixelwise                   | whether columns lie apart, or are not read in order
    table_h table_w             | input index of each padded position, -1 for zero, -2 for not read
    zeros                       | where in a slab zeros stand for a pixel of padding
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@inlined
def prepare(slab, channels, phases, plane, sub, lead, zeros, size):
    """Clear what no row is copied to: what lies before the first one, and the zeros that stand for padding."""
    for channel in range(channels):
        for phase in range(phases):
            clear(slab + channel * plane + phase * sub, lead)
    clear(slab + zeros, channels * size)


@inlined
def _copy_row(lanes, bits, target, source, whole, rest, vectors):
    """Copy what of a row lies inside the input, and zeros behind it, to where the next row's begins."""
    step = lanes * bits // 8
    for _ in range(whole):
        put(lanes, bits, 0, source, target, rest)
        source, target = source + step, target + step
    if vectors > whole:
        put(lanes, bits, 1, source, target, rest)
        if vectors > whole + 1:
            clear(target + step, (vectors - whole - 1) * step)


@inlined
def _split_row(lanes, bits, even, odd, source, whole, rest, vectors):
    """Copy a row as `_copy_row` does, every second element elsewhere."""
    step = lanes * bits // 8
    for _ in range(whole):
        put_split(lanes, bits, 0, source, even, odd, rest)
        source, even, odd = source + 2 * step, even + step, odd + step
    if vectors > whole:
        put_split(lanes, bits, 1, source, even, odd, rest)
        if vectors > whole + 1:
            clear(even + step, (vectors - whole - 1) * step)
            clear(odd + step, (vectors - whole - 1) * step)


@inlined
def _gather_row(job, lanes, bits, target, source, row):
    """Copy a row element by element, as the table says."""
    size = bits // 8
    for phase in range(job.cols_apart):
        for i in range(job.vectors * lanes):
            index = word(job.table_w, (i * job.cols_apart + phase))
            at = target + phase * job.sub + i * size
            if index < 0 or row < 0:
                clear(at, size)
            else:
                move(at, source + index * job.xw, size)


@inlined
def _fill_rows(job, lanes, bits, slab, x, row):
    """Fill a slab with the rows from one on, of channels whose columns are neighbours or lie anyhow."""
    # Names of their own for what the inner loops read: no store can change them, so masks are made once.
    step, apart, pixelwise, to_row, xh = lanes * bits // 8, job.cols_apart, job.pixelwise, job.row, job.xh
    vectors, even, odd = -(-job.pitch // lanes), job.even, job.odd
    whole = job.inside // (apart * lanes)
    rest = job.inside - whole * apart * lanes
    for phase in range(job.rows_apart):
        base = slab + phase * apart * job.sub
        table = job.table_h + 8 * (row * job.rows_apart + phase)
        if integer(table) == -2:
            continue
        for channel in range(job.bundle * job.inputs):
            target, source = base + channel * job.plane, x + channel * job.xc
            for h in range(0, job.heights - phase, job.rows_apart):
                index = word(table, h)
                line = source + index * xh
                if pixelwise:
                    _gather_row(job, lanes, bits, target, line, index)
                elif index < 0:
                    clear(target + even, vectors * step)
                    if apart == 2:
                        clear(target + odd, vectors * step)
                elif apart == 1:
                    _copy_row(lanes, bits, target + even, line, whole, rest, vectors)
                else:
                    _split_row(lanes, bits, target + even, target + odd, line, whole, rest, vectors)
                target += to_row


@inlined
def _fill_turned(job, lanes, bits, slab, x, row):
    """Fill a slab with the rows from one on, where channels are neighbours."""
    size, apart = bits // 8, job.cols_apart
    for phase in range(job.rows_apart):
        table = job.table_h + 8 * (row * job.rows_apart + phase)
        if integer(table) == -2:
            continue
        line = slab + phase * apart * job.sub
        for h in range(0, job.heights - phase, job.rows_apart):
            index = word(table, h)
            # Behind the table of the columns stands one of a row of padding.
            columns = job.table_w if index >= 0 else job.table_w + 8 * job.vectors * lanes * apart
            source = x + max(index, 0) * job.xh
            for right in range(apart):
                for v in range(job.vectors):
                    at, indices = line + right * job.sub + v * lanes * size, columns + 8 * (v * lanes * apart + right)
                    _turn_channels(job, lanes, bits, source, slab + job.zeros, indices, at)
            line += job.row


@inlined
def _turn_channels(job, lanes, bits, source, zeros, indices, target):
    """Store lines of ``lanes`` pixels of all channels."""
    size = bits // 8
    step, left = 8 * job.cols_apart, job.bundle * job.inputs
    while left >= lanes:
        put_turned(lanes, bits, 0, source, zeros, indices, step, job.xw, target, job.plane, left)
        source, target, left = source + lanes * size, target + lanes * job.plane, left - lanes
    if left > 0:
        put_turned(lanes, bits, 1, source, zeros, indices, step, job.xw, target, job.plane, left)


@inlined
def _empty_rows(job, lanes, bits, sums, y):
    """Store a bundle's sums where columns are neighbours; ``y`` counts from the output's and the residual's start."""
    step, activation, to_row, yh = lanes * bits // 8, job.activation, job.row, job.yh
    whole = job.ow // lanes
    rest = job.ow - whole * lanes
    for k in range(job.bundle * job.outputs):
        line, at = sums + k * job.line, job.y + y + k * job.yk
        # From the output's elements to the residual's.
        further = job.residual - job.y if job.residual else 0
        for _ in range(job.band):
            source, target = line, at
            for _ in range(whole):
                take(lanes, bits, 0, source, target, target + further if further else 0, activation, rest)
                source, target = source + step, target + step
            if rest > 0:
                take(lanes, bits, 1, source, target, target + further if further else 0, activation, rest)
            line, at = line + to_row, at + yh


@inlined
def _empty_turned(job, lanes, bits, sums, y):
    """Store a bundle's sums where channels are neighbours; see `_empty_rows`."""
    size = bits // 8
    step = lanes * size
    for r in range(job.band):
        for q in range(0, job.ow, lanes):
            at, pixels, left = y + r * job.yh + q * job.yw, min(lanes, job.ow - q), job.bundle * job.outputs
            source, target, residual = sums + r * job.row + q * size, job.y + at, job.residual + at
            if not job.residual:
                residual = 0
            while left >= lanes:
                take_turned(lanes, bits, 0, source, job.line, target, job.yw, residual, job.activation, pixels, left)
                source, target, left = source + lanes * job.line, target + step, left - lanes
                if residual:
                    residual += step
            if left > 0:
                take_turned(lanes, bits, 1, source, job.line, target, job.yw, residual, job.activation, pixels, left)


@inlined
def _unit(job, unit):
    """Return where a unit's input lies, where its output does from the output's start; its first row and channel."""
    band = unit % job.bands
    bundle = unit // job.bands % job.bundles
    image = unit // (job.bands * job.bundles)
    # The last of each overlap the ones before: what is computed twice comes out the same.
    row = min(band * job.band, job.oh - job.band)
    group = min(bundle * job.bundle, job.groups - job.bundle)
    x = job.x + image * job.xn + group * job.inputs * job.xc
    return x, image * job.yn + group * job.outputs * job.yk + row * job.yh, row, group * job.outputs


@cache
def filling(lanes: int, bits: int, turned: bool) -> Any:
    """Return the compiled ``fill(job, unit, -, worker)``; ``turned``: channels are neighbours in the input."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def fill(jobs, unit, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        x, _, row, _ = _unit(job, unit)
        if turned:
            _fill_turned(job, lanes, bits, slab, x, row)
        else:
            _fill_rows(job, lanes, bits, slab, x, row)

    return fill


@cache
def emptying(lanes: int, bits: int, turned: bool) -> Any:
    """Return the compiled ``empty(job, unit, -, worker)``; ``turned``: channels are neighbours in the output."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def empty(jobs, unit, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        sums = job.slab + worker * job.slab_bytes + job.sums
        _, y, _, _ = _unit(job, unit)
        if turned:
            _empty_turned(job, lanes, bits, sums, y)
        else:
            _empty_rows(job, lanes, bits, sums, y)

    return empty


@cache
def loops() -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        sums, step = slab + job.sums, job.wide * job.size
        prepare(
            slab, job.bundle * job.inputs, job.rows_apart * job.cols_apart,
            job.plane, job.sub, job.lead, job.zeros, job.size,
        )  # fmt: skip
        for unit in range(start, stop):
            _, _, _, first = _unit(job, unit)
            call(job.fill, (pointed(jobs), unit, 0, worker))
            numbers = (job.band - 1) * job.pitch + job.ow
            for group in range(job.bundle):
                base = slab + group * job.inputs * job.plane
                for block in range(0, job.outputs, job.height):
                    channel = group * job.outputs + min(block, job.outputs - job.height)
                    w = job.w + (first + channel) * job.wk
                    bias = job.bias + (first + channel) * job.size if job.bias else 0
                    source, target, left = base, sums + channel * job.line, numbers
                    while left > 0:
                        tile = job.tile0 if left > job.less else job.tile1
                        call(tile, (source, job.places, job.terms, w, job.wk, target, job.line, bias))
                        source, target, left = source + step, target + step, left - job.wide
            call(job.empty, (pointed(jobs), unit, 0, worker))

    return run
