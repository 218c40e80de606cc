"""The input gradient of grouped convolution: all phases of the stride from one slab, weights read where they are."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.dgrad.grouped_work import Work
from fastconv.backends.cpu.dgrad.shifts import paddings, refuses_all_but_woven
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds of a call, and of looking for weights that are not finite.
_OVERHEAD, _LOOK_RATE = 10e-6, 60e9
# More channels a group fill the lanes of a vector themselves.
_MOST_CHANNELS = 32


class GroupedDgrad(Algorithm):
    """Few channels a group; strides of up to eight, on lines and planes."""

    name = "dgrad_grouped2"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but_woven(problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim > 2:
            return f"computes in one and two dimensions, not in {problem.ndim}"
        if problem.ic // problem.groups > _MOST_CHANNELS:
            return f"takes at most {_MOST_CHANNELS} input channels a group, not {problem.ic // problem.groups}"
        if min(map(min, paddings(problem))) < 0:
            return "reads the whole of the output's gradient"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        assert isinstance(problem, ConvProblem)
        # What of the slab the cache cannot hold is written, and read again.
        beyond = 2 * work.units * max(0, work.slab_bytes - work.cache)
        moving = machine.moving(problem.bytes + beyond, work.rows_read)
        return _OVERHEAD + (work.cycles / machine.hertz + moving + work.weight_bytes / _LOOK_RATE) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.dgrad.grouped_run import GroupedDgradRunner

        runner = GroupedDgradRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
