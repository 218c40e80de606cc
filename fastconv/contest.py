"""Algorithms against each other on one problem: each is checked against the reference, then all take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
        The largest error of any element, as a share of what its bound allows there.
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
        best = math.inf
        for key, seconds in sorted(expected.items(), key=lambda item: item[1]):
            if seconds > HOPELESS * best:
                break
            if progress is not None:
                progress(key)
            algorithm = registry.find(key)
            try:
                outputs = testing.run(algorithm, problem, arrays)
                share = testing.compare(problem, outputs, exact, algorithm.error_bound(problem))
            except Exception as failure:  # noqa: BLE001 - one that is registered by a user may fail in any way
                outcomes[key] = Outcome(failure=f"{type(failure).__name__}: {failure}")
                continue
            outcomes[key] = Outcome(error=share)
            runs[key] = _launcher(algorithm.plan(problem), arrays, outputs)
            # A promise that is not kept must not keep the others out.
            best = min(best, max(seconds, _once(runs[key])))
        for key, seconds in tuning.measure(runs).items():
            outcomes[key] = outcomes[key]._replace(seconds=seconds)
    return outcomes


def _once(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _launcher(plan: Plan, arrays: tuple[Any, ...], outputs: tuple[Any, ...]) -> Callable[[], None]:
    inputs = plan.packed(arrays)
    return lambda: plan.run(inputs, outputs)
