"""The loops around the micro-kernel, and the slab that it reads: lines with their padding, taken apart by stride."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, function, inlined
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, copy, integer, move, record, word
from fastconv.backends.cpu.phases import UNREAD
from fastconv.backends.cpu.planes.tile import plane_tile

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc xd xh               | the input and its strides: image, channel, depth, row; columns lie together
    y yn yk yd yh               | the output and its strides, likewise
    w wblock blocks             | the packed weight, a block of output channels, how many
    terms nterms                | offsets of the products' columns into the slab, how many
    nc oc od oh ow              | channels, output sizes
    bias residual activation    | addresses, 0 for none; the residual lies like y
    span                        | columns that a block of channels does before the next
    bands band                  | a unit of work: image, depth, band of rows
    slab slab_bytes             | where the workers' slabs begin, and how far apart they are
    lc ld lh phase              | the slab's strides: channel, depth, row, columns that are no multiple of the stride
    depths kernel_h             | planes of a slab; rows that an output row reads
    widths first last           | columns of a line, and which of these, inside the input, are copied together
    deal                        | what deals them to the phases of a stride, 0 if there is one
    step_d step_h step_w        | stride of the convolution
    table_d table_h table_w     | input index of each padded position, -1 for zero, -2 for not read
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@inlined
def _place(job, size, target, w):
    """Return where a column of a line lies."""
    return target + w % job.step_w * job.phase + w // job.step_w * size


@inlined
def _border(job, size, start, stop, target, source):
    """Fill columns of a line by the table: padding, and what padding repeats."""
    for w in range(start, stop):
        index, at = word(job.table_w, w), _place(job, size, target, w)
        if index < 0:
            clear(at, size)
        else:
            move(at, source + index * size, size)


@cache
def pack_kernel(bits: int) -> Any:
    """Return the compiled ``pack(w, terms, outputs, rows, packed)``: blocks of ``rows`` channels, term by term.

    The last block repeats its last channel where it has fewer.
    """
    size = bits // 8
    sources = fingerprint()

    @function(types.void(*(types.int64,) * 5))
    def pack(w, terms, outputs, rows, packed):
        if sources == 0:
            return
        for first in range(0, outputs, rows):
            for r in range(rows):
                source = w + min(first + r, outputs - 1) * terms * size
                target = packed + (first * terms + r) * size
                for term in range(terms):
                    move(target + term * rows * size, source + term * size, size)

    return pack


@inlined
def _fill(bits, job, slab, x, depth, row, heights):
    """Copy what the output rows from ``row`` at ``depth`` read of an image, with its padding, into a slab."""
    size = bits // 8
    for c in range(job.nc):
        for d in range(job.depths):
            source_d = word(job.table_d, (depth * job.step_d + d))
            for h in range(heights):
                source_h = word(job.table_h, (row * job.step_h + h))
                target = slab + c * job.lc + d * job.ld + h * job.lh
                if source_d == UNREAD or source_h == UNREAD:
                    continue
                if source_d < 0 or source_h < 0:
                    clear(target, job.lh)
                    continue
                source = x + c * job.xc + source_d * job.xd + source_h * job.xh
                _border(job, size, 0, job.first, target, source)
                _border(job, size, job.last, job.widths, target, source)
                if job.first == job.last:
                    continue
                inner, at = source + integer(job.table_w + 8 * job.first) * size, _place(job, size, target, job.first)
                if job.deal:
                    call(job.deal, (inner, (job.last - job.first) // job.step_w, at, job.phase))
                else:
                    copy(at, inner, (job.last - job.first) * size)


@cache
def loops(rows: int, vectors: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled loops for a tile's shape: ``run(job, start, stop, worker)`` does a range of units."""
    size = bits // 8
    step = vectors * lanes
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        for unit in range(start, stop):
            band, rest = unit % job.bands, unit // job.bands
            depth, image = rest % job.od, rest // job.od
            first_row = band * job.band
            count = min(job.band, job.oh - first_row)
            heights = (count - 1) * job.step_h + job.kernel_h
            _fill(bits, job, slab, job.x + image * job.xn, depth, first_row, heights)
            for row in range(count):
                y = image * job.yn + depth * job.yd + (first_row + row) * job.yh
                for left in range(0, job.ow, job.span):
                    for block in range(job.blocks):
                        k = block * rows
                        w = job.w + block * job.wblock
                        bias = job.bias + k * size if job.bias else 0
                        for col in range(left, min(left + job.span, job.ow), step):
                            at = y + k * job.yk + col * size
                            plane_tile(
                                rows, vectors, lanes, bits, fused,
                                slab + row * job.step_h * job.lh + col * size, job.terms, job.nterms, w,
                                job.y + at, job.yk, job.oc - k, job.ow - col, bias,
                                job.residual + at if job.residual else 0, job.activation,
                            )  # fmt: skip

    return run
