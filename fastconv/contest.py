"""Algorithms against each other on one problem: each is checked against the reference, then all take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastconv import registry, testing, tuning
from fastconv.algorithm import AnyProblem, Plan

# One that is expected to be this many times slower than the best is not worth its measurement.
HOPELESS = 20.0


class Outcome(NamedTuple):
    """How an algorithm did.

    Attributes
    ----------
    seconds : float or None
        What a run took; None if the result was wrong.
    error : float or None
        The largest error of any element, relative to the sum of absolute values behind that element, which is what
        `Algorithm.error_bound` is relative to.
    failure : str or None
        What was wrong.
    """

    seconds: float | None = None
    error: float | None = None
    failure: str | None = None


def hold(
    problem: AnyProblem, expected: Mapping[str, float], progress: Callable[[str], None] | None = None
) -> dict[str, Outcome]:
    """Check and time algorithms on random inputs, under the options in force.

    Parameters
    ----------
    problem : ConvProblem or PoolProblem
    expected : mapping of str to float
        The algorithms' keys, with the seconds that each is expected to take. The hopeless are left out.
    progress : callable, optional
        Called with each key before its algorithm is checked.

    Returns
    -------
    dict of str to Outcome
        For each algorithm that was not left out.
    """
    with tuning.exclusive():
        arrays = testing.random_inputs(problem)
        exact = testing.exact(problem, arrays)
        outcomes: dict[str, Outcome] = {}
        runs: dict[str, Callable[[], None]] = {}
        for key, seconds in expected.items():
            if seconds > HOPELESS * min(expected.values()):
                continue
            if progress is not None:
                progress(key)
            algorithm = registry.find(key)
            try:
                outputs = testing.run(algorithm, problem, arrays)
                testing.compare(problem, outputs, exact, algorithm.error_bound(problem))
            except Exception as failure:  # noqa: BLE001 - one that is registered by a user may fail in any way
                outcomes[key] = Outcome(failure=f"{type(failure).__name__}: {failure}")
                continue
            outcomes[key] = Outcome(error=_largest_error(outputs, exact))
            runs[key] = _launcher(algorithm.plan(problem), arrays, outputs)
        for key, seconds in tuning.measure(runs).items():
            outcomes[key] = outcomes[key]._replace(seconds=seconds)
    return outcomes


def _largest_error(outputs: tuple[Any, ...], exact: testing.Exact) -> float:
    reference = exact.results[0]
    error = np.abs(outputs[0].astype(np.float64) - reference)
    magnitude = np.maximum(exact.magnitude, np.abs(reference))
    return float(np.max(np.divide(error, magnitude, out=error, where=magnitude > 0)))


def _launcher(plan: Plan, arrays: tuple[Any, ...], outputs: tuple[Any, ...]) -> Callable[[], None]:
    inputs = plan.packed(arrays)
    return lambda: plan.run(inputs, outputs)
