"""Depthwise convolution: every input channel on its own, at the speed of the memory it moves."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

_OVERHEAD = 10e-6
_HERTZ = 3e9


class Depthwise(Algorithm):
    """Columns in the lanes of vectors, or channels where these are neighbours; any stride, dilation and padding."""

    name = "depthwise"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem):
            return "solves convolutions only"
        if problem.direction != "fprop":
            return "computes forward only"
        if problem.is_local:
            return "shares weights between positions, which a locally connected layer does not"
        if problem.ndim not in (1, 2):
            return f"computes in one and two dimensions, not in {problem.ndim}"
        if problem.groups != problem.ic:
            return f"takes one input channel a group, not {problem.ic // problem.groups}"
        if problem.dtype != problem.accumulator:
            return f"computes in float32 and float64, not on {problem.dtype}"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.workers * work.slab_bytes + work.packed_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        return _OVERHEAD + max(work.cycles / _HERTZ, problem.bytes / machine.bandwidth) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.run import Runner

        return Plan(problem, self, Runner(_work(problem)).run)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, simd(), machine().threads(), machine().l2_bytes)
