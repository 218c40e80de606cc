"""The gradient of a bias: sums over all but the channels, at the speed of memory."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.work import refuses_halves, workers_for
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD = 8e-6


class BiasGradient(Algorithm):
    """Vectors summed in a fixed order, one channel or some neighbours after the other."""

    name = "bias_gradient"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "bgrad":
            return "computes the gradient of a bias only"
        if problem.bias != "channel":
            return "sums over positions, each of which has a bias of its own here"
        return refuses_halves(problem)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _OVERHEAD + machine.reading(problem.bytes) / workers_for(problem)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.bias_gradient.run import Runner

        assert isinstance(problem, ConvProblem)
        return Plan(problem, self, Runner(problem, workers_for(problem)).run)
