"""The weight gradient of fully connected layers: a sum of few outer products, written once and row after row."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.gemv.wgrad_work import Work
from fastconv.backends.cpu.gemv.work import sees_all
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem


class GemvWgrad(Algorithm):
    """Lanes run along the inputs, whose gradients lie together in dw: x and dy are read where they are."""

    name = "gemv_wgrad"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        return sees_all(problem) or refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        work = Work.of(problem)
        copied = problem.layout == "channels_last" and work.taps > 1
        return copied * (problem.n + work.outputs) * work.terms * work.size

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return Work.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.gemv.wgrad_run import Runner

        return Plan(problem, self, Runner(Work.of(problem)).run)
