"""Grouped convolution with few output channels a group: lanes are pixels, so that none of them is idle."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.grouped.work import Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD = 3e-6
# More output channels a group fill the lanes of a vector themselves.
_MOST_OUTPUTS = 32


class Grouped(Algorithm):
    """Few output channels a group; any stride, dilation, kernel, padding mode and memory order."""

    name = "grouped"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim not in (1, 2):
            return f"computes in one and two dimensions, not in {problem.ndim}"
        if problem.oc // problem.groups > _MOST_OUTPUTS:
            return f"takes at most {_MOST_OUTPUTS} output channels a group, not {problem.oc // problem.groups}"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        computing = work.cycles / machine.hertz
        # Rows are copied before they are used: nothing hides behind anything else.
        moving = machine.moving(work.moved, work.rows_read) + work.spilled / machine.bandwidth
        return _OVERHEAD + (computing + moving) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.grouped.run import GroupedRunner

        runner = GroupedRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
