"""Locally connected layers: every output position has a matrix of its own, which is read once."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.local.work import Work
from fastconv.machine import Machine
from fastconv.problem import ConvProblem


class Local(Algorithm):
    """A position's matrix times the windows of the batch, its transpose, or their outer product."""

    name = "local"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or not problem.is_local:
            return "solves locally connected layers only"
        if problem.direction == "bgrad":
            return "computes no bias gradient"
        if problem.direction == "dgrad":
            if problem.bias != "none" or problem.residual or problem.activation is not None:
                return "computes the plain input gradient"
            if problem.padding_mode != "zeros":
                return f"adds up no border that the padding mode {problem.padding_mode!r} read twice"
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return Work.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.local.run import Runner
        from fastconv.backends.cpu.scratch import contiguous

        return Plan(problem, self, Runner(Work.of(problem)).run, contiguous)
