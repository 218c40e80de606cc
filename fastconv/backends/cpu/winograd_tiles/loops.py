"""The loops: planes of a band of tiles, their transforms, products and outputs, all in a core's cache."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import from_dtype, types

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, move, pointed, record, word
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.winograd.transforms import will_write
from fastconv.backends.cpu.winograd_tiles.transforms import transform_input, transform_output

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xh xw               | the input and its strides: image, channel, row, column
    y yn yk yh                  | the output and its strides, likewise; columns lie together
    w wgroup wblock             | the packed weight, a group of it, a block of output channels
    bias residual activation    | addresses, 0 for none; the residual lies like y
    last_activation             | the activation's if there is a residual, to which it applies
    groups ic oc terms          | groups; channels of one, and input channels of all phases
    blocks band bands           | blocks of vectors of an image, those whose planes are filled together, how many times
    strip block_bytes           | blocks that are transformed together, bytes of one
    vectors rows                | vectors of a block, output channels of one
    beyond pitch planes_held    | tiles that are read behind a row; tiles of a row and those; rows of a plane
    rows_apart cols_apart       | rows and columns of the input from one tile to the next
    plane                       | bytes of a plane
    table_h table_w             | input index of each padded row and column, -1 for zero
    first last                  | columns of tiles of which all is inside the input
    phases places               | phases of the stride, and where the windows of each lie in the planes
    runs run_bytes starts       | runs of tiles, bytes of one; of every vector, its first
    slab scratch_bytes          | a word that is cleared if NaN or infinity is met; a line behind it the workers'
                                | scratch, and how far apart it is
    transformed products        | what lies in it behind the planes
    deal product enter leave    | addresses of what is compiled
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)
_POINTER = types.CPointer(from_dtype(JOB))


@inlined
def _border(job, size, start, stop, line, source):
    """Fill columns of a line of every plane by the table: padding, and what padding repeats."""
    for p in range(job.cols_apart):
        for t in range(start, stop):
            column = word(job.table_w, t * job.cols_apart + p)
            if column < 0:
                clear(line + p * job.plane + t * size, size)
            else:
                move(line + p * job.plane + t * size, source + column * job.xw, size)


@inlined
def _fill(size, job, target, x, row):
    """Take the rows and columns of all channels apart that tiles read, from a row of tiles on."""
    # What lanes read behind the last row is to be finite.
    room = (job.pitch + job.beyond) * size
    first, last = (job.first, job.last) if job.xw == size else (0, 0)
    for c in range(job.ic):
        for phase in range(job.rows_apart):
            for r in range(job.planes_held):
                line = target + r * job.pitch * size
                source_h = word(job.table_h, (row + r) * job.rows_apart + phase)
                if source_h < 0 or r == job.planes_held - 1:
                    for p in range(job.cols_apart):
                        clear(line + p * job.plane, room)
                if source_h < 0:
                    continue
                source = x + c * job.xc + source_h * job.xh
                _border(job, size, 0, first, line, source)
                _border(job, size, last, job.pitch, line, source)
                inner = source + word(job.table_w, first * job.cols_apart) * size
                call(job.deal, (inner, last - first, line + first * size, job.plane))
            target += job.cols_apart * job.plane


@cache
def entering(extent: int, lanes: int, bits: int, fused: int) -> Any:
    """Return what is compiled to transform a block of vectors of all channels and phases."""
    width = lanes * (bits // 8)
    sources = fingerprint()

    @callback(types.void(_POINTER, *(types.int64,) * 2))
    def run(jobs, source, target):
        if sources == 0:
            return
        job = record(jobs, 0)
        channel = job.rows_apart * job.cols_apart * job.plane
        for term in range(job.terms):
            c, phase = term // job.phases, term % job.phases
            places = job.places + phase * 8 * extent**2
            for t in range(job.vectors):
                transform_input(
                    extent, lanes, bits, fused, source + c * channel + t * width, places,
                    target + (term * job.vectors + t) * width, job.terms * job.vectors * width,
                )  # fmt: skip

    return run


@cache
def leaving(m: int, extent: int, lanes: int, bits: int, fused: int) -> Any:
    """Return what is compiled to transform the products of a block and to store the outputs."""
    size = bits // 8
    width = lanes * size
    sources = fingerprint()

    @callback(types.void(_POINTER, *(types.int64,) * 5))
    def run(jobs, source, first, channel, channels, y):
        if sources == 0:
            return
        job = record(jobs, 0)
        residual = job.residual - job.y if job.residual else 0
        special = 0
        for k in range(channels):
            bias = job.bias + (channel + k) * size if job.bias else 0
            for t in range(job.vectors):
                begin = word(job.starts, first + t)
                count = word(job.starts, first + t + 1) - begin
                if count:
                    special |= transform_output(
                        m, extent, lanes, bits, fused, source + (k * job.vectors + t) * width,
                        job.rows * job.vectors * width, job.runs + begin * job.run_bytes, count, y + k * job.yk, job.yh,
                        bias, residual, job.activation, job.last_activation,
                    )  # fmt: skip
        if special:
            clear(job.slab, 8)

    return run


@inlined
def _announce(job, y, vector, channels):
    """Bring near what a block will write, while its products are made: stores that wait for memory hold up all else."""
    for run in range(word(job.starts, vector), word(job.starts, vector + job.vectors)):
        at = job.runs + run * job.run_bytes
        last = word(at, 3) - 1
        for k in range(channels):
            line = y + k * job.yk + word(at, 0)
            for _ in range(word(at, 1)):
                for j in range(word(at, 2), last, LINE):
                    will_write(line + j)
                will_write(line + last)
                line += job.yh


@cache
def loops(points: int, lanes: int, bits: int) -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units."""
    size = bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job, where = record(jobs, 0), pointed(jobs)
        planes = job.slab + LINE + worker * job.scratch_bytes
        transformed, products = planes + job.transformed, planes + job.products
        for unit in range(start, stop):
            band, rest = unit % job.bands, unit // job.bands
            group, image = rest % job.groups, rest // job.groups
            x = job.x + image * job.xn + group * job.ic * job.xc
            first = band * job.band
            tile = first * job.vectors * lanes
            row = tile // job.pitch
            _fill(size, job, planes, x, row)
            end = min(first + job.band, job.blocks)
            for begin in range(first, end, job.strip):
                there = min(job.strip, end - begin)
                for b in range(there):
                    at = (begin + b) * job.vectors * lanes - row * job.pitch
                    call(job.enter, (where, planes + at * size, transformed + b * job.block_bytes))
                w = job.w + group * job.wgroup
                # One block of output channels after another, each with many tiles: few lines are written on at a time.
                for k in range(0, job.oc, job.rows):
                    channel = group * job.oc + k
                    y = job.y + image * job.yn + channel * job.yk
                    channels = min(job.rows, job.oc - k)
                    for b in range(there):
                        vector = (begin + b) * job.vectors
                        _announce(job, y, vector, channels)
                        call(job.product, (points, job.terms, transformed + b * job.block_bytes, w, products))
                        call(job.leave, (where, products, vector, channel, channels, y))
                    w += job.wblock

    return run
