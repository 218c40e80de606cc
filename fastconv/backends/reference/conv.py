"""Convolution by definition: for every kernel position, gather what the windows read and sum products."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.algorithm import EPSILON, ERROR_CONSTANT, Algorithm, AnyProblem, Plan
from fastconv.backends.reference.windows import blank, planes, positions, scatter_add
from fastconv.geometry import taps_bytes
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Far below what it does: it is there to be right, and must not win against anything meant to be used.
PREDICTED_RATE = 5e7
PREDICTED_OVERHEAD = 1e-3

# Groups g, output and input channels o and c within a group, output positions p; locally connected
# layers have weights of their own at every position.
_EQUATIONS = {
    "fprop": {"shared": "goc,gcp->gop", "local": "pgoc,gcp->gop"},
    "dgrad": {"shared": "goc,gop->gcp", "local": "pgoc,gop->gcp"},
    "wgrad": {"shared": "gcp,gop->goc", "local": "gcp,gop->pgoc"},
}


class Einsum(Algorithm):
    """`numpy.einsum` in float64, one image and one kernel position at a time."""

    name = "einsum"
    backend = "reference"
    fallback = True

    def refuses(self, problem: AnyProblem) -> str | None:
        return None if isinstance(problem, ConvProblem) else "solves convolutions only"

    def plan(self, problem: AnyProblem) -> Plan:
        assert isinstance(problem, ConvProblem)
        return Plan(problem, self, partial(_run, problem, _DIRECTIONS[problem.direction]))

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return PREDICTED_OVERHEAD + problem.macs / PREDICTED_RATE

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        positions = math.prod(problem.output_size)
        x, y = problem.ic * math.prod(problem.input_size), problem.oc * positions
        gathered, weights = problem.ic * positions, math.prod(problem.w_shape)
        finish = (1 + epilogue.TEMPORARIES.get(problem.activation or "", 0)) * max(x, y)
        return 8 * (2 * x + gathered + 2 * y + 2 * weights + 3 * positions + finish) + taps_bytes(problem)

    def error_bound(self, problem: AnyProblem) -> float:
        return ERROR_CONSTANT * EPSILON["float64"] * math.sqrt(problem.reduction)


def _run(
    problem: ConvProblem,
    compute: Callable[[ConvProblem, dict[str, Any], Any], None],
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
) -> None:
    named = dict(zip((operand.name for operand in problem.inputs), inputs, strict=True))
    with np.errstate(all="ignore"):
        compute(problem, named, outputs[0])


def _fprop(problem: ConvProblem, named: dict[str, Any], y: Any) -> None:
    equation, w = _equation(problem), _by_kernel_position(problem, named["w"].astype(np.float64))
    for i, x in enumerate(named["x"]):
        source = planes(x)
        result = np.zeros((problem.groups, problem.oc // problem.groups, math.prod(problem.output_size)))
        for w_k, index in zip(w, positions(problem), strict=True):
            result += np.einsum(equation, w_k, _grouped(problem, source[:, index]))
        _finish(problem, result, named, y, i)


def _dgrad(problem: ConvProblem, named: dict[str, Any], dx: Any) -> None:
    equation, w = _equation(problem), _by_kernel_position(problem, named["w"].astype(np.float64))
    for i, dy in enumerate(named["dy"]):
        source = _grouped(problem, dy.astype(np.float64))
        result = blank(problem.ic, problem.input_size)
        for w_k, index in zip(w, positions(problem), strict=True):
            scatter_add(result, index, np.einsum(equation, w_k, source).reshape(problem.ic, -1))
        _finish(problem, result[:, :-1], named, dx, i)


def _wgrad(problem: ConvProblem, named: dict[str, Any], dw: Any) -> None:
    equation = _equation(problem)
    result = np.zeros(problem.w_shape)
    by_position = _by_kernel_position(problem, result)
    for x, dy in zip(named["x"], named["dy"], strict=True):
        source, gradient = planes(x), _grouped(problem, dy.astype(np.float64))
        for dw_k, index in zip(by_position, positions(problem), strict=True):
            dw_k += np.einsum(equation, _grouped(problem, source[:, index]), gradient)
    dw[...] = result


def _bgrad(problem: ConvProblem, named: dict[str, Any], db: Any) -> None:
    total = sum(dy.astype(np.float64) for dy in named["dy"])
    if problem.bias == "position":
        db[...] = np.moveaxis(total, 0, -1)
    else:
        db[...] = total.reshape(problem.oc, -1).sum(1)


_DIRECTIONS = {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad, "bgrad": _bgrad}


def _equation(problem: ConvProblem) -> str:
    return _EQUATIONS[problem.direction]["local" if problem.is_local else "shared"]


def _by_kernel_position(problem: ConvProblem, w: Any) -> Any:
    """View a weight as (kernel positions, [output positions,] groups, output channels, input channels)."""
    local = (math.prod(problem.output_size),) if problem.is_local else ()
    channels = (problem.groups, problem.oc // problem.groups, problem.ic // problem.groups)
    return np.moveaxis(w.reshape(*local, *channels, -1), -1, 0)


def _grouped(problem: ConvProblem, image: Any) -> Any:
    return image.reshape(problem.groups, len(image) // problem.groups, -1)


def _finish(problem: ConvProblem, result: Any, named: dict[str, Any], output: Any, i: int) -> None:
    """Apply the epilogue to one image's result and round it once, into the output."""
    result = result.reshape(output[i].shape)
    bias, residual = named.get("bias"), named.get("residual")
    epilogue.apply(
        problem.activation,
        result,
        None if bias is None else epilogue.bias_view(problem, bias.astype(np.float64)),
        None if residual is None else residual[i].astype(np.float64),
    )
    output[i] = result
