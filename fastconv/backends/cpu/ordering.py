"""Weights that came in another memory order (OHWI, HWIO, ...), in that in which kernels read them.

Of two memory orders either the elements that are neighbours are the same, and runs of them are copied, or squares are
transposed in registers. Both go through the source in its order, a few rows side by side.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.formats import computed, format_named, size_of
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.scratch import address, contiguous
from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.problem import Sizes

FIELDS = fields_of(
    """
    source target                   | addresses
    columns rows others             | lengths: of the axis that is neighbours in the source, of that in the target (1
                                    | if they are the same), and of a third
    row_step other_step             | in the source, in bytes
    column_apart row_apart          | in the target
    other_apart
    run                             | elements copied together: columns if neighbours are the same in both, else 0
    column_chunk other_chunk        | of a unit of work
    chunks                          | of columns, which come one after the other
    """
)
JOB = job_type(FIELDS)
_SOURCE, _TARGET = map(FIELDS.index, ("source", "target"))

# Elements below which NumPy's copy takes no longer.
_FEW = 12 << 10

# Bytes above which memory is not kept for the next call, and those for which one more thread is worth its start.
_MOST_KEPT, _SHARED = 16 << 20, 128 << 10

# Of the axis that is shared out, elements of a unit, or vectors of them: so that threads seldom meet in a line.
_TOGETHER = 4


@intrinsic(prefer_literal=True)
def transpose_square(typingctx, lanes, bits, source, stride, rows, columns, target, step):
    """Transpose ``rows`` rows, ``stride`` bytes apart, of ``columns`` elements, both at most ``lanes``."""
    shape = literals(lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, element = shape
        source, stride, rows, columns, target, step = args[2:]
        e = Emitter(builder, element, width)
        mask = e.first(columns)

        def load(row: int) -> Any:
            # A row that does not exist reads the last one's place.
            there = builder.icmp_signed("<", I64(row), rows)
            index = builder.select(there, I64(row), builder.sub(rows, I64(1)))
            return e.load_masked(e.at(source, builder.mul(stride, index)), mask)

        loaded = [load(row) for row in range(width)]
        mask_out = e.first(rows)
        for i, vector in enumerate(e.transpose(loaded)):
            with builder.if_then(builder.icmp_signed("<", I64(i), columns), likely=True):
                e.store_masked(vector, e.at(target, e.times(step, i)), mask_out)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 6), codegen


@intrinsic(prefer_literal=True)
def _copy_part(typingctx, lanes, bits, source, count, target):
    """Copy at most ``lanes`` elements."""
    shape = literals(lanes, bits)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, element = shape
        source, count, target = args[2:]
        e = Emitter(builder, element, width)
        mask = e.first(count)
        e.store_masked(e.load_masked(source, mask), target, mask)
        return context.get_dummy_value()

    return types.void(lanes, bits, *(types.int64,) * 3), codegen


@cache
def _kernel(bits: int, lanes: int) -> Any:
    size = size_of(bits)
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            left = unit % job.chunks * job.column_chunk
            right = min(left + job.column_chunk, job.columns)
            first = unit // job.chunks * job.other_chunk
            for other in range(first, min(first + job.other_chunk, job.others)):
                source, target = job.source + other * job.other_step, job.target + other * job.other_apart
                if job.run:
                    for row in range(left, right):
                        at, to = source + row * job.row_step, target + row * job.row_apart
                        for i in range(0, job.run, lanes):
                            _copy_part(lanes, bits, at + i * size, min(lanes, job.run - i), to + i * size)
                    continue
                for row in range(0, job.rows, lanes):
                    for column in range(left, right, lanes):
                        transpose_square(
                            lanes, bits, source + row * job.row_step + column * size, job.row_step,
                            min(lanes, job.rows - row), min(lanes, right - column),
                            target + column * job.column_apart + row * size, job.column_apart,
                        )  # fmt: skip

    return run


class _Axis(NamedTuple):
    """An axis of an array, or several whose elements lie alike: its length, its steps in the source and the target."""

    length: int
    step: int
    apart: int


def _axes(shape: Sizes, strides: Sizes, size: int) -> list[_Axis]:
    """Return the axes of an array that is to lie in C order, as few as there can be."""
    found: list[_Axis] = []
    apart = size
    for length, step in zip(reversed(shape), reversed(strides), strict=True):
        if length == 1:
            continue
        if found and step == found[-1].step * found[-1].length:
            found[-1] = found[-1]._replace(length=found[-1].length * length)
        else:
            found.append(_Axis(length, step, apart))
        apart *= length
    return found


@lru_cache(maxsize=256)
def _plan(shape: Sizes, strides: Sizes, dtype: str) -> tuple[int, Any, int] | None:
    """Return the address of the kernel, its record, and the units of work; None if the array lies in no such way."""
    bits = format_named(dtype)
    size, lanes = size_of(bits), simd().lanes(size_of(computed(bits)))
    axes = _axes(shape, strides, size)
    near = next((axis for axis in axes if axis.step == size), None)
    if near is None or len(axes) > 3:
        return None
    last, one = axes[0], _Axis(1, 0, 0)
    others = sorted((axis for axis in axes if axis not in (near, last)), key=lambda axis: abs(axis.step))
    f: dict[str, int]
    if near is last:
        # Of the other two, those that lie nearer in the source go by blocks.
        columns, other = (*others, one, one)[:2]
        f = {"run": last.length, "row_step": columns.step, "row_apart": columns.apart}
    else:
        columns, other = near, (*others, one)[0]
        f = {"rows": last.length, "row_step": last.step, "column_apart": near.apart}
    # The source is read in its order as far as possible, which processors foresee, whatever that means for the target.
    chunk, together = (columns.length, _TOGETHER) if other.length > 1 else (_TOGETHER * lanes, 1)
    chunks = -(-columns.length // chunk)
    f |= {"columns": columns.length, "others": other.length, "other_step": other.step, "other_apart": other.apart}
    f |= {"column_chunk": chunk, "other_chunk": together, "chunks": chunks}
    return _kernel(bits, lanes).address, record_of(FIELDS, f), chunks * -(-other.length // together)


def ordered(w: Any, workers: int, new: Any = None) -> Any:
    """Return a weight in C order on aligned memory: itself, or a copy.

    Parameters
    ----------
    w : array
    workers : int
        Threads that share the work.
    new : callable, optional
        What gives memory of so many bytes; without it that is valid until the thread's next call.
    """
    flags = w.flags
    if flags.c_contiguous and flags.aligned:
        return w
    plan = _plan(w.shape, w.strides, w.dtype.name) if w.size > _FEW and flags.aligned else None
    if plan is None:
        return contiguous(w)
    kernel, known, units = plan
    if new is None and w.nbytes <= _MOST_KEPT:
        memory = scratch.room(w.nbytes, "order")
    else:
        memory = np.empty(w.nbytes, np.uint8) if new is None else new(w.nbytes)
    result = memory[: w.nbytes].view(w.dtype).reshape(w.shape)
    job = known.copy()
    job[_SOURCE], job[_TARGET] = address(w), address(result)
    threads.run(kernel, address(job), units, min(workers, 1 + w.nbytes // _SHARED))
    return result


def in_any_order(w: Any) -> Any:
    """Return a weight whose elements lie in one run of memory, where it does not matter which is where, or a copy."""
    if not w.flags.c_contiguous:
        w = w.transpose(sorted(range(w.ndim), key=lambda axis: -abs(w.strides[axis]))).reshape(w.shape)
    return contiguous(w)
