"""Algorithms against each other on one problem: each is checked against the reference, then all take turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastconv import registry, testing, tuning
from fastconv.algorithm import AnyProblem, Plan
from fastconv.machine import machine

# Draws before results that are zero everywhere, which show little, are taken to be the problem's nature.
_DRAWS = 4

# One that is expected to be this many times slower than the best is not worth its measurement.
HOPELESS = 20.0


class Outcome(NamedTuple):
    """How an algorithm did.

    Attributes
    ----------
    seconds : float or None
        What a run took; None if it failed.
    error : float or None
        The largest error of any element, as a share of what its bound allows there.
    failure : str or None
        What was wrong with the result, or was raised.
    wrong : bool
        Whether there was a result, and it differed from the reference.
    """

    seconds: float | None = None
    error: float | None = None
    failure: str | None = None
    wrong: bool = False


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

    Raises
    ------
    ValueError
        If the problem is too large for this machine's memory, or is one on a GPU, where nothing is measured yet.
    """
    if problem.device != "cpu":
        raise ValueError(f"problem: algorithms are timed on the CPU only so far, got one on {problem.device}")
    with tuning.exclusive():
        arrays, exact = _drawn(problem)
        outcomes: dict[str, Outcome] = {}
        runs: dict[str, Callable[[], None]] = {}
        shared: tuple[Any, ...] = ()
        best = math.inf
        for key, seconds in sorted(expected.items(), key=lambda item: item[1]):
            if seconds > HOPELESS * best:
                break
            if progress is not None:
                progress(key)
            algorithm = registry.find(key)
            try:
                outputs = testing.run(algorithm, problem, arrays)
                bound = algorithm.error_bound(problem)
                shared = shared or outputs  # timed runs may write over one another's results
                run = _launcher(algorithm.plan(problem), arrays, shared)
                once = _once(run)
            except Exception as failure:  # noqa: BLE001 - one that is registered by a user may fail in any way
                outcomes[key] = Outcome(failure=f"{type(failure).__name__}: {failure}")
                continue
            try:
                outcomes[key] = Outcome(error=testing.largest_error(problem, outputs, exact, bound))
            except AssertionError as failure:
                outcomes[key] = Outcome(failure=str(failure), wrong=True)
                continue
            runs[key] = run
            # A promise that is not kept must not keep the others out.
            best = min(best, max(seconds, once))
        for key, seconds in tuning.measure(runs, rest=machine().threads() > 1).items():
            outcomes[key] = outcomes[key]._replace(seconds=seconds)
    return outcomes


def _drawn(problem: AnyProblem) -> tuple[tuple[Any, ...], testing.Exact]:
    """Return random inputs and the reference's answer, which is not zero everywhere if that can be helped."""
    for seed in range(_DRAWS):
        arrays = testing.random_inputs(problem, seed)
        exact = testing.exact(problem, arrays)
        if exact.results[0].any():
            break
    return arrays, exact


def _once(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _launcher(plan: Plan, arrays: tuple[Any, ...], outputs: tuple[Any, ...]) -> Callable[[], None]:
    inputs = plan.packed(arrays)
    return lambda: plan.run(inputs, outputs)
