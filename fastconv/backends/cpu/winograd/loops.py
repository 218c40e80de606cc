"""The loops of Winograd's convolution: between input and output everything stays in a core's cache.

A unit of work is a block of tiles. Its input is transformed for all channels: ``v[point][chunk][tile][lane]``, where a
chunk is what input channels the lanes hold, of one phase of the stride. Then, for one block of output channels after
another, each point is a matrix product, ``m[point][tile][lane]``, which is transformed back, given bias and activation,
and stored.
Where there are few blocks of tiles, all workers do one together, in two stages: they share what is transformed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import from_dtype, types

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, move, pointed, record, word
from fastconv.backends.cpu.winograd.transforms import (
    copy_lanes,
    gather_lanes,
    scatter_lanes,
    store_lanes,
    transform_input,
    transform_output,
    will_write,
)

# What every run fills in, addresses: input, output, transformed weight and bias, the constants of an activation and of
# one after the residual, 0 for none, and how far from the output the residual lies; where the transformed input is, and
# where the workers' scratch begins; what transforms a block of the weight when its turn comes, and its record: 0 if all
# were before.
HEAD = ("x", "y", "w", "bias", "residual", "activation", "last_activation", "v", "scratch", "pack", "packing")

# Sizes and (in bytes) strides.
_FIELDS = """
    xn xg xc xd xh xw           | strides of the input: image, group, channel, depth, row, column
    ic chunk pieces chunks      | input channels of a group, of a chunk, chunks of them, and chunks in all: so many for
                                | every phase of the stride and every depth of the kernel
    phases starts               | phases, and where in the slab each begins
    spans                       | of every point, the first chunk that has products there, and how many have
    od step_d dilation_d        | output depths; padded depths from one to the next, and from one of the kernel's
    table_d                     | input index of each padded depth, -1 for zero
    table_h table_w             | input index of each padded position, -1 for zero
    before first last           | padding before a row; the padded columns that are the input itself
    wblock wpoint wlast         | of the transformed weight: a block of output channels, a point of it, and of the last
    wworker                     | how far apart the workers' blocks are, where each is transformed when its turn comes
    yn yk yd yh yw              | strides of the output: image, channel, depth, row, column
    oc oh ow                    | output channels of a group, output sizes
    vectors tail                | vectors of output channels in a block, and in a group's last block
    product product_last        | addresses of the compiled products for either
    enter leave points          | addresses of the compiled transforms; points of a tile
    blocks                      | blocks of output channels of a group
    down across all_rows        | rows of tiles of a plane, tiles of a row, rows of tiles of all planes
    rows cols                   | a block of tiles: rows, over planes' borders too, and tiles of a row
    row_bands col_bands         | blocks of tiles along rows and columns
    stage unit                  | 0: units are blocks of tiles; 1 and 2: stages of this one
    v_bytes scratch_bytes       | how far apart transformed inputs of workers are, 0 if they share it, and their scratch
    v_plane m_plane slab_row    | strides: points of v and of m, rows of the slab
    slab strip                  | offsets in the scratch, behind the products: the padded input, the output
    special                     | set to 1 if NaN or infinity is met
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)
_POINTER = types.CPointer(from_dtype(JOB))


@inlined
def fill(mw, eh, ew, lanes, bits, job, slab, x, ahead, channels, row, col):
    """Copy what a row of tiles reads of some channels into the slab: padded, lanes together.

    Tiles are ``mw`` apart and read ``eh`` rows and ``ew`` columns.
    """
    size = bits // 8
    width = lanes * size
    columns = job.cols * mw + ew - mw
    low = max(job.first - col, 0)
    high = max(low, min(job.last - col, columns))
    for i in range(eh):
        source_h = word(job.table_h, (row + i))
        target = slab + i * job.slab_row
        if source_h < 0:
            clear(target, columns * width)
            continue
        source = x + source_h * job.xh
        inside = source + (col - job.before) * job.xw
        if job.xw == size:
            for j in range(low, high, lanes):
                count = min(lanes, high - j)
                gather_lanes(
                    lanes, bits, inside + j * size, job.xc, channels, count, target + j * width, ahead
                )  # fmt: skip
        elif job.xc == size:
            for j in range(low, high):
                copy_lanes(lanes, bits, inside + j * job.xw, target + j * width, channels)
        else:
            high = low
        for edge in range(low + columns - high):
            j = edge if edge < low else edge - low + high
            source_w = word(job.table_w, (col + j))
            if source_w < 0:
                clear(target + j * width, width)
            else:
                if channels < lanes:
                    clear(target + j * width, width)  # what is there may be no number
                for c in range(channels):
                    move(target + j * width + c * size, source + source_w * job.xw + c * job.xc, size)


@inlined
def enter(mh, mw, eh, ew, sh, sw, lanes, bits, fused, job, v, scratch, group, row, col, start, stop):
    """Transform the input of a block of tiles: a range of its pieces, each a row of tiles of a chunk of every phase."""
    width = lanes * (bits // 8)
    slab, tiles = scratch + job.slab, job.rows * job.cols
    together = job.chunks // job.phases
    for piece in range(start, stop):
        r, chunk = piece // together, piece % together
        plane, tile_row = (row + r) // job.down, (row + r) % job.down
        depth, c = chunk // job.pieces, chunk % job.pieces
        target = v + (chunk * tiles + r * job.cols) * width
        source_d = word(job.table_d, plane % job.od * job.step_d + depth * job.dilation_d)
        if source_d < 0:
            for phase in range(job.phases):
                for point in range(job.points):
                    clear(target + phase * together * tiles * width + point * job.v_plane, job.cols * width)
            continue
        x = job.x + plane // job.od * job.xn + group * job.xg + source_d * job.xd
        channels = min(job.chunk, job.ic - c * job.chunk)
        # Meanwhile the next chunk is fetched, after the last one the next row of tiles.
        ahead = (job.chunk if c < job.pieces - 1 else -c * job.chunk) * job.xc
        if c == job.pieces - 1:
            ahead += mh * sh * job.xh if chunk == together - 1 else job.dilation_d * job.xd
        fill(
            mw * sw, eh * sh, ew * sw, lanes, bits, job, slab, x + c * job.chunk * job.xc, ahead, channels,
            tile_row * mh * sh, col * mw * sw,
        )  # fmt: skip
        for phase in range(job.phases):
            source = slab + word(job.starts, phase)
            for t in range(job.cols):
                transform_input(
                    eh, ew, sw, lanes, bits, fused, source + t * mw * sw * width, sh * job.slab_row,
                    target + t * width, job.v_plane,
                )  # fmt: skip
            target += together * tiles * width


@cache
def entering(mh: int, mw: int, eh: int, ew: int, sh: int, sw: int, lanes: int, bits: int, fused: int) -> Any:
    """Return the compiled `enter`, which is given the record's address."""
    # Numba's disk cache looks at this file and at what is enclosed here, not at the other files that make the code.
    sources = fingerprint()

    @callback(types.void(_POINTER, *(types.int64,) * 7))
    def run(jobs, v, scratch, group, row, col, start, stop):
        if sources == 0:
            return
        enter(mh, mw, eh, ew, sh, sw, lanes, bits, fused, record(jobs, 0), v, scratch, group, row, col, start, stop)

    return run


@cache
def leaving(mh: int, mw: int, eh: int, ew: int, lanes: int, bits: int, fused: int) -> Any:
    """Return what is compiled to transform the products of a block of tiles and output channels, and to store."""
    size = bits // 8
    width = lanes * size
    sources = fingerprint()

    @callback(types.void(_POINTER, *(types.int64,) * 6))
    def run(jobs, scratch, block, vectors, channel, row, col):
        if sources == 0:
            return
        job = record(jobs, 0)
        strip, strip_row = scratch + job.strip, job.cols * mw * width
        special = 0
        for r in range(job.rows):
            plane, tile_row = (row + r) // job.down, (row + r) % job.down
            to = job.y + plane // job.od * job.yn + plane % job.od * job.yd
            columns = min(job.cols * mw, job.ow - col * mw)
            for v in range(vectors):
                first = (block * job.vectors + v) * lanes
                channels = min(lanes, job.oc - first)
                bias = job.bias + (channel + first) * size if job.bias else 0
                source = scratch + (r * job.cols * vectors + v) * width
                for i in range(min(mh, job.oh - tile_row * mh) if job.yw == size else 0):
                    for k in range(channels):
                        y = to + (channel + first + k) * job.yk
                        y += (tile_row * mh + i) * job.yh + col * mw * job.yw
                        for j in range(0, columns * size, 64):
                            will_write(y + j)
                for t in range(job.cols):
                    special |= transform_output(
                        mh, mw, eh, ew, lanes, bits, fused, source + t * vectors * width, job.m_plane,
                        strip + t * mw * width, strip_row, bias, channels, job.activation,
                    )  # fmt: skip
                for i in range(min(mh, job.oh - tile_row * mh)):
                    y = to + (channel + first) * job.yk
                    y += (tile_row * mh + i) * job.yh + col * mw * job.yw
                    if job.yw == size:
                        for j in range(0, columns, lanes):
                            scatter_lanes(
                                lanes, bits, strip + i * strip_row + j * width, min(lanes, columns - j),
                                y + j * size, job.yk, channels, job.residual, job.last_activation,
                            )  # fmt: skip
                    else:
                        for j in range(columns):
                            store_lanes(
                                lanes, bits, strip + i * strip_row + j * width, y + j * job.yw, channels,
                                job.residual, job.last_activation,
                            )  # fmt: skip
        if special:
            job.special = 1

    return run


@cache
def loops() -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job, where = record(jobs, 0), pointed(jobs)
        v, scratch = job.v + worker * job.v_bytes, job.scratch + worker * job.scratch_bytes
        tiles, whole = job.rows * job.cols, job.stage == 0
        for unit in range(start if whole else job.unit, stop if whole else job.unit + 1):
            group = unit // (job.col_bands * job.row_bands)
            # The last blocks overlap the ones before: what is computed twice comes out the same.
            row = min(unit // job.col_bands % job.row_bands * job.rows, job.all_rows - job.rows)
            col = min(unit % job.col_bands * job.cols, job.across - job.cols)
            if job.stage != 2:
                first, end = (0, job.rows * (job.chunks // job.phases)) if whole else (start, stop)
                call(job.enter, (where, v, scratch, group, row, col, first, end))
            if job.stage == 1:
                continue
            first, end = (0, job.blocks) if whole else (start, stop)
            for block in range(first, end):
                product, plane, vectors = job.product, job.wpoint, job.vectors
                if block == job.blocks - 1:
                    product, plane, vectors = job.product_last, job.wlast, job.tail
                at = group * job.blocks + block
                w = job.w + at * job.wblock
                if job.pack:
                    w = job.w + worker * job.wworker
                    call(job.pack, (job.packing, at, at + 1, worker))
                call(product, (
                    job.points, tiles, job.spans, job.chunk, v, job.v_plane, w, plane, scratch, job.m_plane,
                ))  # fmt: skip
                call(job.leave, (where, scratch, block, vectors, group * job.oc, row, col))

    return run
