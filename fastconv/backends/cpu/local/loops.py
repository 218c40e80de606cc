"""The loops of a locally connected layer: position by position, with the windows of the batch put together."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.elements import get, put, widen_one, widen_some
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.local.job import JOB
from fastconv.backends.cpu.local.tile import add_piece, copy_piece, finish, multiply, multiply_back, outer_product
from fastconv.backends.cpu.local.work import PIECE
from fastconv.backends.cpu.memory import clear, integer, record, word

TASK = task_type(JOB)


@inlined
def _border(job, format, wide, start, stop, target, source):
    """Fill columns of a line by the table: padding, and what padding repeats."""
    for w in range(start, stop):
        index = word(job.table_w, w)
        if index < 0:
            clear(target + w * wide, wide)
        else:
            widen_one(format, source + index * job.xw, target + w * wide)


@inlined
def _fill(job, lanes, format, size, wide, slab, x, images, channels, row):
    """Copy the lines that a row of outputs reads, with their padding, into a slab: image, channel, kernel row."""
    target = slab
    for image in range(images):
        for channel in range(channels):
            for r in range(job.kernel_h):
                h = word(job.table_h, (row * job.step_h + r * job.dilation_h))
                if h < 0:
                    clear(target, job.line)
                    target += job.line
                    continue
                source = x + image * job.xn + channel * job.xc + h * job.xh
                if job.xw == size:
                    _border(job, format, wide, 0, job.first, target, source)
                    inner = source + (integer(job.table_w + 8 * job.first) - job.first) * size
                    for w in range(job.first, job.stop, lanes):
                        widen_some(lanes, format, inner + w * size, target + w * wide, min(lanes, job.stop - w))
                    _border(job, format, wide, job.stop, job.widths, target, source)
                else:
                    _border(job, format, wide, 0, job.widths, target, source)
                target += job.line


@inlined
def _windows(job, accumulated, wide, slab, patches, images, channels, column):
    """Put the windows of a column of outputs together, a whole vector of zeros behind them."""
    lines = channels * job.kernel_h
    for image in range(images):
        source = slab + image * lines * job.line + column * job.step_w * wide
        target = patches + image * job.patch
        for _ in range(lines):
            if job.dilation_w == 1:
                # What is too much of a piece is written over by the next.
                for s in range(0, job.kernel_w, PIECE):
                    copy_piece(PIECE, accumulated, source + s * wide, target + s * wide)
            else:
                for s in range(job.kernel_w):
                    widen_one(accumulated, source + s * job.dilation_w * wide, target + s * wide)
            source += job.line
            target += job.kernel_w * wide
        clear(target, patches + (image + 1) * job.patch - target)


@inlined
def _spread(job, accumulated, wide, slab, patches, images, channels, row, column):
    """Add windows to the lines that they are of."""
    for image in range(images):
        source = patches + image * job.patch
        for channel in range(channels):
            top = slab + ((image * channels + channel) * job.heights + row * job.step_h) * job.line
            for r in range(job.kernel_h):
                target = top + r * job.dilation_h * job.line + column * job.step_w * wide
                if job.dilation_w == 1:
                    for s in range(0, job.kernel_w, PIECE):
                        count = min(PIECE, job.kernel_w - s)
                        add_piece(PIECE, accumulated, source + s * wide, target + s * wide, count)
                else:
                    for s in range(job.kernel_w):
                        at = target + s * job.dilation_w * wide
                        put(accumulated, at, get(accumulated, at) + get(accumulated, source + s * wide))
                source += job.kernel_w * wide


@inlined
def _gradients(job, format, wide, matrix, y, images, start, stop):
    """Copy the output gradients of some columns of a row: column, image, output channel."""
    for image in range(images):
        for k in range(job.oc):
            source = y + image * job.yn + k * job.yk
            target = matrix + (image * job.oc + k) * wide
            for q in range(start, stop):
                widen_one(format, source + q * job.yw, target)
                target += images * job.oc * wide


@cache
def forward(rows: int, images_: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled forward pass, which does a range of (group, output row, part of it)."""
    accumulated = computed(format)
    size, wide = size_of(format), size_of(accumulated)
    sources = fingerprint()

    @callback(TASK)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        scratch = job.scratch + worker * job.scratch_bytes
        slab, patches = scratch + job.slab, scratch + job.patches
        matrix, sums = scratch + job.matrix, scratch + job.sums
        terms = job.channels * job.kernel_h * job.kernel_w
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            row, group = rest % job.oh, rest // job.oh
            left, right = part * job.ow // job.parts, (part + 1) * job.ow // job.parts
            # The matrix of results: image, and what lies together in y last.
            step_k = wide if job.last else (right - left) * wide
            step_q = job.oc * wide if job.last else wide
            for first in range(0, job.images, job.iblock):
                images = min(job.iblock, job.images - first)
                x = job.x + first * job.xn + group * job.channels * job.xc
                _fill(job, lanes, format, size, wide, slab, x, images, job.channels, row)
                for q in range(left, right):
                    _windows(job, accumulated, wide, slab, patches, images, job.channels, q)
                    w = job.w + (row * job.ow + q) * job.wposition + group * job.oc * job.wrow
                    for k_ in range(0, job.oc, rows):
                        # The last tile overlaps the one before: what is computed twice comes out the same.
                        k = min(k_, job.oc - rows)
                        for j_ in range(0, images, images_):
                            j = min(j_, images - images_)
                            multiply(
                                rows, images_, lanes, format, fused,
                                w + k * job.wrow, job.wrow, patches + j * job.patch, job.patch,
                                terms // lanes, terms % lanes, sums,
                            )  # fmt: skip
                            for a in range(rows):
                                channel = group * job.oc + k + a
                                to = matrix + (k + a) * step_k + (q - left) * step_q
                                bias = job.bias + channel * job.bk + row * job.bh + q * job.bq
                                for b in range(images_):
                                    value = get(accumulated, sums + (b * rows + a) * wide)
                                    if job.bias:
                                        value += get(format, bias)
                                    put(accumulated, to + (j + b) * job.oc * (right - left) * wide, value)
                y = first * job.yn + group * job.oc * job.yk + row * job.yh + left * job.yw
                outer, inner = (right - left, job.oc) if job.last else (job.oc, right - left)
                step = job.yw if job.last else job.yk
                for image in range(images):
                    for line in range(outer):
                        for i in range(0, inner, lanes):
                            at = y + image * job.yn + line * step + i * size
                            residual = job.residual + at if job.residual else 0
                            source = matrix + ((image * outer + line) * inner + i) * wide
                            finish(
                                lanes, format, source, min(lanes, inner - i), job.y + at, 0, residual, job.activation
                            )

    return run


@cache
def input_gradient(rows: int, tail: int, images_: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled gradient of the input, which does a range of (group, block of channels, block of images)."""
    accumulated = computed(format)
    size, wide = size_of(format), size_of(accumulated)
    sources = fingerprint()

    @callback(TASK)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        scratch = job.scratch + worker * job.scratch_bytes
        slab, patches, matrix = scratch + job.slab, scratch + job.patches, scratch + job.matrix
        for unit in range(start, stop):
            first, rest = unit % job.iblocks * job.iblock, unit // job.iblocks
            images = min(job.iblock, job.images - first)
            channel, group = rest % job.cblocks * job.cblock, rest // job.cblocks
            channels = min(job.cblock, job.channels - channel)
            terms = channels * job.kernel_h * job.kernel_w
            clear(slab, images * channels * job.heights * job.line)
            for row in range(job.oh):
                y = job.y + first * job.yn + group * job.oc * job.yk + row * job.yh
                _gradients(job, format, wide, matrix, y, images, 0, job.ow)
                for q in range(job.ow):
                    w = job.w + (row * job.ow + q) * job.wposition + group * job.oc * job.wrow
                    w += channel * job.kernel_h * job.kernel_w * size
                    dy = matrix + q * images * job.oc * wide
                    for j_ in range(0, images, images_):
                        # The last tile overlaps the one before: what is computed twice comes out the same.
                        j = min(j_, images - images_)
                        for k in range(0, job.oc, rows):
                            at, to = dy + (j * job.oc + k) * wide, patches + j * job.patch
                            if k + rows <= job.oc:
                                multiply_back(
                                    rows, images_, lanes, format, fused, w + k * job.wrow, job.wrow,
                                    at, job.oc * wide, to, job.patch, terms // lanes, terms % lanes, k,
                                )  # fmt: skip
                            else:
                                multiply_back(
                                    tail, images_, lanes, format, fused, w + k * job.wrow, job.wrow,
                                    at, job.oc * wide, to, job.patch, terms // lanes, terms % lanes, k,
                                )  # fmt: skip
                    _spread(job, accumulated, wide, slab, patches, images, channels, row, q)
            x = job.x + first * job.xn + (group * job.channels + channel) * job.xc
            for plane in range(images * channels):
                for h in range(job.size_h):
                    source = slab + (plane * job.heights + job.top + h) * job.line + job.left * wide
                    target = x + plane // channels * job.xn + plane % channels * job.xc + h * job.xh
                    if job.xw == size:
                        for i in range(0, job.size_w, lanes):
                            at, there = target + i * size, min(lanes, job.size_w - i)
                            finish(lanes, format, source + i * wide, there, at, 0, 0, 0)
                    else:
                        for i in range(job.size_w):
                            put(format, target + i * job.xw, get(accumulated, source + i * wide))

    return run


@cache
def weight_gradient(rows: int, vectors: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled gradient of the weight, which does a range of (group, channels, output row, part of it)."""
    accumulated = computed(format)
    size, wide = size_of(format), size_of(accumulated)
    sources = fingerprint()

    @callback(TASK)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        scratch = job.scratch + worker * job.scratch_bytes
        slab, patches, matrix = scratch + job.slab, scratch + job.patches, scratch + job.matrix
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            row, rest = rest % job.oh, rest // job.oh
            channel, group = rest % job.cblocks * job.cblock, rest // job.cblocks
            channels = min(job.cblock, job.channels - channel)
            terms = channels * job.kernel_h * job.kernel_w
            left, right = part * job.ow // job.parts, (part + 1) * job.ow // job.parts
            x = job.x + (group * job.channels + channel) * job.xc
            _fill(job, lanes, format, size, wide, slab, x, job.images, channels, row)
            y = job.y + group * job.oc * job.yk + row * job.yh
            _gradients(job, format, wide, matrix, y, job.images, left, right)
            for q in range(left, right):
                _windows(job, accumulated, wide, slab, patches, job.images, channels, q)
                w = job.w + (row * job.ow + q) * job.wposition + group * job.oc * job.wrow
                w += channel * job.kernel_h * job.kernel_w * size
                dy = matrix + (q - left) * job.images * job.oc * wide
                for k_ in range(0, job.oc, rows):
                    # The last tile overlaps the one before: what is computed twice comes out the same.
                    k = min(k_, job.oc - rows)
                    for t_ in range(0, terms, vectors * lanes):
                        t = max(0, min(t_, terms - vectors * lanes))
                        outer_product(
                            rows, vectors, lanes, format, fused, dy + k * wide, job.oc * wide,
                            patches + t * wide, job.patch, job.images, w + k * job.wrow + t * size, job.wrow, terms - t,
                        )  # fmt: skip

    return run
