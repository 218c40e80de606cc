"""The loops around the depthwise micro-kernel where lanes are planes, which are turned before and after it.

Turned planes have their padding inside, so that no tile looks at borders.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.depthwise.tile import depthwise_tile
from fastconv.backends.cpu.grouped.vectors import take_turned
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, move, record, word
from fastconv.backends.cpu.packing import turn_square

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xc                     | the input, its image and plane; what lies in a plane is in one piece
    y yn yk                     | the output and its strides, likewise
    w wblock wturn              | the packed weight: a vector of channels, an output channel of each
    wgroup wrow wstep           | group, kernel row, kernel column
    bias residual activation    | addresses, 0 for none
    planes blocks patterns      | planes of an image; vectors of them, and of the channels until they come again
    inputs multiplier           | input channels, output channels of each
    outer stride_o before_o     | of the axis that is cut into bands: size, inputs from output to output, padding
    outers xo inner inner_out   | pieces of it that a band reads, bytes of one; its pixels, in and out
    bands band outs             | bands, outputs of one, of all
    depths rows ow              | output depths and rows of a band, columns
    stride_d stride stride_w    | input positions from one output to the next
    groups count                | offsets of groups of kernel positions: depth and row of each; how many
    steps kernel spread         | offsets of the kernel's columns in bytes; how many; input columns between them
    xd xh yd yh                 | strides of turned planes: depth, row
    places hole holes           | where pixels go from a piece's first on; where there is none in a piece, of all pieces
    slab slab_bytes             | where the workers' turned planes begin, and how far apart they are
    biases sums                 | where behind these a vector of biases is, and the sums
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)


@inlined
def _turn_in(job, lanes, bits, x, planes, first, slab):
    """Turn what outputs from ``first`` on read of some planes, with zeros for pieces of padding."""
    size = bits // 8
    start = first * job.stride_o - job.before_o
    begin = max(0, min(-start, job.outers))
    end = max(begin, min(job.outers, job.outer - start))
    clear(slab, begin * job.xo)
    clear(slab + end * job.xo, (job.outers - end) * job.xo)
    source, target, pixels = x + (start + begin) * job.inner * size, slab + begin * job.xo, (end - begin) * job.inner
    for p in range(0, pixels, lanes):
        # The last square overlaps the one before: a whole one is several times as fast as a part.
        pixel = max(0, min(p, pixels - lanes))
        turn_square(
            lanes, bits, source + pixel * size, job.xc, planes, min(lanes, pixels - pixel), target,
            job.places + 8 * pixel,
        )  # fmt: skip


@inlined
def _turn_out(job, lanes, bits, sums, pixels, at, planes):
    """Turn sums back; ``at`` counts from the output's and the residual's start."""
    size = bits // 8
    item, stride = lanes * size, job.multiplier * job.yk
    for p in range(0, pixels, lanes):
        source, target, left = sums + p * item, at + p * size, pixels - p
        residual = job.residual + target if job.residual else 0
        if left >= lanes:
            take_turned(
                lanes, bits, 0, source, item, job.y + target, stride, residual, job.activation, planes, left,
            )  # fmt: skip
        else:
            take_turned(
                lanes, bits, 1, source, item, job.y + target, stride, residual, job.activation, planes, left,
            )  # fmt: skip


@inlined
def _take_biases(job, size, first, planes, output, target):
    """Put the biases of some planes side by side."""
    for plane in range(planes):
        channel = (first + plane) % job.inputs
        move(target + plane * size, job.bias + (channel * job.multiplier + output) * size, size)


@cache
def loops(rows: int, vectors: int, lanes: int, bits: int, fused: int, height: int, stride: int) -> Any:
    """Return the compiled ``run(job, start, stop, worker)``, which does a range of units; see `depthwise_tile`."""
    size = bits // 8
    item = lanes * size
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        slab = job.slab + worker * job.slab_bytes
        sums = slab + job.sums
        for hole in range(job.holes):
            clear(slab + word(job.hole, hole), item)
        for unit in range(start, stop):
            band, rest = unit % job.bands, unit // job.bands
            block, image = rest % job.blocks, rest // job.blocks
            plane = block * lanes
            planes = min(lanes, job.planes - plane)
            # The last band overlaps the one before: what is computed twice comes out the same.
            first = min(band * job.band, job.outs - job.band)
            _turn_in(job, lanes, bits, job.x + image * job.xn + plane * job.xc, planes, first, slab)
            for output in range(job.multiplier):
                w = job.w + block % job.patterns * job.wblock + output * job.wturn
                bias = slab + job.biases if job.bias else 0
                if bias:
                    _take_biases(job, size, plane, planes, output, bias)
                for depth in range(job.depths):
                    for r in range(0, job.rows, rows):
                        row = min(r, job.rows - rows)
                        for q in range(0, job.ow, vectors):
                            col = min(q, job.ow - vectors)
                            depthwise_tile(
                                rows, vectors, lanes, bits, fused, 1, 0, 0, height, stride, 1,
                                (slab, job.xd, job.xh, item,
                                 depth * job.stride_d, row * job.stride, col * job.stride_w, 0, 0, 0,
                                 job.groups, job.count, job.steps, job.kernel, job.spread, job.stride, job.stride_w,
                                 w, job.wgroup, job.wrow, job.wstep,
                                 sums + depth * job.yd + row * job.yh + col * item, job.yh, item, lanes,
                                 bias, 0, 0, 0, 0),
                            )  # fmt: skip
                at = image * job.yn + (plane * job.multiplier + output) * job.yk + first * job.inner_out * size
                _turn_out(job, lanes, bits, sums, job.band * job.inner_out, at, planes)

    return run
