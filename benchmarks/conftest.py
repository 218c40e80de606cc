"""What ``pytest benchmarks`` measures, and how: pytest-benchmark's clock on the cases and entrants of the other jobs.

A test is one algorithm or peer on one layer, checked against the reference before it is timed. By default there is one
layer of every network; ``--network`` measures all distinct layers of one instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from benchmarks import cases, peers
from benchmarks.cases import Case
from benchmarks.measure import Entrant, check, entrants, pinned
from fastconv import networks, testing
from fastconv.algorithm import AnyProblem
from fastconv.notation import format_problem
from fastconv.problem import ConvProblem


class Trial(NamedTuple):
    """One entrant on one case."""

    case: Case
    entrant: Entrant


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastconv")
    group.addoption("--network", action="append", default=[], help="all distinct layers of this network, or of all")
    group.addoption("--batch", type=int, default=1, help="batch size (default: 1)")
    group.addoption("--direction", default="fprop", choices=("fprop", "dgrad", "wgrad", "bgrad"))
    group.addoption("--threads", type=int, default=1, help="for every algorithm and peer (default: 1)")
    group.addoption("--peers", default="all", help="all (default), none, or names with commas between them")
    group.addoption("--register", action="append", default=[], metavar="MODULE:CLASS", help="measure yours too")


def pytest_configure(config: pytest.Config) -> None:
    for place in config.option.register:
        cases.register(place)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each entrant that a case has; the module says which kind of problem it measures."""
    options = metafunc.config.option
    installed = [peer for peer in peers.select(options.peers.split(",")) if peer.missing() is None]
    with pinned(options.threads):
        trials = [
            Trial(case, entrant)
            for case in _cases(metafunc.module.KIND, options)
            for entrant in entrants(case.problem, installed)
            if entrant.refusal is None
        ]
    metafunc.parametrize("trial", trials, ids=[f"{trial.case.name}-{trial.entrant.name}" for trial in trials])


def _cases(kind: type[AnyProblem], options: Any) -> list[Case]:
    if options.network:
        names = list(networks.NETWORKS) if "all" in options.network else options.network
        found = cases.layers(names, options.batch, options.direction)
    elif kind is ConvProblem:
        found = cases.representatives(options.batch, options.direction)
    else:
        found = cases.heaviest_pools(options.batch, options.direction)
    return [case for case in found if isinstance(case.problem, kind)]


@pytest.fixture
def clock(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Trial], None]:
    """Return what checks and times a trial."""

    def run(trial: Trial) -> None:
        case, entrant = trial
        with pinned(request.config.option.threads):
            inputs, exact = _solved(case.problem)
            launch = entrant.prepare(inputs)
            benchmark.group = case.name
            benchmark.extra_info.update(
                problem=format_problem(case.problem),
                flops=case.problem.flops,
                bytes=case.problem.bytes,
                chosen=entrant.chosen,
                error=check(entrant, case.problem, launch, exact).share,
            )
            benchmark(launch)

    return run


@lru_cache(maxsize=1)
def _solved(problem: AnyProblem) -> tuple[tuple[Any, ...], testing.Exact]:
    """Return inputs and the reference's answer; the trials of a case come one after the other."""
    inputs = testing.random_inputs(problem)
    return inputs, testing.exact(problem, inputs)
