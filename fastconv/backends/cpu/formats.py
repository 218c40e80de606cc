"""How elements are stored, as kernels are told: by one literal integer.

The bits of an IEEE format; bfloat16, which has as many as float16, is negative. The half formats are storage only:
they are widened to float32 on the way in, and narrowed once on the way out.
"""

from __future__ import annotations

from fastconv.problem import Problem

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = 16, -16, 32, 64
_FORMATS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}


def format_of(problem: Problem) -> int:
    """Return the format of a problem's arrays."""
    return _FORMATS[problem.dtype]


def format_named(dtype: str) -> int:
    """Return the format of arrays of a type, 0 if there is none."""
    return _FORMATS.get(dtype, 0)


def computed(format: int) -> int:
    """Return the format that elements of a format are computed in: the accumulator's."""
    return FLOAT64 if format == FLOAT64 else FLOAT32


def size_of(format: int) -> int:
    """Return the bytes of an element in memory."""
    return abs(format) // 8
