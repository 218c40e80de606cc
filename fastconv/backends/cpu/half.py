"""The half formats in vector code: widened to float32, and rounded to the nearest of them, ties to even.

float16 has instructions of its own on all processors but some old ones, where LLVM would call a library that is not
there: integer arithmetic serves these. bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core.registry import cpu_target

from fastconv.backends.cpu.formats import BFLOAT16
from fastconv.backends.cpu.registers import simd

STORED = ir.IntType(16)
_WORD = ir.IntType(32)

_SIGN = 0x80000000
_INFINITY = 0x7F800000
_BIAS_STEP = 127 - 15  # between the exponents of float32 and float16
_SHIFT = 23 - 10  # between their fractions


@cache
def _has_instructions() -> bool:
    """Whether the processor that is compiled for converts float16."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or ("+f16c" in features and simd().name != "none")


def widen(builder: Any, format: int, stored: Any) -> Any:
    """Return a vector of 16-bit elements as float32."""
    lanes = stored.type.count
    single = ir.VectorType(ir.FloatType(), lanes)
    if format != BFLOAT16 and _has_instructions():
        return builder.fpext(builder.bitcast(stored, ir.VectorType(ir.HalfType(), lanes)), single)
    words = builder.zext(stored, ir.VectorType(_WORD, lanes))
    if format == BFLOAT16:
        return builder.bitcast(builder.shl(words, _word(lanes, 16)), single)
    shifted = builder.shl(builder.and_(words, _word(lanes, 0x7FFF)), _word(lanes, _SHIFT))
    # The product rebases the exponent, and makes subnormal numbers normal.
    scale = builder.bitcast(_word(lanes, (127 + _BIAS_STEP) << 23), single)
    scaled = builder.bitcast(builder.fmul(builder.bitcast(shifted, single), scale), shifted.type)
    special = builder.icmp_unsigned(">=", shifted, _word(lanes, 31 << 23))
    size = builder.select(special, builder.or_(shifted, _word(lanes, _INFINITY)), scaled)
    sign = builder.shl(builder.and_(words, _word(lanes, 0x8000)), _word(lanes, 16))
    return builder.bitcast(builder.or_(size, sign), single)


def narrow(builder: Any, format: int, value: Any) -> Any:
    """Return a vector of float32 as 16-bit elements."""
    lanes = value.type.count
    stored = ir.VectorType(STORED, lanes)
    if format == BFLOAT16:
        return _to_bfloat16(builder, value, stored)
    if _has_instructions():
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), lanes)), stored)
    return _to_float16(builder, value, stored)


def _to_bfloat16(builder: Any, value: Any, stored: Any) -> Any:
    lanes = stored.count
    words = builder.bitcast(value, ir.VectorType(_WORD, lanes))
    upper = builder.lshr(words, _word(lanes, 16))
    odd = builder.and_(upper, _word(lanes, 1))
    rounded = builder.lshr(builder.add(words, builder.add(odd, _word(lanes, 0x7FFF))), _word(lanes, 16))
    # Rounding would carry a NaN into the sign; its upper half alone might be an infinity.
    quiet = builder.or_(upper, _word(lanes, 0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), stored)


def _to_float16(builder: Any, value: Any, stored: Any) -> Any:
    lanes = stored.count
    words = builder.bitcast(value, ir.VectorType(_WORD, lanes))
    sign = builder.and_(words, _word(lanes, _SIGN))
    size = builder.xor(words, sign)
    # Normal numbers: half of the last place is added, less one unless the last place is odd.
    odd = builder.and_(builder.lshr(size, _word(lanes, _SHIFT)), _word(lanes, 1))
    rebased = builder.add(size, _word(lanes, (1 << _SHIFT - 1) - 1 - (_BIAS_STEP << 23)))
    normal = builder.lshr(builder.add(rebased, odd), _word(lanes, _SHIFT))
    # Smaller ones: added to a number whose last place is theirs, they are rounded by the addition.
    magic = _word(lanes, (_BIAS_STEP + _SHIFT + 1) << 23)
    single = value.type
    summed = builder.fadd(builder.bitcast(size, single), builder.bitcast(magic, single))
    small = builder.sub(builder.bitcast(summed, words.type), magic)
    is_small = builder.icmp_unsigned("<", size, _word(lanes, (_BIAS_STEP + 1) << 23))
    is_nan = builder.icmp_unsigned(">", size, _word(lanes, _INFINITY))
    large = builder.select(is_nan, _word(lanes, 0x7E00), _word(lanes, 0x7C00))
    is_large = builder.icmp_unsigned(">=", size, _word(lanes, (_BIAS_STEP + 31) << 23))
    result = builder.select(is_large, large, builder.select(is_small, small, normal))
    return builder.trunc(builder.or_(result, builder.lshr(sign, _word(lanes, 16))), stored)


def _word(lanes: int, value: int) -> Any:
    return ir.Constant(ir.VectorType(_WORD, lanes), [value & 0xFFFFFFFF] * lanes)
