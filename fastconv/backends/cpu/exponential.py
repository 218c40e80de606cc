"""Activations that take an exponential, sigmoid and tanh: applied to an output in place, once it is made.

Both are computed from ``exp(t) - 1`` for t that is not positive for tanh, which keeps the digits of small values.
"""

from __future__ import annotations

import math
import struct
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import HEAD, Start, fields_of, job_type, never, record_of, start_of, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.simd import Emitter, literals

FIELDS = fields_of("count | elements", HEAD)
JOB = job_type(FIELDS)

# Activations as kernels know them.
KINDS = {"sigmoid": 0, "tanh": 1}
_SIGMOID = KINDS["sigmoid"]

# Elements of a unit of work, some microseconds: whatever the number of threads.
_BLOCK = 1 << 13


@intrinsic(prefer_literal=True)
def _activate(typingctx, kind, lanes, bits, fma, address, count):
    """Replace at most ``lanes`` elements by their activation."""
    shape = literals(kind, lanes, bits, fma)
    if shape is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        which, width, element, has_fma = shape
        address, count = args[4:]
        e = Emitter(builder, element, width, bool(has_fma))
        mask = e.first(count)
        one = _sigmoid if which == _SIGMOID else _tanh
        e.store_masked(one(e, e.load_masked(address, mask)), address, mask)
        return context.get_dummy_value()

    return types.void(kind, lanes, bits, fma, types.int64, types.int64), codegen


def _sigmoid(e: Emitter, x: Any) -> Any:
    """Emit ``1 / (1 + exp(-x))``."""
    b, one = e.builder, _constant(e, 1.0)
    # Where the exponential overflows, 1 / inf is right; where it vanishes, 1.
    most = 710.0 if e.bytes == 8 else 89.0
    t = _between(e, b.fsub(_constant(e, -0.0), x), -most, most)
    rest, low, high = _exponential(e, t)
    power = b.fmul(b.fmul(b.fadd(rest, one), low), high)
    return b.fdiv(one, b.fadd(one, power))


def _tanh(e: Emitter, x: Any) -> Any:
    """Emit ``|m / (2 + m)|`` with ``m = exp(-2 |x|) - 1``, and x's sign."""
    b, one = e.builder, _constant(e, 1.0)
    integers = _integers(e)
    sign = ir.Constant(integers, [1 << (8 * e.bytes - 1)] * e.lanes)
    words = b.bitcast(x, integers)
    size = b.bitcast(b.and_(words, b.not_(sign)), e.vector)
    # Beyond, 1 is right to the last digit.
    t = _between(e, b.fmul(size, _constant(e, -2.0)), -40.0, 0.0)
    rest, low, high = _exponential(e, t)
    scale = b.fmul(low, high)
    m = e.fma(scale, rest, b.fsub(scale, one))
    quotient = b.bitcast(b.fdiv(m, b.fadd(_constant(e, 2.0), m)), integers)
    return b.bitcast(b.or_(b.and_(quotient, b.not_(sign)), b.and_(words, sign)), e.vector)


def _exponential(e: Emitter, t: Any) -> tuple[Any, Any, Any]:
    """Return r, a and b with ``exp(t) = (1 + r) * a * b``: a and b are powers of two, r is around 0. NaN stays NaN."""
    b, integers = e.builder, _integers(e)
    digits, bias = (52, 1023) if e.bytes == 8 else (23, 127)
    # Added, it leaves the nearest integer in the lowest bits.
    rounding = 1.5 * 2.0**digits
    shifted = e.fma(t, _constant(e, 1 / math.log(2)), _constant(e, rounding))
    whole = b.fsub(shifted, _constant(e, rounding))
    power = b.sub(b.bitcast(shifted, integers), _words(e, rounding))
    # The logarithm in two parts, of which the first has so few digits that its product is exact.
    first, second = (
        (6.93147180369123816490e-01, 1.90821492927058770002e-10)
        if e.bytes == 8
        else (0.693359375, math.log(2) - 0.693359375)
    )
    r = e.fma(whole, _constant(e, -first), t)
    r = e.fma(whole, _constant(e, -second), r)
    # Between -log(2) / 2 and log(2) / 2, right to the last digit.
    terms = 13 if e.bytes == 8 else 7
    sums = _constant(e, 1 / math.factorial(terms))
    for i in reversed(range(2, terms)):
        sums = e.fma(sums, r, _constant(e, 1 / math.factorial(i)))
    rest = e.fma(b.fmul(r, r), sums, r)

    def two_to(exponent: Any) -> Any:
        biased = b.add(exponent, ir.Constant(integers, [bias] * e.lanes))
        return b.bitcast(b.shl(biased, ir.Constant(integers, [digits] * e.lanes)), e.vector)

    # In two factors: the power itself may have no exponent of its own.
    half = b.ashr(power, ir.Constant(integers, [1] * e.lanes))
    return rest, two_to(half), two_to(b.sub(power, half))


def _integers(e: Emitter) -> Any:
    return ir.VectorType(ir.IntType(8 * e.bytes), e.lanes)


def _constant(e: Emitter, value: float) -> Any:
    if e.bytes == 4:  # LLVM takes no constant that is not one of single precision
        value = float(np.float32(value))
    return ir.Constant(e.vector, [value] * e.lanes)


def _words(e: Emitter, value: float) -> Any:
    floating, integer = ("<d", "<q") if e.bytes == 8 else ("<f", "<i")
    return ir.Constant(_integers(e), [struct.unpack(integer, struct.pack(floating, value))[0]] * e.lanes)


def _between(e: Emitter, value: Any, least: float, most: float) -> Any:
    b = e.builder
    for bound, beyond in ((_constant(e, least), "<"), (_constant(e, most), ">")):
        value = b.select(b.fcmp_ordered(beyond, value, bound), bound, value)
    return value


@cache
def _loops(kind: int, lanes: int, bits: int, fma: int) -> Any:
    size = bits // 8
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        first, end = start * _BLOCK, min(stop * _BLOCK, job.count)
        for i in range(first, end, lanes):
            _activate(kind, lanes, bits, fma, job.y + i * size, min(lanes, end - i))

    return run


class Finish:
    """Applies what is not fused of an activation to outputs in place; the same bits come out however they lie.

    Parameters
    ----------
    activation : str or None
        Nothing is done unless it is one of `KINDS`.
    workers : int
        Threads that share the work.
    """

    def __init__(self, activation: str | None, workers: int) -> None:
        self._kind, self._workers = KINDS.get(activation or ""), workers
        self._start: Start = never

    def __call__(self, y: Any) -> None:
        """Apply it to an array of float32 or float64."""
        if self._kind is None or self._start(None, None, y, None, None, 0, 0):
            return
        if not (y.flags.aligned and _is_dense(y)):
            copied = np.array(y, order="C")
            self(copied)
            y[...] = copied
            return
        vectors = simd()
        loops = _loops(self._kind, vectors.lanes(y.itemsize), 8 * y.itemsize, int(vectors.fma))
        units = -(-y.size // _BLOCK)
        known = record_of(FIELDS, {"count": y.size})
        self._start = start_of(loops.address, known, units, self._workers, (None, None, y, None, None))
        self._start(None, None, y, None, None, 0, 0)


def _is_dense(array: Any) -> bool:
    """Whether an array's elements fill one run of memory from the first one on, in whatever order."""
    expected = array.itemsize
    for stride, length in sorted(zip(array.strides, array.shape, strict=True)):
        if length == 1:
            continue
        if stride != expected:
            return False
        expected *= length
    return True
