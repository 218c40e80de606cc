"""One thread, and several that share the work: their results are to be the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import Algorithm, testing
from fastconv.algorithm import AnyProblem
from fastconv.backends.cpu import threads


def shared_jobs(work: Callable[[], object]) -> int:
    """Return how many jobs of the CPU engine asked for more threads than the caller while something ran."""
    jobs = 0

    def acquire() -> threads.Board | None:
        nonlocal jobs
        jobs += 1
        return board()

    board = threads.acquire
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "acquire", acquire)
        work()
    return jobs


def check_threads_agree(
    algorithm: Algorithm,
    problem: AnyProblem,
    inputs: tuple[Any, ...] | None = None,
    counts: Sequence[int | None] = (1, 2),
) -> int:
    """Check that no number of threads changes a bit of the outputs, for random inputs unless others are given.

    Returns
    -------
    int
        How many jobs the threads shared, where there were several.

    Raises
    ------
    AssertionError
        If a bit differs.
    """
    inputs = testing.random_inputs(problem) if inputs is None else inputs
    results: list[tuple[Any, ...]] = []
    jobs = 0
    for count in counts:
        with fc.options(threads=count):
            jobs += shared_jobs(lambda: results.append(testing.run(algorithm, problem, inputs)))
    for outputs in results[1:]:
        for first, other in zip(results[0], outputs, strict=True):
            assert np.array_equal(first, other, equal_nan=True), f"{algorithm.key} on {problem}: threads change bits"
    return jobs


def check_threads_share(
    algorithm: Algorithm, problem: AnyProblem, inputs: tuple[Any, ...] | None = None, counts: Sequence[int] = (1, 2)
) -> None:
    """Check the same of a problem that the threads must share, or nothing would be shown."""
    jobs = check_threads_agree(algorithm, problem, inputs, counts)
    assert jobs or max(counts) == 1, f"{algorithm.key} on {problem}: there is nothing to share"
