"""The weight gradient: a product of dy and shifted x on a register-tiled micro-kernel, with no column matrix."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.wgrad.work import Work
from fastconv.backends.cpu.work import refuses_all_but
from fastconv.machine import Machine


class Wgrad(Algorithm):
    """Output channels in the lanes of vectors, inputs broadcast; any stride, dilation, padding and memory order."""

    name = "wgrad"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        return refuses_all_but("wgrad", problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return Work.of(problem).scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return Work.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.wgrad.run import Runner

        return Plan(problem, self, Runner(Work.of(problem)).run)
