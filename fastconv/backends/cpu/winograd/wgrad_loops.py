"""The loops of Winograd's weight gradient.

Of a block of tiles, x and dy are transformed, lanes being channels: ``v[point][chunk][tile][lane]``, where a chunk is
what inputs the micro-kernel holds, and ``u[point][block][tile][vector][lane]``, where a block is what vectors of output
channels it holds. A point's sums over tiles, ``sums[block][point][input][vector][lane]``, are matrix products. The
sums of all blocks of tiles are transformed into the gradient.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import record, word
from fastconv.backends.cpu.wgrad.tile import wgrad_tile
from fastconv.backends.cpu.winograd.loops import enter, fill
from fastconv.backends.cpu.winograd.transforms import scatter_lanes
from fastconv.backends.cpu.winograd.wgrad_transforms import transform_gradient, transform_sums

# Addresses, sizes and (in bytes) strides. Of every block of tiles there are two records: of x, and of dy, which has
# the fields of the first part only. They have the names that `fill` and `enter` know.
_FIELDS = """
    x xn xg xc xd xh xw         | the tensor and its strides: image, group, channel, depth, row, column
    ic chunk pieces chunks      | its channels of a group, of a chunk, chunks of them; chunks in all: so many for every
                                | phase of the stride and every depth of the kernel
    phases starts               | phases of the stride, and where in the slab each begins
    places spans                | which element of a filter each of its taps is; of every point, the first phase that
                                | has sums there, and how many have
    od step_d dilation_d        | output depths; padded depths from one to the next, and from one of the kernel's
    table_d                     | its index at each padded depth, -1 for zero
    table_h table_w             | its index at each padded position, -1 for zero
    before first last           | padding before a row; the padded columns that are the tensor itself
    v v_plane                   | where it is transformed, and a point's stride
    slab slab_row               | offset in the scratch of what a row of tiles reads, and a row of that
    down rows cols              | rows of tiles of a plane; the block's rows, over planes' borders too, and columns

    group row col               | where the block begins
    oc kblocks vectors tail     | output channels of a group; blocks of them; their vectors, those of the last
    dw dwk                      | the gradient of the weight, a row for each output channel; a row's stride
    scratch scratch_bytes strip | the workers' scratch, how far apart; offset of transformed sums
    sums sums_bytes m_plane     | sums; how far apart those of blocks, or of workers, are; a point's stride
    points                      | points of a tile
    area                        | elements of a filter's plane
    parts part                  | parts that the chunks of a phase are cut into, and chunks of a part
    alone                       | whether this is the only block: units go on to the gradient. Then, for that,
    leave here                  | the address of `leave` and of this record
    add special                 | whether sums go on from the last block's; set to 1 if NaN or infinity is met
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)

_RUN = task_type(JOB)


@cache
def transforms(m: int, taps: int, sh: int, sw: int, lanes: int, bits: int, fused: int) -> tuple[Any, Any]:
    """Return what is compiled for F(taps, m): ``enter`` does rows of tiles of chunks, ``leave`` blocks of parts."""
    size = bits // 8
    width, extent = lanes * size, m + taps - 1
    sources = fingerprint()

    @callback(_RUN)
    def go_in(jobs, start, stop, worker):
        if sources == 0:
            return
        job, dy = record(jobs, 0), record(jobs, 1)
        scratch = job.scratch + worker * job.scratch_bytes
        middle = job.rows * (job.chunks // job.phases)
        if start < middle:
            enter(
                m, m, extent, extent, sh, sw, lanes, bits, fused, job, job.v, scratch, job.group, job.row, job.col,
                start, min(stop, middle),
            )  # fmt: skip
        slab, tiles = scratch + job.slab, job.rows * job.cols
        for piece in range(max(start, middle) - middle, stop - middle):
            r, k = piece // dy.chunks, piece % dy.chunks
            plane, tile_row = (job.row + r) // job.down, (job.row + r) % job.down
            source = dy.x + plane // job.od * dy.xn + plane % job.od * dy.xd
            source += job.group * dy.xg + k * lanes * dy.xc
            channels = min(lanes, dy.ic - k * lanes)
            fill(m, m, m, lanes, bits, dy, slab, source, lanes * dy.xc, channels, tile_row * m, job.col * m)
            block = k // job.vectors
            wide = (job.tail if block == job.kblocks - 1 else job.vectors) * width
            target = dy.v + block * tiles * job.vectors * width + k % job.vectors * width + r * job.cols * wide
            for t in range(job.cols):
                transform_gradient(
                    m, taps, lanes, bits, fused,
                    slab + t * m * width, dy.slab_row, target + t * wide, dy.v_plane,
                )  # fmt: skip

    @callback(_RUN)
    def leave(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        strip = job.scratch + worker * job.scratch_bytes + job.strip
        special = 0
        together, area = job.chunks // job.phases, job.area
        depths, held = together // job.pieces, job.part if job.alone else together
        for unit in range(start, stop):
            block, first = unit % job.kblocks, unit // job.kblocks * job.part
            wide = job.tail if block == job.kblocks - 1 else job.vectors
            sums = job.sums + (worker if job.alone else block) * job.sums_bytes
            for v in range(wide):
                k = (block * job.vectors + v) * lanes
                outputs = min(lanes, job.oc - k)
                for chunk in range(first, min(first + job.part, together)):
                    depth, c = chunk // job.pieces, chunk % job.pieces
                    channels = min(job.chunk, job.ic - c * job.chunk)
                    for phase in range(job.phases):
                        at = phase * held + (chunk - first if job.alone else chunk)
                        source = sums + (at * job.chunk * wide + v) * width
                        for i in range(channels):
                            special |= transform_sums(
                                m, taps, lanes, bits, fused, source + i * wide * width, job.m_plane,
                                strip + i * area * width, job.places + phase * taps * taps * 8,
                            )  # fmt: skip
                    row = job.dw + (job.group * job.oc + k) * job.dwk + c * job.chunk * depths * area * size
                    # What lies together: all channels, or of each what one depth of its filter is.
                    adjacent = channels if depths == 1 else 1
                    for i in range(0, channels, adjacent):
                        to = row + (i * depths + depth) * area * size
                        for e in range(0, adjacent * area, lanes):
                            scatter_lanes(
                                lanes, bits, strip + (i * area + e) * width, min(lanes, adjacent * area - e),
                                to + e * size, job.dwk, outputs, 0, 0,
                            )  # fmt: skip
        if special:
            job.special = 1

    return go_in, leave


@cache
def products(cols: int, vectors: int, tail: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled sums over the tiles of a block, for chunks of ``cols`` inputs.

    A unit is a block of output channels, and either a point or, if there is no other block of tiles, a part of the
    inputs, for which it then goes on to the gradient.
    """
    width = lanes * (bits // 8)
    sources = fingerprint()

    @callback(_RUN)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job, dy = record(jobs, 0), record(jobs, 1)
        tiles, together = job.rows * job.cols, job.chunks // job.phases
        held = job.part if job.alone else together
        for unit in range(start, stop):
            block, index = unit % job.kblocks, unit // job.kblocks
            last = block == job.kblocks - 1
            wide = (tail if last else vectors) * width
            if job.alone:
                first, end, point, points = index * job.part, min((index + 1) * job.part, together), 0, job.points
            else:
                first, end, point, points = 0, together, index, index + 1
            sums = job.sums + (worker if job.alone else block) * job.sums_bytes
            for p in range(point, points):
                a = dy.v + p * dy.v_plane + block * tiles * vectors * width
                there = end - first
                begin = word(job.spans, 2 * p) * there
                for k in range(begin, begin + word(job.spans, 2 * p + 1) * there):
                    phase, c = k // there, k % there
                    b = job.v + p * job.v_plane + (phase * together + first + c) * tiles * width
                    to = sums + p * job.m_plane + (phase * held + c) * cols * wide
                    so_far = to if job.add else 0
                    if last:
                        wgrad_tile(
                            cols, tail, lanes, bits, fused, 0, 0,
                            a, 0, 0, b, width, 0, 0, 0, tiles, 1, 1, so_far, to, wide,
                        )  # fmt: skip
                    else:
                        wgrad_tile(
                            cols, vectors, lanes, bits, fused, 0, 0,
                            a, 0, 0, b, width, 0, 0, 0, tiles, 1, 1, so_far, to, wide,
                        )  # fmt: skip
            if job.alone:
                call(job.leave, (job.here, unit, unit + 1, worker))

    return run
