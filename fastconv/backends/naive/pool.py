"""Pools, unpooling, unfold and fold by the textbook's loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.algorithm import Algorithm, AnyProblem, Plan, Run
from fastconv.backends.naive import views
from fastconv.backends.naive.conv import OVERHEAD, widened_bytes
from fastconv.geometry import Table, divisors, divisors_bytes, taps_bytes
from fastconv.machine import Machine
from fastconv.problem import DTYPES, PoolProblem

# Elements visited a second.
RATE = 0.15e9

# (kind, direction) -> arrays like x and like y that NumPy makes on the way, at most
_TEMPORARIES = {
    ("avg_pool", "dgrad"): (0, 1),
    ("adaptive_avg_pool", "dgrad"): (0, 1),
    ("lp_pool", "fprop"): (1, 0),
    ("lp_pool", "dgrad"): (2, 4),
}


class PoolLoops(Algorithm):
    """One element after another, on the arrays as they lie."""

    name = "window_loops"
    backend = "naive"
    fallback = True

    def refuses(self, problem: AnyProblem) -> str | None:
        return None if isinstance(problem, PoolProblem) else "solves window operations only"

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return OVERHEAD + problem.macs / RATE

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, PoolProblem)
        like_x, like_y = _TEMPORARIES.get((problem.kind, problem.direction), (0, 0))
        elements = like_x * math.prod(problem.x_shape) + like_y * math.prod(problem.y_shape)
        total = widened_bytes(problem) + elements * DTYPES[problem.accumulator]
        if _KINDS[problem.kind][problem.direction] not in _BY_INDICES:
            total += taps_bytes(problem)
        if "avg" in problem.kind or problem.kind == "lp_pool":
            total += divisors_bytes(problem.output_size)
        return total

    def plan(self, problem: AnyProblem) -> Plan:
        assert isinstance(problem, PoolProblem)
        return Plan(problem, self, _KINDS[problem.kind][problem.direction](problem))


def _image(problem: PoolProblem, array: Any) -> Any:
    return views.lift(array, 2, ndim=problem.ndim)


def _columns(problem: PoolProblem, array: Any, tables: tuple[Table, ...]) -> Any:
    """View y or dy as (N, C, kernel, output): unfolded already, or the same for every kernel position."""
    if problem.op == "unfold":
        array = array.reshape(problem.n, problem.c, *problem.kernel_size, *problem.output_size)
        return views.lift(array, 2, 5, ndim=problem.ndim)
    kernel = tuple(table.shape[1] for table in tables)
    array = np.expand_dims(_image(problem, array), (2, 3, 4))
    return views.spread(array, array.shape[:2] + kernel + array.shape[5:])


def _divisors(problem: PoolProblem) -> Any:
    return divisors(problem).astype(problem.accumulator, copy=False)


def _unfold(problem: PoolProblem) -> Run:
    from fastconv.backends.naive import loops

    dtype, gather = problem.accumulator, loops.gather(problem.accumulator)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        x, tables = views.readable(inputs[0], dtype), views.lift_taps(problem)
        with views.accumulating(outputs[0], dtype) as y:
            gather(_image(problem, x), *tables, _columns(problem, y, tables))

    return run


def _fold(problem: PoolProblem) -> Run:
    from fastconv.backends.naive import loops

    dtype, scatter = problem.accumulator, loops.scatter(problem.accumulator)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        dy, tables = views.readable(inputs[0], dtype), views.lift_taps(problem)
        with views.accumulating(outputs[0], dtype) as dx:
            scatter(_columns(problem, dy, tables), *tables, _image(problem, dx))

    return run


def _average(problem: PoolProblem) -> Run:
    """The sum over a window is an unfold on top of itself."""
    dtype, unfold = problem.accumulator, _unfold(problem)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        with views.accumulating(outputs[0], dtype) as y:
            unfold(inputs, (y,))
            y /= _divisors(problem)

    return run


def _average_dgrad(problem: PoolProblem) -> Run:
    dtype, fold = problem.accumulator, _fold(problem)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        fold((views.readable(inputs[0], dtype) / _divisors(problem),), outputs)

    return run


def _lp(problem: PoolProblem) -> Run:
    """PyTorch's definition: the average of the powers times the kernel's size, and the root of that."""
    dtype, power, average = problem.accumulator, problem.norm_type, _average(problem)
    size = math.prod(problem.kernel_size)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        with views.accumulating(outputs[0], dtype) as y:
            average((views.readable(inputs[0], dtype) ** power,), (y,))
            y *= size
            np.power(y, 1 / power, out=y)

    return run


def _lp_dgrad(problem: PoolProblem) -> Run:
    dtype, power, average_dgrad = problem.accumulator, problem.norm_type, _average_dgrad(problem)
    size = math.prod(problem.kernel_size)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        dy, x, y = (views.readable(array, dtype) for array in inputs)
        with views.accumulating(outputs[0], dtype) as dx:
            # The root has no slope at zero; its gradient is taken as zero there.
            average_dgrad((np.where(y == 0, 0, dy * size * y ** (1 - power)),), (dx,))
            np.multiply(dx, x ** (power - 1), out=dx, where=(dx != 0) | ~np.isfinite(x))

    return run


def _max(problem: PoolProblem) -> Run:
    from fastconv.backends.naive import loops

    dtype, maximum = problem.accumulator, loops.maximum(problem.accumulator)

    def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        x, tables, y = views.readable(inputs[0], dtype), views.lift_taps(problem), outputs[0]
        # Indices that nobody asked for all go to one element.
        indices = outputs[1] if problem.return_indices else views.spread(np.empty(1, np.int64), y.shape)
        with views.accumulating(y, dtype) as best, views.accumulating(indices, "int64") as chosen:
            maximum(_image(problem, x), *tables, _image(problem, best), _image(problem, chosen))

    return run


def _recorded(loop: str) -> Callable[[PoolProblem], Run]:
    """Return a planner for the loops over recorded positions: ``put``, ``put_add`` or ``take``."""

    def planner(problem: PoolProblem) -> Run:
        from fastconv.backends.naive import loops

        dtype, move = problem.accumulator, getattr(loops, loop)(problem.accumulator)

        def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            values, indices = views.readable(inputs[0], dtype), views.readable(inputs[1], "int64")
            with views.accumulating(outputs[0], dtype) as result:
                move(*(_image(problem, array) for array in (values, indices, result)))

        return run

    return planner


_put, _put_add, _take = (_recorded(loop) for loop in ("put", "put_add", "take"))
_BY_INDICES = (_put, _put_add, _take)

_KINDS: dict[str, dict[str, Callable[[PoolProblem], Run]]] = {
    "max_pool": {"fprop": _max, "dgrad": _put_add},
    "adaptive_max_pool": {"fprop": _max, "dgrad": _put_add},
    "avg_pool": {"fprop": _average, "dgrad": _average_dgrad},
    "adaptive_avg_pool": {"fprop": _average, "dgrad": _average_dgrad},
    "lp_pool": {"fprop": _lp, "dgrad": _lp_dgrad},
    "max_unpool": {"fprop": _put, "dgrad": _take},
    "unfold": {"fprop": _unfold, "dgrad": _fold},
}
