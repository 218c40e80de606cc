"""Pools, unpooling, unfold and fold by definition: kernel position after kernel position, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastconv.algorithm import EPSILON, ERROR_CONSTANT, Algorithm, AnyProblem, Plan
from fastconv.backends.reference.conv import PREDICTED_OVERHEAD, PREDICTED_RATE
from fastconv.backends.reference.windows import Planes, blank, planes, positions, scatter_add
from fastconv.geometry import divisors, divisors_bytes, taps_bytes
from fastconv.machine import Machine
from fastconv.problem import PoolProblem


class Windows(Algorithm):
    """Whole planes at a time: what all windows read through one kernel position."""

    name = "windows"
    backend = "reference"
    fallback = True

    def refuses(self, problem: AnyProblem) -> str | None:
        return None if isinstance(problem, PoolProblem) else "solves window operations only"

    def plan(self, problem: AnyProblem) -> Plan:
        assert isinstance(problem, PoolProblem)
        return Plan(problem, self, partial(_run, problem, _KINDS[problem.kind][problem.direction]))

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return PREDICTED_OVERHEAD + problem.macs / PREDICTED_RATE

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, PoolProblem)
        images = sum(math.prod(a.shape[1:]) for a in problem.inputs + problem.outputs)
        images += 3 * math.prod(problem.y_shape[1:])
        planes = math.prod(problem.input_size) + math.prod(problem.output_size) * 4
        return 8 * (images + planes) + taps_bytes(problem) + divisors_bytes(problem.output_size)

    def error_bound(self, problem: AnyProblem) -> float:
        return ERROR_CONSTANT * EPSILON["float64"] * math.sqrt(problem.reduction)


def _run(
    problem: PoolProblem, compute: Callable[..., tuple[Any, ...]], inputs: tuple[Any, ...], outputs: tuple[Any, ...]
) -> None:
    """Compute image by image; ``compute`` may return more than is asked for (a max pool's indices)."""
    with np.errstate(all="ignore"):
        for i in range(problem.n):
            for output, result in zip(outputs, compute(problem, *(a[i] for a in inputs)), strict=False):
                output[i] = result.reshape(output[i].shape)


def _max_fprop(problem: PoolProblem, x: Any) -> tuple[Any, ...]:
    source = planes(x)
    y = np.full((problem.c, math.prod(problem.output_size)), -np.inf)
    indices = np.full(y.shape, -1)
    for index in positions(problem):
        value = source[:, index]
        # PyTorch's rule: of equal values the first, of NaNs the last.
        chosen = (index >= 0) & ((value > y) | np.isnan(value) | (indices < 0))
        y[chosen] = value[chosen]
        indices[chosen] = np.broadcast_to(index, y.shape)[chosen]
    return y, indices


def _route(problem: PoolProblem, dy: Any, indices: Any) -> tuple[Any, ...]:
    """Return every output's gradient to the input it was taken from."""
    dx = blank(problem.c, problem.input_size)
    scatter_add(dx, indices.reshape(problem.c, -1), dy.reshape(problem.c, -1).astype(np.float64))
    return (dx[:, :-1],)


def _unpool(problem: PoolProblem, x: Any, indices: Any) -> tuple[Any, ...]:
    y = np.zeros((problem.c, math.prod(problem.output_size)))
    # Where an index occurs twice, the last value stays.
    np.put_along_axis(y, indices.reshape(problem.c, -1), planes(x)[:, :-1], axis=1)
    return (y,)


def _unpool_dgrad(problem: PoolProblem, dy: Any, indices: Any) -> tuple[Any, ...]:
    return (np.take_along_axis(planes(dy), indices.reshape(problem.c, -1), axis=1),)


def _sums(problem: PoolProblem, source: Planes) -> Any:
    total = np.zeros((problem.c, math.prod(problem.output_size)))
    for index in positions(problem):
        total += source[:, index]
    return total


def _sums_dgrad(problem: PoolProblem, gradient: Any) -> Any:
    dx = blank(problem.c, problem.input_size)
    for index in positions(problem):
        scatter_add(dx, index, gradient)
    return dx[:, :-1]


def _divisors(problem: PoolProblem) -> Any:
    return divisors(problem).ravel()


def _average(problem: PoolProblem, x: Any) -> tuple[Any, ...]:
    return (_sums(problem, planes(x)) / _divisors(problem),)


def _average_dgrad(problem: PoolProblem, dy: Any) -> tuple[Any, ...]:
    return (_sums_dgrad(problem, planes(dy)[:, :-1] / _divisors(problem)),)


def _lp(problem: PoolProblem, x: Any) -> tuple[Any, ...]:
    """PyTorch's definition: the average of the powers times the kernel's size, and the root of that."""
    power = problem.norm_type
    mean = _sums(problem, planes(x) ** power) / _divisors(problem)
    return ((mean * math.prod(problem.kernel_size)) ** (1 / power),)


def _lp_dgrad(problem: PoolProblem, dy: Any, x: Any, y: Any) -> tuple[Any, ...]:
    power = problem.norm_type
    gradient, root = planes(dy)[:, :-1] / _divisors(problem), planes(y)[:, :-1]
    # The root has no slope at zero; its gradient is taken as zero there.
    factor = np.where(root == 0, 0, gradient * math.prod(problem.kernel_size) * root ** (1 - power))
    dx = _sums_dgrad(problem, factor)
    values = planes(x)[:, :-1]
    # What no window reads has no gradient, whatever its power would be.
    return (np.where((dx == 0) & np.isfinite(values), 0, dx * values ** (power - 1)),)


def _unfold(problem: PoolProblem, x: Any) -> tuple[Any, ...]:
    source = planes(x)
    return (np.stack([source[:, index] for index in positions(problem)], axis=1),)


def _fold(problem: PoolProblem, dy: Any) -> tuple[Any, ...]:
    dx = blank(problem.c, problem.input_size)
    columns = dy.reshape(problem.c, math.prod(problem.kernel_size), -1).astype(np.float64)
    for k, index in enumerate(positions(problem)):
        scatter_add(dx, index, columns[:, k])
    return (dx[:, :-1],)


_KINDS: dict[str, dict[str, Callable[..., tuple[Any, ...]]]] = {
    "max_pool": {"fprop": _max_fprop, "dgrad": _route},
    "adaptive_max_pool": {"fprop": _max_fprop, "dgrad": _route},
    "avg_pool": {"fprop": _average, "dgrad": _average_dgrad},
    "adaptive_avg_pool": {"fprop": _average, "dgrad": _average_dgrad},
    "lp_pool": {"fprop": _lp, "dgrad": _lp_dgrad},
    "max_unpool": {"fprop": _unpool, "dgrad": _unpool_dgrad},
    "unfold": {"fprop": _unfold, "dgrad": _fold},
}
