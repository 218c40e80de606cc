"""Weights as the direct micro-kernel reads them: block of output channels, input channel, kernel position, lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint, function
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.job import job_type, task_type
from fastconv.backends.cpu.memory import word
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def _turn(typingctx, lanes, bits, source, stride, rows, count, target, offsets):
    """Transpose a square: ``count`` elements of ``rows`` rows, ``stride`` bytes apart, both at most ``lanes``.

    Element ``e`` of all rows becomes a vector, widened and zero beyond ``rows``, at ``target + offsets[e]``.
    """
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, stride, rows, count, target, offsets = args[2:]
        e = Emitter(builder, element, width)
        mask = e.first(count)

        def load(row: int) -> Any:
            there = builder.zext(builder.icmp_signed("<", I64(row), rows), I64)
            address = e.at(source, e.times(stride, row))
            return e.unless_zero(there, [e.zero], lambda _: [e.load_masked(address, mask)])[0]

        loaded = [load(row) for row in range(width)]
        for i, vector in enumerate(e.transpose(loaded)):
            with builder.if_then(builder.icmp_signed("<", I64(i), count)):
                e.wide.store(vector, e.at(target, e.load_integer(e.at(offsets, 8 * i))))
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 6), codegen


@cache
def pack_kernel(bits: int, lanes: int) -> Any:
    """Return the compiled packing for a weight's format and a vector's lanes; what is packed is widened.

    ``pack(w, stride, groups, outputs, terms, block, places, packed, offsets, tail_offsets)``: the weight at
    address ``w`` has a row of ``terms`` adjacent elements for each output channel, rows ``stride`` bytes apart. The
    channels of a group go into blocks of ``block`` lanes, the last smaller by whole vectors. ``offsets[e]`` says
    where in a block the first vector of element ``e`` goes; ``tail_offsets`` says so for the last. A block has room
    for ``places`` of them, at least ``terms``.
    """
    size = size_of(bits)
    vector = lanes * size_of(computed(bits))

    sources = fingerprint()

    @function(types.void(*(types.int64,) * 10))
    def pack(w, stride, groups, outputs, terms, block, places, packed, offsets, tail_offsets):
        if sources == 0:
            return
        target = packed
        for g in range(groups):
            for first in range(0, outputs, block):
                there = min(block, outputs - first)
                vectors = (there + lanes - 1) // lanes
                table = offsets if first + block < outputs else tail_offsets
                source = w + (g * outputs + first) * stride
                for v in range(vectors):
                    rows = min(lanes, there - v * lanes)
                    for e in range(0, terms, lanes):
                        _turn(
                            lanes,
                            bits,
                            source + v * lanes * stride + e * size,
                            stride,
                            rows,
                            min(lanes, terms - e),
                            target + v * vector,
                            table + 8 * e,
                        )
                target += places * vectors * vector

    return pack


_COLUMNS = ("w", "stride", "inputs", "outputs", "block", "packed", "offsets", "tail_offsets")
_COLUMNS_JOB = job_type(_COLUMNS)

# Input channels that are packed for every block in turn, before the next: their rows are then near.
_ROWS = 16


@intrinsic(prefer_literal=True)
def _copy_vector(typingctx, lanes, bits, source, count, target):
    """Copy ``count`` elements, widened, and fill the vector with zeros."""
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, count, target = args[2:]
        e = Emitter(builder, element, width)
        with builder.if_else(builder.icmp_signed(">=", count, I64(width)), likely=True) as (whole, part):
            with whole:
                e.wide.store(e.load(source), target)
            with part:
                e.wide.store(e.load_masked(source, e.first(count)), target)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 3), codegen


@cache
def _columns_kernel(bits: int, lanes: int) -> Any:
    size = size_of(bits)
    vector = lanes * size_of(computed(bits))
    sources = fingerprint()

    @callback(task_type(_COLUMNS_JOB))
    def pack(jobs, start, stop, worker):
        if sources == 0:
            return
        job = carray(jobs, 1)[0]
        for unit in range(start, stop):
            target = job.packed
            for first in range(0, job.outputs, job.block):
                there = min(job.block, job.outputs - first)
                vectors = (there + lanes - 1) // lanes
                table = job.offsets if first + job.block < job.outputs else job.tail_offsets
                for k in range(unit * _ROWS, min((unit + 1) * _ROWS, job.inputs)):
                    source = job.w + k * job.stride + first * size
                    at = target + word(table, k)
                    for v in range(vectors):
                        _copy_vector(lanes, bits, source + v * lanes * size, there - v * lanes, at + v * vector)
                target += job.inputs * vectors * vector

    return pack


def has_adjacent_outputs(w: Any, groups: int) -> bool:
    """Whether the output channels of a weight with one tap lie side by side, as in one that was transposed."""
    one_tap = math.prod(w.shape[2:]) == 1
    return bool(groups == 1 and one_tap and w.strides[0] == w.itemsize < w.strides[1] and w.flags.aligned)


def pack_columns(
    w: Any, format: int, lanes: int, block: int, packed: int, offsets: Sequence[int], workers: int
) -> None:
    """Pack a weight that `has_adjacent_outputs` as the kernel of `pack_kernel` does, by copying vectors.

    Parameters
    ----------
    w : array
        (output channels, input channels, one tap).
    format, lanes, block, packed : int
        As `pack_kernel` takes them.
    offsets : sequence of int
        Its two addresses of offsets, those of whole blocks and of the last.
    workers : int
        Threads that share the work.
    """
    outputs, inputs = w.shape[:2]
    job = np.array([address(w), w.strides[1], inputs, outputs, block, packed, *offsets], np.int64)
    kernel = _columns_kernel(format, lanes).address
    threads.run(kernel, address(job), -(-inputs // _ROWS), workers)
