"""Grouped convolution with few output channels a group: lanes are pixels, so that none of them is idle."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.grouped.work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

# Of the time that moving takes, what is not hidden behind arithmetic.
_EXPOSED = 0.6
_OVERHEAD = 8e-6
# More output channels a group fill the lanes of a vector themselves.
_MOST_OUTPUTS = 32


class Grouped(Algorithm):
    """Few output channels a group; any stride, dilation, kernel, padding mode and memory order."""

    name = "grouped"
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
        if problem.oc // problem.groups > _MOST_OUTPUTS:
            return f"takes at most {_MOST_OUTPUTS} output channels a group, not {problem.oc // problem.groups}"
        if problem.dtype != problem.accumulator:
            return f"computes in float32 and float64, not on {problem.dtype}"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        computing = work.cycles / machine.hertz
        return _OVERHEAD + (computing + _EXPOSED * machine.moving(problem.bytes)) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.grouped.run import GroupedRunner

        runner = GroupedRunner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, simd(), machine().threads(), machine().l2_bytes)
