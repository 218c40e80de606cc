"""No difference from PyTorch on valid problems at random: every op, forward and gradient, on every backend.

PyTorch computes in float64 on the values that fastconv is given in its dtype, so that one elementwise bound
holds for all dtypes: the algorithm's own error bound times the op of absolute values.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Answer, tensor
from strategies import FAMILIES, SMOOTH, Case

import fastconv as fc
from fastconv import testing
from fastconv.algorithm import EPSILON, ERROR_CONSTANT
from fastconv.notation import parse_problem

# What a gradient with respect to an array is, as a direction of the problem.
TURNED = {
    "fprop": {"input": "dgrad", "weight": "wgrad"},
    "dgrad": {"input": "fprop", "weight": "wgrad"},
}


@pytest.mark.parametrize("backend", fc.available_backends())
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_as_pytorch(family: str, backend: str, data: Any) -> None:
    case = data.draw(FAMILIES[family])
    choice = fc.explain(case.function, **case.keywords, backend=backend)
    if choice.winner is None:
        with pytest.raises(fc.NoAlgorithmError) as raised:
            case.function(**case.keywords, backend=backend)
        check_refusal(backend, raised.value)
        return
    answer = Answer(case)
    result, pullback = fc.vjp(case.function, **case.keywords, backend=backend)
    y, indices = result if isinstance(result, tuple) else (result, None)
    bound = bound_of(choice)
    check(choice.problem, y, answer.y, answer.magnitude, bound)
    if indices is not None:
        assert np.array_equal(indices, answer.indices)
    # Unlike vjp, the plain call of a max pool keeps no indices.
    assert np.array_equal(first(case.function(**case.keywords, backend=backend)), y, equal_nan=True)
    check_gradients(case, choice, answer, y, bound, pullback, backend)


def check_gradients(case: Case, choice: Any, answer: Answer, y: Any, bound: float, pullback: Any, backend: str) -> None:
    problem = choice.problem
    dy = np.random.default_rng(case.seed + 1).standard_normal(y.shape).astype(y.dtype)
    try:
        gradients = dict(zip(order_of(case), pullback(dy), strict=True))
    except fc.NoAlgorithmError as error:
        check_refusal(backend, error)
        return
    expected = answer.gradients(tensor(dy))
    dz = answer.before_activation(tensor(dy)).abs()
    uncertain = np.zeros(y.shape)
    rounding = EPSILON[problem.dtype] + ERROR_CONSTANT * EPSILON[problem.accumulator]
    if answer.activation is not None:
        # dz is rounded, and a smooth slope is computed from y, whose error it doubles at most.
        uncertain += rounding * dz.numpy() + float(ml_dtypes.finfo(y.dtype).smallest_subnormal)
        if answer.activation in SMOOTH:
            uncertain += 2 * np.abs(tensor(dy).numpy()) * (bound * answer.magnitude + rounding * np.abs(answer.y))
    assert set(gradients) >= set(case.arrays)
    for name, gradient in gradients.items():
        if name not in expected:
            assert gradient is None, name
            continue
        bound = gradient_bound(problem, name, backend)
        magnitude = answer.gradient_magnitudes(dz + tensor(uncertain) / bound)[name]
        assert gradient.shape == case.arrays[name].shape and gradient.dtype == case.arrays[name].dtype, name
        check(problem, gradient, expected[name], magnitude, bound)


def gradient_bound(problem: Any, name: str, backend: str) -> float:
    """Return the error bound of a gradient relative to the gradient of absolute values."""
    if name in ("bias", "residual"):
        terms = max(problem.n, 1) * math.prod(problem.result_shape[2:])
        return ERROR_CONSTANT * EPSILON[problem.accumulator] * math.sqrt(terms)
    if isinstance(problem, fc.ConvProblem):
        plain = {"bias": "none", "activation": None, "residual": False}
        turned = problem.replace(direction=TURNED[problem.direction][name], **plain)
        return bound_of(explained(turned, backend))
    turned = problem.replace(direction="dgrad" if problem.direction == "fprop" else "fprop", return_indices=False)
    bound = bound_of(explained(turned, backend))
    # The root that the gradient goes by was rounded to the dtype, and is raised to a power.
    return bound + problem.norm_type * EPSILON[problem.dtype] if problem.kind == "lp_pool" else bound


def explained(problem: Any, backend: str) -> Any:
    with fc.options(backend=backend):
        return fc.explain(problem)


def bound_of(choice: Any) -> float:
    """Return the winner's error bound, and PyTorch's own error in float64 on top."""
    winner = choice.candidates[0]
    assert winner.algorithm == choice.winner
    return winner.error_bound + ERROR_CONSTANT * EPSILON["float64"] * math.sqrt(choice.problem.reduction)


def check(problem: Any, result: Any, expected: Any, magnitude: Any, bound: float) -> None:
    assert result.shape == expected.shape
    if expected.any():
        testing.compare(problem, (result,), testing.Exact((expected,), magnitude), bound)
    else:  # a relu that lets nothing through, a window on padding alone
        assert (np.abs(result.astype(np.float64)) <= bound * magnitude).all()


def check_refusal(backend: str, error: fc.NoAlgorithmError) -> None:
    """Whoever refuses says why, every algorithm of it, and may."""
    reasons = dict(line.strip().split(": ", 1) for line in str(error).splitlines()[1:])
    asked = {name: reason for name, reason in reasons.items() if name.startswith(f"{backend}/")}
    assert asked and all(asked.values()), error
    assert may_refuse(backend, refused(error)), error


def refused(error: fc.NoAlgorithmError) -> Any:
    """Return the problem that the error's first line names."""
    return parse_problem(str(error).splitlines()[0].removeprefix("no algorithm for ").removesuffix(":"))


def may_refuse(backend: str, problem: Any) -> bool:
    """Whether a backend need not solve a problem in some direction. Reference and naive solve all."""
    if backend == "numba":
        forward = isinstance(problem, fc.ConvProblem) and problem.direction == "fprop"
        return not forward or problem.is_local or problem.dtype != problem.accumulator
    if backend != "im2col" or isinstance(problem, fc.ConvProblem):
        return False
    if problem.is_adaptive:  # windows that are unevenly spaced, or the same again
        sizes = zip(problem.input_size, problem.output_size, strict=True)
        return any(size % out > 1 or size < out for size, out in sizes)
    return problem.kind == "max_unpool"


def order_of(case: Case) -> list[str]:
    """Return the order in which the pullback hands out gradients."""
    if "weight" not in case.arrays:
        return list(case.arrays)
    return ["input", "weight", "bias", *(["residual"] if "residual" in case.arrays else [])]


def first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result
