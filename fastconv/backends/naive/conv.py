"""Convolution by the textbook's loops."""

from __future__ import annotations

import math
from typing import Any

from fastconv import epilogue
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.naive import views
from fastconv.geometry import taps_bytes
from fastconv.machine import Machine
from fastconv.problem import DTYPES, ConvProblem

# Multiply-adds a second, and seconds a call: measured on a 3 GHz server core.
RATE = 0.2e9
OVERHEAD = 15e-6


class Loops(Algorithm):
    """One multiply-add after another, on the arrays as they lie."""

    name = "loops"
    backend = "naive"
    fallback = True

    def refuses(self, problem: AnyProblem) -> str | None:
        return None if isinstance(problem, ConvProblem) else "solves convolutions only"

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return OVERHEAD + problem.macs / RATE + machine.moving(problem.bytes)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        if problem.direction == "bgrad":
            return widened_bytes(problem)
        temporaries = epilogue.TEMPORARIES.get(problem.activation or "", 0) * math.prod(problem.result_shape)
        return widened_bytes(problem) + taps_bytes(problem) + temporaries * DTYPES[problem.accumulator]

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.naive import loops

        assert isinstance(problem, ConvProblem)
        direction, dtype = problem.direction, problem.accumulator
        loop = getattr(loops, direction)(dtype)
        names = [operand.name for operand in problem.inputs]
        result_name = problem.outputs[0].name

        def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            tables = () if direction == "bgrad" else views.lift_taps(problem)
            arrays = {name: views.readable(array, dtype) for name, array in zip(names, inputs, strict=True)}
            bias, residual = arrays.pop("bias", None), arrays.pop("residual", None)
            with views.accumulating(outputs[0], dtype) as result:
                operands = (_VIEWS[name](problem, array) for name, array in arrays.items())
                loop(*operands, *tables, _VIEWS[result_name](problem, result))
                if result_name in ("y", "dx"):
                    bias = None if bias is None else epilogue.bias_view(problem, bias)
                    epilogue.apply(problem.activation, result, bias, residual)

        return Plan(problem, self, run)


def widened_bytes(problem: AnyProblem) -> int:
    """Return the size of the float32 copies of a problem's half-precision arrays."""
    if problem.dtype == problem.accumulator:
        return 0
    return 4 * sum(math.prod(a.shape) for a in problem.inputs + problem.outputs if a.dtype == problem.dtype)


def _image(problem: ConvProblem, array: Any) -> Any:
    return views.lift(array, 2, ndim=problem.ndim)


def _weight(problem: ConvProblem, array: Any) -> Any:
    """View a weight as if every output position had its own."""
    lifted = views.lift(array, 0, 5, ndim=problem.ndim) if problem.is_local else views.lift(array, 2, ndim=problem.ndim)
    return views.spread(lifted, views.lift_sizes(problem.output_size) + lifted.shape[-5:])


def _bias(problem: ConvProblem, array: Any) -> Any:
    """View a bias as if every output element had its own."""
    return _image(problem, views.spread(epilogue.bias_view(problem, array), problem.y_shape))


_VIEWS = {"x": _image, "dx": _image, "y": _image, "dy": _image, "w": _weight, "dw": _weight, "db": _bias}
