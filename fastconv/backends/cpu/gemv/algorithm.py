"""Fully connected layers as products of a matrix and a few vectors, on the weight as it lies in memory."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.gemv.work import Work
from fastconv.backends.cpu.work import refuses_all_but
from fastconv.machine import Machine
from fastconv.problem import ConvProblem


class Gemv(Algorithm):
    """Lanes run along the inputs, which lie together in the weight: it is read once, and not packed."""

    name = "gemv"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.groups > 1:
            return "needs all channels in one group"
        whole = problem.kernel_size == problem.input_size and all(pad == (0, 0) for pad in problem.padding)
        if not whole and math.prod(problem.input_size) > 1:
            return "needs a kernel that is as large as the input"
        if not whole:
            return "pads nothing"
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return Work.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.gemv.run import GemvRunner

        runner = GemvRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
