"""Activations that are applied while an output is in registers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastconv import epilogue

if TYPE_CHECKING:
    from fastconv.backends.cpu.simd import Emitter
    from fastconv.problem import ConvProblem

# What fuses, as (slope below zero, floor, cap); the others are applied afterwards.
FUSED = {
    "relu": (1.0, 0.0, math.inf),
    "relu6": (1.0, 0.0, 6.0),
    "leaky_relu": (epilogue.LEAKY_SLOPE, -math.inf, math.inf),
}


def unfused_half(problem: ConvProblem) -> str | None:
    """Return why a problem is refused whose result would be rounded twice, before the activation and after it."""
    if problem.dtype != problem.accumulator and problem.activation not in (None, *FUSED):
        return f"would round {problem.dtype} before {problem.activation}"
    return None


def activate(e: Emitter, sums: list[Any], activation: Any) -> list[Any]:
    """Emit ``v < 0 ? v * slope : v`` between floor and cap, the three constants at an address. NaN stays NaN."""
    b = e.builder
    slope, floor, cap = (e.load_splat(e.at(activation, i * e.bytes)) for i in range(3))

    def one(v: Any) -> Any:
        v = b.select(b.fcmp_ordered("<", v, e.zero), b.fmul(v, slope), v)
        v = b.select(b.fcmp_ordered("<", v, floor), floor, v)
        return b.select(b.fcmp_ordered(">", v, cap), cap, v)

    return [one(v) for v in sums]
