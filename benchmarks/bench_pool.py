"""Pools: every algorithm and peer on layers of the networks."""

from collections.abc import Callable

from benchmarks.conftest import Trial
from fastconv.problem import PoolProblem

KIND = PoolProblem


def test_pool(trial: Trial, clock: Callable[[Trial], None]) -> None:
    clock(trial)
