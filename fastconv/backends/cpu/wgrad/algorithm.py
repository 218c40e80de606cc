"""The weight gradient: a product of dy and shifted x on a register-tiled micro-kernel, with no column matrix."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.wgrad.work import Work
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem


class Wgrad(Algorithm):
    """Output channels in the lanes of vectors, inputs broadcast; any stride, dilation, padding and memory order."""

    name = "wgrad"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem):
            return "solves convolutions only"
        if problem.direction != "wgrad":
            return "computes the weight's gradient only"
        if problem.is_local:
            return "shares weights between positions, which a locally connected layer does not"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return _work(problem).scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _work(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.wgrad.run import Runner

        return Plan(problem, self, Runner(_work(problem)).run)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, simd(), machine().threads(), machine().l2_bytes)
