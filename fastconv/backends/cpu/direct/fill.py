"""Filling slabs: what a band of output rows reads, with its padding, channels innermost.

A slab has the order (chunk of channels, depth, row, column, channel of the chunk). So what a tile reads lies
together whatever the input's order is, one cache line a pixel, and the columns of a kernel's row are one run.
Half formats are widened on the way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint, inlined
from fastconv.backends.cpu.direct.job import JOB, located
from fastconv.backends.cpu.elements import widen_one, widen_some
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import task_type
from fastconv.backends.cpu.memory import clear, copy, integer, record, word
from fastconv.backends.cpu.phases import UNREAD
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def turn(typingctx, lanes, bits, source, stride, channels, pixels, target, item, width):
    """Transpose ``pixels`` adjacent elements of ``channels`` lines, ``stride`` bytes apart; both at most ``lanes``.

    A pixel's channels go to ``target`` plus a multiple of ``item`` bytes, and zeros behind them up to ``width``.
    """
    known = literals(lanes, bits)
    if known is None:
        return None
    count, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, channels, pixels, target, item, width = args[2:]
        e = Emitter(builder, element, count)

        def load_some(channel: int, mask: Any) -> Any:
            there = builder.zext(builder.icmp_signed("<", I64(channel), channels), I64)
            address = e.at(source, e.times(stride, channel))
            return e.unless_zero(there, [e.zero], lambda _: [e.load_masked(address, mask)])[0]

        least = builder.select(builder.icmp_signed("<", channels, pixels), channels, pixels)
        with builder.if_else(builder.icmp_signed(">=", least, I64(count)), likely=True) as (whole, part):
            with whole:
                loaded = [e.load(e.at(source, e.times(stride, c))) for c in range(count)]
                for p, vector in enumerate(e.transpose(loaded)):
                    e.wide.store(vector, e.at(target, e.times(item, p)))
            with part:
                among, mask = e.first(pixels), e.first(width)
                loaded = [load_some(c, among) for c in range(count)]
                for p, vector in enumerate(e.transpose(loaded)):
                    with builder.if_then(builder.icmp_signed("<", I64(p), pixels)):
                        e.wide.store_masked(vector, e.at(target, e.times(item, p)), mask)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 7), codegen


@intrinsic(prefer_literal=True)
def _interleave(typingctx, channels, lanes, bits, source, stride, pixels, target):
    """Interleave ``pixels`` (at most ``lanes``) elements of a few lines: pixel by pixel, nothing between them."""
    known = literals(channels, lanes, bits)
    if known is None:
        return None
    few, count, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, pixels, target = args[3:]
        e = Emitter(builder, element, count)
        among = e.first(pixels)
        lines = [e.load_masked(e.at(source, e.times(stride, c)), among) for c in range(few)]
        for j in range(few):
            # Lane i is pixel (j * lanes + i) // few of channel (j * lanes + i) % few.
            where = [divmod(j * count + i, few) for i in range(count)]
            vector = e.shuffle(lines[0], lines[0], [pixel for pixel, _ in where])
            for c in range(1, few):
                lanes_of = [count + pixel if channel == c else i for i, (pixel, channel) in enumerate(where)]
                vector = e.shuffle(vector, lines[c], lanes_of)
            mask = e.first(builder.sub(builder.mul(pixels, I64(few)), I64(j * count)))
            e.wide.store_masked(vector, e.at(target, j * count * e.wide.bytes), mask)
        return context.get_dummy_value()

    return types.void(channels, lanes, bits, *(types.int64,) * 4), codegen


@inlined
def _pixel(job, bits, wide, target, source, channels):
    """Copy a pixel's chunk, element by element."""
    for c in range(channels):
        widen_one(bits, source + c * job.xc, target + c * wide)
    clear(target + channels * wide, job.item - channels * wide)


@inlined
def _border(job, bits, wide, table, start, stop, target, source, channels):
    """Fill columns of a line by the table: padding, and what padding repeats."""
    for w in range(start, stop):
        index = word(table, w)
        if index < 0:
            clear(target + w * job.item, job.item)
        else:
            _pixel(job, bits, wide, target + w * job.item, source + index * job.xw, channels)


@inlined
def _together(lanes, bits, size, wide, job, count, target, source, channels):
    """Copy ``count`` columns whose channels lie together."""
    if size == wide and channels * size == job.item and job.xw == job.item:
        copy(target, source, count * job.item)
        return
    for w in range(count):
        for c in range(0, channels, lanes):
            at, from_ = target + w * job.item + c * wide, source + w * job.xw + c * size
            widen_some(lanes, bits, from_, at, min(lanes, channels - c))
        clear(target + w * job.item + channels * wide, job.item - channels * wide)


@inlined
def _turned(lanes, bits, size, wide, job, count, target, source, channels):
    """Copy ``count`` columns that lie together."""
    items = job.item // wide
    for p in range(0, count, lanes):
        # The last block overlaps the one before: a whole block is several times as fast as a part.
        pixel = max(0, min(p, count - lanes))
        pixels = min(lanes, count - pixel)
        at, from_ = target + pixel * job.item, source + pixel * size
        if items == 1:
            _interleave(1, lanes, bits, from_, job.xc, pixels, at)
        elif items == 2 and channels == 2:
            _interleave(2, lanes, bits, from_, job.xc, pixels, at)
        elif items == 3 and channels == 3:
            _interleave(3, lanes, bits, from_, job.xc, pixels, at)
        elif items == 4 and channels == 4:
            _interleave(4, lanes, bits, from_, job.xc, pixels, at)
        else:
            for c in range(0, items, lanes):
                turn(
                    lanes, bits, from_ + c * job.xc, job.xc, min(lanes, channels - c), pixels,
                    at + c * wide, job.item, min(lanes, items - c),
                )  # fmt: skip


@cache
def fill_kernel(lanes: int, bits: int) -> Any:
    """Return the compiled ``fill(job, unit, -, worker)``: ``unit`` is a unit of work without its part."""
    size, wide = size_of(bits), size_of(computed(bits))
    sources = fingerprint()

    @callback(task_type(JOB))
    def fill(jobs, unit, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        image, group, depth, column, band = located(job, unit)
        row, table = min(band * job.band, job.oh - job.rows), job.table_w + 8 * column * job.step_w
        # Which columns of a line lie inside the input.
        first = min(max(job.first - column * job.step_w, 0), job.widths)
        last = min(max(job.last - column * job.step_w, 0), job.widths)
        x = job.x + image * job.xn + group * job.xg
        slab = job.slab + worker * job.slab_bytes
        depths = (min(job.deep, job.od - depth) - 1) * job.step_d + job.kernel_d
        heights = (min(job.band, job.oh - row) - 1) * job.step_h + job.kernel_h
        items = job.item // wide
        for chunk in range(job.chunks):
            channels = min(items, job.nc - chunk * items)
            for d in range(0, depths, job.plane_step):
                source_d = word(job.table_d, (depth * job.step_d + d))
                for h in range(heights):
                    source_h = word(job.table_h, (row * job.step_h + h))
                    if source_d == UNREAD or source_h == UNREAD:
                        continue
                    target = slab + chunk * job.lc + d * job.ld + h * job.lh
                    if source_d < 0 or source_h < 0:
                        clear(target, job.lh)
                        continue
                    source = x + chunk * items * job.xc + source_d * job.xd + source_h * job.xh
                    _border(job, bits, wide, table, 0, first, target, source, channels)
                    _border(job, bits, wide, table, last, job.widths, target, source, channels)
                    if first == last:
                        continue
                    inner = target + first * job.item
                    from_ = source + integer(table + 8 * first) * job.xw
                    if job.xc == size and job.nc > 1:
                        _together(lanes, bits, size, wide, job, last - first, inner, from_, channels)
                    elif job.xw == size:
                        _turned(lanes, bits, size, wide, job, last - first, inner, from_, channels)
                    else:
                        _border(job, bits, wide, table, first, last, target, source, channels)

    return fill
