"""Powers of vectors, with any exponent: the terms of a norm, and its root."""

from __future__ import annotations

import math
import struct
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastconv.backends.cpu.formats import FLOAT64
from fastconv.backends.cpu.simd import I64, Emitter

# Added to a double, it leaves the nearest integer in the lowest bits.
_ROUND = 1.5 * 2.0**52
# Of exponents beyond, single precision knows neither the power nor its inverse.
_LARGEST = 1000.0
# log2 of a number near 1 from s = (m - 1) / (m + 1), divided by s, by powers of its square: right to 1e-12.
_LOG = [2 / math.log(2) / (2 * i + 1) for i in range(7)]
# exp2 between -1/2 and 1/2: right to 1e-11.
_EXP = [math.log(2) ** i / math.factorial(i) for i in range(10)]


def raised(e: Emitter, value: Any, exponent: Any) -> Any:
    """Return ``value ** exponent`` as C's ``pow`` has it; the exponent is one double.

    Single precision is computed in double; that has more digits than polynomials of this size, so the C library's
    function is called for every element of double precision.
    """
    b, lanes = e.builder, e.lanes
    if e.scalar == ir.DoubleType():
        kind = ir.FunctionType(e.vector, [e.vector, e.vector])
        function = cgutils.get_or_insert_function(b.module, kind, f"llvm.pow.v{lanes}f64")
        return b.call(function, [value, e.splat(exponent)])
    kind = ir.FunctionType(e.vector, [e.vector, exponent.type])
    # Called, not inlined: kernels raise many vectors.
    function = cgutils.get_or_insert_function(b.module, kind, f"fastconv.raised.v{lanes}")
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder = ir.IRBuilder(function.append_basic_block())
        x, p = function.args
        double = Emitter(builder, FLOAT64, lanes)
        result = _raised(double, builder.fpext(x, double.vector), double.splat(p))
        builder.ret(builder.fptrunc(result, e.vector))
    return b.call(function, [value, exponent])


def _raised(e: Emitter, x: Any, p: Any) -> Any:
    b = e.builder
    integers = ir.VectorType(I64, e.lanes)

    def const(value: float) -> Any:
        return ir.Constant(e.vector, [value] * e.lanes)

    def bits(value: int) -> Any:
        return ir.Constant(integers, [value] * e.lanes)

    def words(value: Any) -> Any:
        return b.bitcast(value, integers)

    def polynomial(at: Any, factors: list[float]) -> Any:
        result = const(factors[-1])
        for factor in factors[-2::-1]:
            result = b.fadd(b.fmul(result, at), const(factor))
        return result

    size = b.bitcast(b.and_(words(x), bits(2**63 - 1)), e.vector)
    # The number is m * 2**k, with m around 1.
    low = struct.unpack("<q", struct.pack("<d", math.sqrt(0.5)))[0]
    k = b.ashr(b.sub(words(size), bits(low)), bits(52))
    m = b.bitcast(b.sub(words(size), b.shl(k, bits(52))), e.vector)
    s = b.fdiv(b.fsub(m, const(1.0)), b.fadd(m, const(1.0)))
    round_bits = bits(struct.unpack("<q", struct.pack("<d", _ROUND))[0])
    whole = b.fsub(b.bitcast(b.add(k, round_bits), e.vector), const(_ROUND))
    t = b.fmul(p, b.fadd(whole, b.fmul(s, polynomial(b.fmul(s, s), _LOG))))
    t = b.select(b.fcmp_ordered("<", t, const(-_LARGEST)), const(-_LARGEST), t)
    t = b.select(b.fcmp_ordered(">", t, const(_LARGEST)), const(_LARGEST), t)
    rounded = b.fadd(t, const(_ROUND))
    fraction = b.fsub(t, b.fsub(rounded, const(_ROUND)))
    scale = b.bitcast(b.shl(b.add(b.sub(words(rounded), round_bits), bits(1023)), bits(52)), e.vector)
    result = b.fmul(polynomial(fraction, _EXP), scale)

    grows = b.fcmp_ordered(">", p, e.zero)
    zero, infinity = const(0.0), const(math.inf)
    result = b.select(b.fcmp_ordered("==", size, zero), b.select(grows, zero, infinity), result)
    result = b.select(b.fcmp_ordered("==", size, infinity), b.select(grows, infinity, zero), result)
    rounded = b.fadd(p, const(_ROUND))
    is_integer = b.fcmp_ordered("==", b.fsub(rounded, const(_ROUND)), p)
    is_odd = b.and_(is_integer, b.trunc(words(rounded), ir.VectorType(ir.IntType(1), e.lanes)))
    result = b.select(b.and_(is_odd, b.icmp_signed("<", words(x), bits(0))), b.fsub(const(-0.0), result), result)
    has_none = b.and_(b.fcmp_ordered("<", x, zero), b.fcmp_ordered("<", size, infinity))
    has_none = b.and_(has_none, b.not_(is_integer))
    result = b.select(b.or_(has_none, b.fcmp_unordered("uno", x, x)), const(math.nan), result)
    return b.select(b.fcmp_ordered("==", p, zero), const(1.0), result)
