"""The loops of a 1x1 convolution: panels of a band of pixels are made once, then every block of the weight meets them.

One function is compiled for all problems: tiles and copying are called by address.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.job import HEAD, fields_of, job_type, task_type
from fastconv.backends.cpu.memory import clear, move, record
from fastconv.backends.cpu.pointwise.work import TABLE_BYTES
from fastconv.backends.cpu.simd import I64

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn xg xc xd xh xw         | the input and its strides: image, group, channel, output depth, row, column
    y yn yk yp ystep            | the output and its strides: image, channel, pixel, what a tile steps by
    w wgroup wblock wrow        | the weight, a group of it, a block of output channels, a channel if they lie apart
    chunk                       | input channels that are multiplied before the next
    wcopy wcopies               | what copies blocks before they are read, 0 for nothing, and how many at once
    block_at block_bytes        | where in a worker's memory, and a block there
    wstep0 wstep1               | a step of an input channel in a block, in the last block
    wahead                      | such a step in what is prefetched
    blocks width                | blocks of a group, output channels of a block
    nc oc oh ow pixels          | input and output channels of a group, rows and columns and pixels of the output
    tiles total full cut unit   | tiles of an image and in all, how many are of full size, this size, pixels of its unit
    bands band parts            | a unit of work: group, band of tiles, part of the blocks
    slab slab_bytes panel       | where the workers' panels begin, how far workers' and panels are apart
    layout last                 | how pixels lie: one of `FLAT`, `ROWS`, `TABLE`; the last place in a tile's table
    run                         | pixels of a row copied at once, at most
    copy0 copy1 step0 step1     | what makes a panel, and a panel's step of a channel: of full size, one smaller
    tile00 tile01 tile10 tile11 | the tiles: of full size or one smaller, by a whole block or the last
    keep0 keep1                 | tiles that make the panel on the way
    rows                        | whether the output channels are rows
    left lefts                  | pixels of an image that fill no vector and are done on their own, how many at once
    left_at left_bytes          | their channels in a worker's memory, and how far pixels are apart there
    remainder0 remainder1       | what computes them, for a whole block or the last
    item stored                 | bytes of an element as it is computed, and in the arrays
    streams                     | whether the weight comes from beyond the cache for every band
    bias residual activation    | addresses, 0 for none; the residual lies like y
"""
FIELDS = fields_of(_FIELDS, HEAD)
JOB = job_type(FIELDS)

# How far ahead a weight that streams past is prefetched: a page and more, at whose end processors stop foreseeing.
_DISTANCE = 8192

# How the pixels of an image lie: all side by side; some in each row; channels are side by side.
FLAT, ROWS, TABLE = range(3)


@intrinsic
def _put(typingctx, address, value):
    """Write a 64-bit integer to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@inlined
def _first(job, tile):
    """Return the first pixel of a tile, which may be the one after the last."""
    return (tile * job.cut - max(0, tile - job.full)) * job.unit


@inlined
def _pixel(job, pixel):
    """Return where a pixel is in an image of the input."""
    row = pixel // job.ow
    return row // job.oh * job.xd + row % job.oh * job.xh + pixel % job.ow * job.xw


@inlined
def _source(job, group, index):
    """Return where the pixels of a tile begin."""
    return job.x + index // job.tiles * job.xn + group * job.xg + _pixel(job, _first(job, index % job.tiles))


@inlined
def _in_place(job, index):
    """Whether a tile can read its pixels where they are: whole vectors of them, stored as they are computed."""
    return (
        job.item == job.stored
        and job.layout == FLAT
        and (job.rows == 0 or _first(job, index % job.tiles + 1) <= job.pixels)
    )


@inlined
def _make_panel(job, group, index, target, table):
    """Copy what a tile reads."""
    tile = index % job.tiles
    copy, step = (job.copy0, job.step0) if tile < job.full else (job.copy1, job.step1)
    first, stop = _first(job, tile), min(_first(job, tile + 1), job.pixels)
    if job.layout == FLAT:
        call(copy, (_source(job, group, index), job.xc, job.nc, target, step, stop - first))
        return
    image = job.x + index // job.tiles * job.xn + group * job.xg
    if job.layout == TABLE:
        # Divisions would cost as much as the copying.
        evenly = job.oh == 1 and job.ow == job.pixels
        for i in range(job.last + 1):
            pixel = min(first + i, stop - 1)
            _put(table + 8 * i, image + (pixel * job.xw if evenly else _pixel(job, pixel)))
        call(copy, (table, 0, job.nc, target, step, stop - first))
        return
    if stop - first < job.cut * job.unit:
        clear(target, job.panel)  # lanes that do not exist
    while first < stop:
        pixels = min(stop - first, job.ow - first % job.ow, job.run)
        call(copy, (image + _pixel(job, first), job.xc, job.nc, target, step, pixels))
        target += pixels * job.item
        first += pixels


@inlined
def _gather(job, group, image, target):
    """Copy the channels of the pixels of an image that are done on their own."""
    first = job.pixels - job.left
    for j in range(job.left):
        source = job.x + image * job.xn + group * job.xg + _pixel(job, first + j)
        for c in range(job.nc):
            move(target + j * job.left_bytes + c * job.item, source + c * job.xc, job.item)


@inlined
def _remain(job, function, w, wstep, panel, depth, at, bias, residual, activation):
    """Compute a block of output channels, which begins ``at`` in the output, of the pixels done on their own."""
    for j in range(0, job.left, job.lefts):
        place = at + (job.pixels - job.left + j) * job.yp
        call(function, (
            w, job.wrow, wstep, panel + j * job.left_bytes, job.left_bytes, depth, job.y + place, job.ystep,
            bias, residual + place if residual else 0, activation,
        ))  # fmt: skip


@inlined
def _make(job, group, begin, end, panels, lefts, table):
    """Copy what the tiles of a band read that cannot be read where it is."""
    for index in range(begin, end):
        if not _in_place(job, index):
            _make_panel(job, group, index, panels + (index - begin) * job.panel, table)
    if job.left:
        for image in range(begin // job.tiles, end // job.tiles):
            _gather(job, group, image, lefts + (image - begin // job.tiles) * job.left * job.left_bytes)


@inlined
def _ahead(job, group, block, begin, index, end, w, following):
    """Return where to prefetch from during a tile, and by which step: what will be read next and is far away.

    ``w`` and ``following`` are the addresses of this and the next part of the weight, which may be 0.
    """
    if job.streams and index == begin and following and (end > begin + 1 or job.wcopy):
        return following, job.wahead
    later = index + job.band
    if block < 2 and later < job.total:
        if job.layout == TABLE:
            return _source(job, group, later) + block * job.nc * 64, 128
        return _source(job, group, later) + block * 128, job.xc
    # The weight itself, of which no later tile of the band will find the next piece near.
    return w + _DISTANCE, job.wahead if job.streams and end == begin + 1 and job.wcopy == 0 else 0


@cache
def loops() -> Any:
    """Return the compiled loops: ``run(job, start, stop, worker)`` does a range of units."""
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        table = job.slab + worker * job.slab_bytes
        panels, lefts = table + TABLE_BYTES, table + job.left_at
        made = kept = -1
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            group = rest // job.bands
            begin = rest % job.bands * job.band
            end = min(begin + job.band, job.total)
            if rest != made:
                _make(job, group, begin, end, panels, lefts, table)
                made = rest
            first_block, stop_block = part * job.blocks // job.parts, (part + 1) * job.blocks // job.parts
            is_single = stop_block - first_block == 1
            # A chunk of input channels is added to what those before left in the output.
            for c in range(0, job.nc, job.chunk):
                depth = min(job.chunk, job.nc - c)
                residual = job.y if c else job.residual
                activation = job.activation if c + depth == job.nc else 0
                for block in range(first_block, stop_block):
                    k = block * job.width
                    channel = group * job.oc + k
                    bias = job.bias + channel * job.stored if job.bias and c == 0 else 0
                    is_last = block == job.blocks - 1
                    wstep = job.wstep1 if is_last else job.wstep0
                    weights = job.w + group * job.wgroup + c * job.wrow
                    w = weights + block * job.wblock
                    following = w + job.wblock if block + 1 < stop_block else 0
                    if job.wcopy:
                        if following == 0 and c + depth < job.nc:
                            following = weights + first_block * job.wblock + job.chunk * job.wrow
                        number = (block - first_block) % job.wcopies
                        if number == 0:
                            call(job.wcopy, (w, job.wrow, depth, table + job.block_at, job.block_bytes, job.oc - k))
                        w = table + job.block_at + number * job.block_bytes
                    # The first block reads the pixels where they are, and makes the panel for the others.
                    reads = is_single or (block == first_block and rest != kept)
                    for index in range(begin, end):
                        tile = index % job.tiles
                        pixel = _first(job, tile)
                        panel = panels + (index - begin) * job.panel
                        function, step = job.tile11 if is_last else job.tile10, job.step1
                        if tile < job.full:
                            function, step = job.tile01 if is_last else job.tile00, job.step0
                        panel += c * step
                        source = panel
                        if reads and _in_place(job, index):
                            source, step = _source(job, group, index) + c * job.xc, job.xc
                            if not is_single:
                                function = job.keep0 if tile < job.full else job.keep1
                        image = index // job.tiles
                        start_of_image = image * job.yn + channel * job.yk
                        at = start_of_image + pixel * job.yp
                        ahead, ahead_step = _ahead(job, group, block, begin, index, end, w, following)
                        added = residual + at if residual else 0
                        if job.rows:
                            call(function, (
                                w, job.wrow, wstep, source, step, depth, job.y + at, job.ystep, job.pixels - pixel,
                                bias, added, activation, ahead, ahead_step, panel,
                            ))  # fmt: skip
                        else:
                            call(function, (
                                source, 0, step, w, wstep, depth, job.y + at, job.ystep, job.oc - k,
                                bias, added, activation, ahead, ahead_step, panel,
                            ))  # fmt: skip
                        if job.left and tile == job.tiles - 1:
                            panel = lefts + (image - begin // job.tiles) * job.left * job.left_bytes + c * job.item
                            function = job.remainder1 if is_last else job.remainder0
                            _remain(job, function, w, wstep, panel, depth, start_of_image, bias, residual, activation)
            if not is_single:
                kept = rest

    return run
