"""The public functions as an entrant: a call reads its arguments and packs its weights each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastconv as fc
from fastconv.algorithm import AnyProblem
from fastconv.problem import ConvProblem

NAME = "fastconv call"


def refuses(problem: AnyProblem) -> str | None:
    """Return why no call can be made from a problem; None if one can."""
    if not isinstance(problem, ConvProblem) or problem.is_local:
        return "is measured on convolutions"
    if problem.direction not in ("fprop", "dgrad", "wgrad") or (
        problem.op == "linear" and problem.direction != "fprop"
    ):
        return f"has no function for {problem.direction} of {problem.op}"
    if problem.padding_mode != "zeros" or problem.activation is not None or problem.residual:
        return "is measured without an epilogue"
    return None


def run(problem: AnyProblem, inputs: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
    """Return the call, with its arguments bound."""
    assert isinstance(problem, ConvProblem)
    function, settings = forward(problem)
    if problem.direction == "fprop":
        return lambda: (function(*inputs, **settings),)
    if problem.direction == "dgrad":
        dy, w = inputs
        gradient = getattr(fc.grad, f"{problem.op}_input")
        return lambda: (gradient(problem.x_shape, w, dy, **settings),)
    x, dy = inputs
    gradient = getattr(fc.grad, f"{problem.op}_weight")
    return lambda: (gradient(x, problem.w_shape, dy, **settings),)


def forward(problem: ConvProblem) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the public function of a convolution's forward pass, and the arguments that are no arrays."""
    if problem.op == "linear":
        return fc.linear, {}
    names = ("stride", "padding", "dilation", "groups")
    return getattr(fc, problem.op), {name: getattr(problem, name) for name in names}
