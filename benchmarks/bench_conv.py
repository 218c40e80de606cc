"""Convolutions: every algorithm and peer on layers of the networks."""

from collections.abc import Callable

from benchmarks.conftest import Trial
from fastconv.problem import ConvProblem

KIND = ConvProblem


def test_conv(trial: Trial, clock: Callable[[Trial], None]) -> None:
    clock(trial)
