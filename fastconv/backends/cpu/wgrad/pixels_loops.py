"""The loops of the weight gradient with pixels in the lanes: slabs of shifted rows, tiles of sums, their lanes."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, record, word
from fastconv.backends.cpu.wgrad.pixels_tile import add_up, pick

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh               | the input and its strides: image, channel, depth, row
    y yn yk                     | the output's gradient and its strides: image, channel
    dw                          | the weight's gradient
    scratch scratch_bytes       | where the workers' slabs begin, and how far apart they are
    images inputs outputs       | images; channels of a group
    channels filters cells      | of a unit: channels, output channels, elements that one of these has of dw
    cparts kparts               | units of a group: along the channels, along the output channels
    slices slice_bytes          | parts of the reduction that have a gradient of their own, and bytes of one
    taps kw                     | kernel positions; kernel columns
    id ih iw od oh ow           | sizes of the input and of the output
    band piece                  | output rows done together; their pixels that are summed at once
    kd stride_d dilation_d before_d     | kernel depths; depths from output to output and tap to tap, of padding
    phases phase_rows           | how many of a stride's rows are read; which
    overhang plane              | rows of a phase beyond a band's, bytes of a phase
    stride_h before_h           | input rows from one output to the next, rows of padding
    dilation_w before_w         | input columns from one kernel column to the next, columns of padding
    far                         | whether the input comes from afar
    in_place                    | whether lines of x are read where they are, not from a slab
    places                      | where there the line of each cell begins
    high kfull wide cfull       | output channels of a tile, how many have as many; the same of cells
    tile00 tile01 tile10 tile11 | the tiles: full, with one cell less, with one output channel less, with both
    sums                        | where in a worker's scratch the sums begin
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)


@inlined
def _fill(job, lanes, bits, apart, slab, x, depth, row, rows, ahead):
    """Fill a slab with what a band of output rows reads of a unit's channels, and ask for what is so far ahead."""
    size = bits // 8
    line, step, held = job.ow * size, lanes * size, rows + job.overhang
    target = slab
    for plane in range(job.channels * job.kd):
        c, d = plane // job.kd, depth * job.stride_d - job.before_d + plane % job.kd * job.dilation_d
        if not 0 <= d < job.id:
            clear(target, job.phases * job.kw * job.plane)
            target += job.phases * job.kw * job.plane
            continue
        for phase in range(job.phases):
            first = row * job.stride_h + word(job.phase_rows, phase) - job.before_h
            # Which of the rows are the input's: those from -first / stride, rounded up.
            begin = min(max(-(first // job.stride_h), 0), held)
            end = min(max(-((first - job.ih) // job.stride_h), begin), held)
            source = x + c * job.xc + d * job.xd + (first + begin * job.stride_h) * job.xh
            for s in range(job.kw):
                clear(target, begin * line)
                shift = s * job.dilation_w - job.before_w
                # From right to left: what is stored beyond the end of a row is the beginning of the next one.
                for v in range((job.ow - 1) // lanes if end > begin else -1, -1, -1):
                    col = v * lanes * apart + shift
                    pick(
                        lanes, bits, apart, source + col * size, job.xh * job.stride_h, -col, job.iw - col,
                        target + begin * line + v * step, line, end - begin, ahead if s == 0 else 0,
                    )  # fmt: skip
                clear(target + end * line, (held - end) * line)
                target += job.plane


@inlined
def _first_channel(job, unit):
    """Return the first channel of a unit."""
    rest = unit // job.slices // job.kparts
    return rest // job.cparts * job.inputs + rest % job.cparts * job.channels


@inlined
def _read(job, unit, piece, bands):
    """Return where about a piece of a unit's reduction begins to read."""
    plane, row = piece // bands, piece % bands * job.band
    image, depth = plane // job.od, plane % job.od
    at = image * job.xn + depth * job.stride_d * job.xd + row * job.stride_h * job.xh
    return job.x + _first_channel(job, unit) * job.xc + at


@inlined
def _ahead(job, unit, piece, end, last, bands, pieces):
    """Return how far ahead the next piece reads, of this unit or the next; 0 if there is none, or it is near."""
    if job.far == 0 or (piece + 1 == end and unit + 1 == last):
        return 0
    here = _read(job, unit, piece, bands)
    if piece + 1 < end:
        return _read(job, unit, piece + 1, bands) - here
    return _read(job, unit + 1, (unit + 1) % job.slices * pieces // job.slices, bands) - here


@inlined
def _sum(job, vector, slab, sums, y, size, count, add):
    """Add a piece of a band to all sums of a unit."""
    k, row = 0, job.cells * vector
    while k < job.filters:
        short = k >= job.kfull * job.high
        following = k + (job.high - 1 if short else job.high)
        here = y + k * job.yk
        # The lines of dy that are read next lie far apart: each tile asks for one, as long as there are any.
        ahead = following * job.yk if following < job.filters else count * size
        c, asked = 0, 0
        while c < job.cells:
            narrow = c >= job.cfull * job.wide
            wide, narrower = (job.tile10, job.tile11) if short else (job.tile00, job.tile01)
            at = sums + k * row + c * vector
            soon = y + ahead + asked * job.yk if asked < job.high else here
            call(
                narrower if narrow else wide,
                (here, job.yk, slab, job.places + 8 * c, count, at, row, add, soon),
            )
            asked += 1
            c += job.wide - 1 if narrow else job.wide
        k = following


@cache
def loops(lanes: int, bits: int, apart: int) -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units.

    A unit is some channels of a group by some of its output channels, and a slice of the bands of rows of all images. A
    sum is taken in one order: image, depth, band, vector, and the lanes at the end.
    """
    size = bits // 8
    vector = lanes * size
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.scratch + worker * job.scratch_bytes
        sums = slab + job.sums
        bands = (job.oh + job.band - 1) // job.band
        pieces = job.images * job.od * bands
        for unit in range(start, stop):
            share, rest = unit % job.slices, unit // job.slices
            kpart, rest = rest % job.kparts, rest // job.kparts
            cpart, group = rest % job.cparts, rest // job.cparts
            channel = _first_channel(job, unit)
            output = group * job.outputs + kpart * job.filters
            add = 0
            end = (share + 1) * pieces // job.slices
            for piece in range(share * pieces // job.slices, end):
                plane, row = piece // bands, piece % bands * job.band
                image, depth = plane // job.od, plane % job.od
                x = job.x + image * job.xn + channel * job.xc
                y = job.y + image * job.yn + output * job.yk + depth * job.oh * job.ow * size
                rows = min(job.band, job.oh - row)
                if not job.in_place:
                    ahead = _ahead(job, unit, piece, end, stop, bands, pieces)
                    _fill(job, lanes, bits, apart, slab, x, depth, row, rows, ahead)
                source = x if job.in_place else slab
                pixels = rows * job.ow
                for first in range(0, pixels, job.piece):
                    at = y + (row * job.ow + first) * size
                    _sum(job, vector, source + first * size, sums, at, size, min(job.piece, pixels - first), add)
                    add = 1
            dw = job.dw + share * job.slice_bytes
            for k in range(job.filters):
                target = dw + ((output + k) * job.inputs + cpart * job.channels) * job.taps * size
                for c in range(0, job.cells, lanes):
                    at = sums + (k * job.cells + c) * vector
                    add_up(lanes, bits, at, target + c * size, min(lanes, job.cells - c))

    return run
