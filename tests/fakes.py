"""Algorithms for tests of choice: the reference, at the speed and with the mistakes that a test asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastconv import Algorithm, Plan, PoolProblem, registry
from fastconv.notation import parse_problem

# A plain problem of every kind that the textbooks teach.
GENERAL = (
    "linear c4 oc2",
    "conv2d c2 i8 oc2 k3 s2 p1 bias relu",
    "conv2d c2 i8 oc2 k3 d2 g2",
    "locally_connected2d c2 i8 oc2 k3",
    "max_pool2d c2 i8 k3 s2 p1",
    "avg_pool2d c2 i8 k2",
    "lp_pool2d c2 i8 k2",
    "adaptive_avg_pool2d c2 i8 o1",
    "adaptive_max_pool2d c2 i8 o2",
    "unfold c2 i8 k3",
)


class Fake(Algorithm):
    """The reference under another name.

    Parameters
    ----------
    name : str
    predicted, seconds : float
        What it says a run takes, and how long it sleeps in every run.
    refusal : str, optional
        Why it refuses every problem.
    workspace : int
        The scratch memory it asks for.
    spoil : callable, optional
        ``spoil(problem, outputs)`` makes the result wrong.
    deterministic, strict : bool
    """

    backend = "fake"

    def __init__(
        self,
        name: str,
        *,
        predicted: float = 1e-9,
        seconds: float = 0.0,
        refusal: str | None = None,
        workspace: int = 0,
        spoil: Callable[[Any, tuple[Any, ...]], None] | None = None,
        deterministic: bool = True,
        strict: bool = True,
    ) -> None:
        self.name, self.deterministic, self.strict = name, deterministic, strict  # type: ignore[misc]
        self.predicted, self.seconds, self.refusal = predicted, seconds, refusal
        self.workspace, self.spoil = workspace, spoil
        self.plans = self.runs = self.packs = 0

    def refuses(self, problem: Any) -> str | None:
        return self.refusal

    def predict(self, problem: Any, machine: Any) -> float:
        return self.predicted

    def workspace_bytes(self, problem: Any) -> int:
        return self.workspace

    def plan(self, problem: Any) -> Plan:
        self.plans += 1
        reference = registry.find(reference_key(problem)).plan(problem)

        def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            self.runs += 1
            time.sleep(self.seconds)
            reference.run(inputs, outputs)
            if self.spoil is not None:
                self.spoil(problem, outputs)

        def pack(w: Any) -> Any:
            self.packs += 1
            return w.copy()

        return Plan(problem, self, run, pack)


def reference_key(problem: Any) -> str:
    """Return the key of the reference algorithm for a problem."""
    return "reference/windows" if isinstance(problem, PoolProblem) else "reference/einsum"


def general_backends() -> list[str]:
    """Return the backends that solve all of `GENERAL`, forward and backward; `test_registry` checks the others."""
    algorithms = registry.algorithms()
    forward = [parse_problem(text) for text in GENERAL]
    wanted = forward + [p.replace(direction="dgrad") for p in forward]
    wanted.append(parse_problem("locally_connected2d:bgrad c2 i8 oc2 k3 bias_per_position"))
    return [
        backend
        for backend in dict.fromkeys(a.backend for a in algorithms)
        if all(any(a.backend == backend and a.refuses(p) is None for a in algorithms) for p in wanted)
    ]


@contextmanager
def registered(*algorithms: Algorithm) -> Iterator[None]:
    """Have algorithms registered for a while."""
    for algorithm in algorithms:
        registry.register(algorithm)
    try:
        yield
    finally:
        for algorithm in algorithms:
            registry.unregister(algorithm.key)
