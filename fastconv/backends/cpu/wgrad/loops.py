"""The loops of the weight gradient: packing a chunk of x and dy, and summing over it.

A chunk is a part of the batch, or a band of output rows of an image. Both operands are packed so that what a
pixel has lies together: x in blocks of a few channels, padding included; dy in blocks of vectors of channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.elements import widen_one
from fastconv.backends.cpu.finite import special
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, integer, pointed, put, record, word
from fastconv.backends.cpu.wgrad.storing import add_slices, first_input, store_sums
from fastconv.backends.cpu.wgrad.tile import lift, turn

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x slab dy dw panel sums  | x from the chunk's first image on, packed x, dy from its first pixel on, the result,
                             | packed dy, sums
    xn xc xd xh xw           | the input: image, channel, depth, row, column
    yn yk yd yh yw           | the output's gradient
    dwk                      | the weight's gradient, stride of an output channel
    inputs outputs           | channels of a group
    cblocks kblocks          | blocks of them
    channels kernel          | inputs of a block; elements that an input has of a row of dw
    sblock simage sd sh item | packed x: block, image, depth, row, pixel
    images depths heights widths     | packed x: sizes
    table_d table_h table_w  | input index of each position of packed x, -1 for zero
    first last weave         | columns of packed x inside the input; who packs them, 0: one by one
    pblock                   | packed dy: block
    lines line               | lines of dy of an image and depth, and pixels of a line
    ydepths                  | depths of dy
    ysteps ytail wsteps      | offsets of pixels in packed dy, in its last block; of rows of dw
    outer planes rows cols   | the box of pixels to sum over
    aimage aplane arow       | packed dy: strides of the box in pixels
    bimage bplane brow bcol bstep    | x: strides of the box; see the micro-kernel
    direct                   | x is read where it is, not packed: stride of a channel, or 0
    turned dwe               | whether lanes are inputs and rows of dw output channels; bytes of such a row
    mplanes mrows mcols      | what is summed at once: what stays in the first-level cache
    tile0 tile1              | who computes a tile: of a whole block of output channels, of the last
    vectors tail span        | vectors of these blocks; inputs of a tile
    spread                   | channels of a group where several groups share a vector, or 0
    tiles ntiles             | offsets of the tiles of a block in packed x, how many
    boxes special            | rows and columns of pixels where tiles meet the input, 0: all; whether dy is not finite
    order                    | where among a block's sums each element of a row of dw is
    tail_order               | the same in the last block of output channels
    csupers csuper           | parts that the blocks of inputs are cut into, blocks in a part
    unit_sums own            | bytes of a unit's sums; whether a worker has room for one unit alone
    slices                   | parts of a chunk that have sums of their own, which are added up at the end
    straight                 | whether tiles store what is ready in rows of dw, if these take whole vectors
    add finish               | whether the sums go on from the last chunk's; whether this chunk is the last
    pack_x pack_dy sum merge | who does the chunk: addresses of compiled loops
    units_x units_dy units   | their units of work
    merges                   | those of the last, which there is something to do for if there are slices
"""
FIELDS = fields_of(_FIELDS)
JOB = job_type(FIELDS)

_SPECIAL = 8 * FIELDS.index("special")


@cache
def packing(lanes: int, bits: int) -> tuple[Any, Any]:
    """Return the compiled packing of x and of dy: units are lines of blocks."""
    accumulated = computed(bits)
    size, wide = size_of(bits), size_of(accumulated)
    sources = fingerprint()

    @callback(task_type(JOB))
    def pack_x(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            h, rest = unit % job.heights, unit // job.heights
            d, rest = rest % job.depths, rest // job.depths
            image, block = rest % job.images, rest // job.images
            target = job.slab + block * job.sblock + image * job.simage + d * job.sd + h * job.sh
            source_d, source_h = word(job.table_d, d), word(job.table_h, h)
            if source_d < 0 or source_h < 0:
                clear(target, job.widths * job.item)
                continue
            first = block % job.cblocks * job.channels
            channels = min(job.channels, job.inputs - first)
            if channels < job.channels:
                clear(target, job.widths * job.item)
            source = job.x + image * job.xn + (block // job.cblocks * job.inputs + first) * job.xc
            source += source_d * job.xd + source_h * job.xh
            woven = job.weave and job.xw == size and job.first < job.last
            w = 0
            while w < job.widths:
                index, to = word(job.table_w, w), target + w * job.item
                if woven and w == job.first:
                    call(job.weave, (source + index * size, job.xc, channels, job.last - w, to))
                    w = job.last
                    continue
                if index < 0:
                    clear(to, job.item)
                elif job.xc == size:
                    for c in range(0, channels, lanes):
                        at = source + index * job.xw + c * size
                        lift(lanes, bits, accumulated, 0, at, min(lanes, channels - c), to + c * wide)
                else:
                    for c in range(channels):
                        widen_one(bits, source + index * job.xw + c * job.xc, to + c * wide)
                w += 1

    @callback(task_type(JOB))
    def pack_dy(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            line, rest = unit % job.lines, unit // job.lines
            d, rest = rest % job.ydepths, rest // job.ydepths
            image, block = rest % job.images, rest // job.images
            group, k = block // job.kblocks, block % job.kblocks
            last = k == job.kblocks - 1
            steps = job.ytail if last else job.ysteps
            pixel = integer(steps + 8)
            first = k * (integer(job.ysteps + 8) // wide)
            channels = min(pixel // wide, job.outputs - first)
            target = job.panel + block * job.pblock + ((image * job.ydepths + d) * job.lines + line) * job.line * pixel
            source = job.dy + image * job.yn + d * job.yd + line * job.yh + (group * job.outputs + first) * job.yk
            if job.yw == size:
                for q in range(0, job.line, lanes):
                    for c in range(0, channels, lanes):
                        turn(lanes, bits, accumulated, 0, 1, source + q * size + c * job.yk, job.yk,
                             min(lanes, channels - c), min(lanes, job.line - q),
                             target + q * pixel + c * wide, steps)  # fmt: skip
            for q in range(job.line if job.yw != size else 0):
                at, to = source + q * job.yw, target + q * pixel
                if job.yk == size:
                    for c in range(0, channels, lanes):
                        lift(lanes, bits, accumulated, 1, at + c * size, min(lanes, channels - c), to + c * wide)
                else:
                    clear(to, pixel)
                    for c in range(channels):
                        widen_one(bits, at + c * job.yk, to + c * wide)
            if job.boxes and special(lanes, accumulated, target, job.line * pixel // wide):
                put(pointed(jobs) + _SPECIAL, 1)

    return pack_x, pack_dy


@inlined
def _room(job, unit, worker):
    """Return where a unit's sums are."""
    return job.sums + (worker if job.own else unit) * job.unit_sums


@inlined
def _met(first, stop, from_, count):
    """Return the part of some positions that lies in a range, first one and how many; one of them if none does."""
    begin, end = max(first, from_), min(stop, from_ + count)
    return (begin, end - begin) if begin < end else (from_, 1)


@inlined
def _parts(count, most):
    return (count + most - 1) // most


@inlined
def _is_last(job, outer, plane, row, col):
    """Return whether the pixels that are summed at once from one on are the chunk's last."""
    last = plane + job.mplanes >= job.planes and row + job.mrows >= job.rows and col + job.mcols >= job.cols
    return last and outer + 1 == job.outer


@cache
def sums(lanes: int, bits: int) -> Any:
    """Return the compiled sums: ``run(job, start, stop, worker)`` does a range of units.

    A unit is a block of output channels and some blocks of inputs, and a slice of what is summed.
    """
    accumulated = computed(bits)
    size = size_of(bits)
    vector = lanes * size_of(accumulated)
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        pieces = job.outer * _parts(job.planes, job.mplanes) * _parts(job.rows, job.mrows) * _parts(job.cols, job.mcols)
        for unit in range(start, stop):
            share, rest = unit % job.slices, unit // job.slices
            k, rest = rest % job.kblocks, rest // job.kblocks
            part, group = rest % job.csupers, rest // job.csupers
            first_piece, last_piece = share * pieces // job.slices, (share + 1) * pieces // job.slices
            is_last = k == job.kblocks - 1
            tile, wide = (job.tile1, job.tail) if is_last else (job.tile0, job.vectors)
            pixel = wide * vector
            tile_sums = job.span * pixel
            block_sums = job.ntiles * tile_sums
            room = _room(job, unit, worker)
            first_c, last_c = part * job.csuper, min((part + 1) * job.csuper, job.cblocks)
            panel = job.panel + (group * job.kblocks + k) * job.pblock
            slab = job.slab + (group * job.inputs * job.direct if job.direct else group * job.cblocks * job.sblock)
            first_k = k * job.vectors * lanes
            straight = job.straight and first_k + wide * lanes <= job.outputs
            rows_of_dw = job.dw + group * job.inputs * job.dwe + first_k * size
            add = job.add
            # Padding counts where it is multiplied by what is not finite.
            boxes = 0 if job.special else job.boxes
            piece = -1
            for o in range(job.outer):
                for p in range(0, job.planes, job.mplanes):
                    for r in range(0, job.rows, job.mrows):
                        for q in range(0, job.cols, job.mcols):
                            piece += 1
                            if not first_piece <= piece < last_piece:
                                continue
                            a = panel + (o * job.aimage + p * job.aplane + r * job.arow + q) * pixel
                            b = slab + o * job.bimage + p * job.bplane + r * job.brow + q * job.bcol
                            planes = min(job.mplanes, job.planes - p)
                            rows, columns = min(job.mrows, job.rows - r), min(job.mcols, job.cols - q)
                            ready = straight and _is_last(job, o, p, r, q)
                            for c in range(first_c, last_c):
                                from_ = b + (first_input(job, c) * job.direct if job.direct else c * job.sblock)
                                to = room + (c - first_c) * block_sums
                                for t in range(job.ntiles):
                                    row, height, col, width = r, rows, q, columns
                                    if boxes:
                                        row, height = _met(word(boxes, 4 * t), word(boxes, 4 * t + 1), r, rows)
                                        col, width = _met(word(boxes, 4 * t + 2), word(boxes, 4 * t + 3), q, columns)
                                    at = from_ + word(job.tiles, t) + (row - r) * job.brow + (col - q) * job.bcol
                                    there = to + t * tile_sums
                                    call(tile, (
                                        a + ((row - r) * job.arow + col - q) * pixel,
                                        job.arow * pixel, job.aplane * pixel,
                                        at, job.bcol, job.brow, job.bplane, job.bstep,
                                        width, height, planes, there * add,
                                        rows_of_dw + first_input(job, c) * job.dwe if ready else there,
                                        job.dwe if ready else pixel,
                                    ))  # fmt: skip
                            add = 1
            if add == 0:  # the chunk has less to sum than there are slices
                clear(room, job.unit_sums)
            if job.finish and job.slices == 1 and not straight:
                store_sums(lanes, accumulated, bits, vector, size, job, group, part, k, room)

    return run


@cache
def merging(lanes: int, bits: int) -> Any:
    """Return the compiled ``run(job, start, stop, worker)`` that adds up the slices of some units, and stores these."""
    accumulated = computed(bits)
    size, vector = size_of(bits), lanes * size_of(accumulated)
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            k, rest = unit % job.kblocks, unit // job.kblocks
            room = job.sums + unit * job.slices * job.unit_sums
            add_slices(lanes, accumulated, vector, job, room)
            store_sums(lanes, accumulated, bits, vector, size, job, rest // job.csupers, rest % job.csupers, k, room)

    return run
