"""The loops of a locally connected layer whose lanes are images: windows are read where they are, in a slab."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.direct.fill import turn
from fastconv.backends.cpu.elements import get, put, widen_one
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.local.batch_tile import finish_turned, multiply_back_batch, multiply_batch
from fastconv.backends.cpu.local.loops import TASK
from fastconv.backends.cpu.memory import clear, integer, record, word


@inlined
def _column(format, wide, pixel, source, next_image, images, target):
    """Bring an element of every image into a vector of them."""
    clear(target, pixel)
    for i in range(images):
        widen_one(format, source + i * next_image, target + i * wide)


@inlined
def turn_columns(lanes, format, size, wide, pixel, source, next_image, next_column, images, count, target, step):
    """Bring ``count`` elements of every image into vectors of images, ``step`` bytes apart."""
    if next_column != size:
        for q in range(count):
            _column(format, wide, pixel, source + q * next_column, next_image, images, target + q * step)
        return
    for first in range(0, pixel // wide, lanes):
        there = max(0, min(lanes, images - first))
        for q in range(0, count, lanes):
            turn(
                lanes, format, source + first * next_image + q * size, next_image, there, min(lanes, count - q),
                target + first * wide + q * step, step, lanes,
            )  # fmt: skip


@inlined
def _fill(job, lanes, format, size, wide, slab, x, images, row):
    """Bring the lines that a row of outputs reads, with their padding, into a slab: channel, kernel row, column."""
    target = slab
    for channel in range(job.channels):
        for r in range(job.kernel_h):
            h = word(job.table_h, (row * job.step_h + r * job.dilation_h))
            if h < 0:
                clear(target, job.line)
                target += job.line
                continue
            source = x + channel * job.xc + h * job.xh
            for w in range(job.widths):
                if job.first <= w < job.stop:
                    continue
                index, to = word(job.table_w, w), target + w * job.pixel
                if index < 0:
                    clear(to, job.pixel)
                else:
                    _column(format, wide, job.pixel, source + index * job.xw, job.xn, images, to)
            if job.first < job.stop:
                inner = source + integer(job.table_w + 8 * job.first) * job.xw
                turn_columns(
                    lanes, format, size, wide, job.pixel, inner, job.xn, job.xw, images, job.stop - job.first,
                    target + job.first * job.pixel, job.pixel,
                )  # fmt: skip
            target += job.line


@inlined
def store_lines(lanes, format, wide, source, step, count, images, y, next_image, residual, activation, size):
    """Store ``count`` vectors of images as lines of adjacent elements."""
    for first in range(0, images, lanes):
        for i in range(0, count, lanes):
            at = first * next_image + i * size
            finish_turned(
                lanes, format, source + i * step + first * wide, step, min(lanes, count - i),
                min(lanes, images - first), y + at, next_image, residual + at if residual else 0, activation,
            )  # fmt: skip


@cache
def forward_batch(rows: int, vectors: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled forward pass, which does a range of (group, output row, part of it)."""
    size, wide = size_of(format), size_of(computed(format))
    sources = fingerprint()

    @callback(TASK)
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        scratch = job.scratch + worker * job.scratch_bytes
        slab, matrix = scratch + job.slab, scratch + job.matrix
        for unit in range(start, stop):
            part, rest = unit % job.parts, unit // job.parts
            row, group = rest % job.oh, rest // job.oh
            left, right = part * job.ow // job.parts, (part + 1) * job.ow // job.parts
            line = (right - left) * job.pixel  # of the results of an output channel
            for first in range(0, job.images, job.iblock):
                images = min(job.iblock, job.images - first)
                x = job.x + first * job.xn + group * job.channels * job.xc
                _fill(job, lanes, format, size, wide, slab, x, images, row)
                for q in range(left, right):
                    w = job.w + (row * job.ow + q) * job.wposition + group * job.oc * job.wrow
                    bias = job.bias + group * job.oc * job.bk + row * job.bh + q * job.bq
                    for k_ in range(0, job.oc, rows):
                        # The last tile overlaps the one before: what is computed twice comes out the same.
                        k = min(k_, job.oc - rows)
                        multiply_batch(
                            rows, vectors, lanes, format, fused, w + k * job.wrow, job.wrow, size,
                            slab + q * job.step_w * job.pixel, job.line, job.channels * job.kernel_h,
                            job.dilation_w * job.pixel, job.kernel_w, bias + k * job.bk if job.bias else 0, job.bk,
                            matrix + k * line + (q - left) * job.pixel, line,
                        )  # fmt: skip
                y = first * job.yn + group * job.oc * job.yk + row * job.yh + left * job.yw
                outer, inner = (right - left, job.oc) if job.last else (job.oc, right - left)
                next_outer, next_inner = (job.pixel, line) if job.last else (line, job.pixel)
                for i in range(outer):
                    at = y + i * (job.yw if job.last else job.yk)
                    residual = job.residual + at if job.residual else 0
                    store_lines(
                        lanes, format, wide, matrix + i * next_outer, next_inner, inner, images,
                        job.y + at, job.yn, residual, job.activation, size,
                    )  # fmt: skip

    return run


@cache
def input_gradient_batch(terms: int, tail: int, vectors: int, lanes: int, format: int, fused: int) -> Any:
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
        slab, matrix = scratch + job.slab, scratch + job.matrix
        column = job.oc * job.pixel
        for unit in range(start, stop):
            first, rest = unit % job.iblocks * job.iblock, unit // job.iblocks
            images = min(job.iblock, job.images - first)
            channel, group = rest % job.cblocks * job.cblock, rest // job.cblocks
            channels = min(job.cblock, job.channels - channel)
            count = channels * job.kernel_h * job.kernel_w
            clear(slab, channels * job.heights * job.line)
            for row in range(job.oh):
                for k in range(job.oc):
                    y = job.y + first * job.yn + (group * job.oc + k) * job.yk + row * job.yh
                    turn_columns(
                        lanes, format, size, wide, job.pixel, y, job.yn, job.yw, images, job.ow,
                        matrix + k * job.pixel, column,
                    )  # fmt: skip
                for q in range(job.ow):
                    w = job.w + (row * job.ow + q) * job.wposition + group * job.oc * job.wrow
                    w += channel * job.kernel_h * job.kernel_w * size
                    dx = slab + row * job.step_h * job.line + q * job.step_w * job.pixel
                    for t in range(0, count, terms):
                        offsets = job.offsets + 8 * t
                        if t + terms <= count:
                            multiply_back_batch(
                                terms, vectors, lanes, format, fused,
                                w + t * size, job.wrow, job.oc, matrix + q * column, dx, offsets,
                            )  # fmt: skip
                        elif t + tail == count:
                            multiply_back_batch(
                                tail, vectors, lanes, format, fused,
                                w + t * size, job.wrow, job.oc, matrix + q * column, dx, offsets,
                            )  # fmt: skip
                        else:  # the last block of channels is smaller
                            for i in range(count - t):
                                multiply_back_batch(
                                    1, vectors, lanes, format, fused,
                                    w + (t + i) * size, job.wrow, job.oc, matrix + q * column, dx, offsets + 8 * i,
                                )  # fmt: skip
            x = job.x + first * job.xn + (group * job.channels + channel) * job.xc
            for c in range(channels):
                for h in range(job.size_h):
                    source = slab + (c * job.heights + job.top + h) * job.line + job.left * job.pixel
                    target = x + c * job.xc + h * job.xh
                    if job.xw == size:
                        store_lines(
                            lanes, format, wide, source, job.pixel, job.size_w, images,
                            target, job.xn, 0, 0, size,
                        )  # fmt: skip
                        continue
                    for i in range(job.size_w):
                        for image in range(images):
                            value = get(accumulated, source + i * job.pixel + image * wide)
                            put(format, target + image * job.xn + i * job.xw, value)

    return run
