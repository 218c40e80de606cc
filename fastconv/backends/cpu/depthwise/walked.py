"""Depthwise convolution with 3x3 kernels: strips of columns, walked down with weights and sums in registers."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.walked_work import KERNEL, STRIDES, Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds a call takes beside its loops.
_OVERHEAD = 2e-6


class DepthwiseWalked(Algorithm):
    """Strips of columns of 3x3 kernels, from the top of a plane to its bottom; steps of one or two, zero padding."""

    name = "depthwise_walked"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.kernel_size != (KERNEL, KERNEL) or problem.dilation != (1, 1):
            return f"slides kernels of {KERNEL}x{KERNEL} without dilation"
        if problem.stride not in [(step, step) for step in STRIDES]:
            return f"moves by one or two on both axes, not by {problem.stride}"
        if not problem.groups == problem.ic == problem.oc:
            return f"takes a channel a group, not {problem.ic // problem.groups} and {problem.oc // problem.groups}"
        if problem.layout != "channels_first":
            return "takes columns that are neighbours in memory"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in mode {problem.padding_mode!r}"
        if not set(problem.padding[1]) <= {0, 1}:
            return f"looks for at most one column of padding at either end, not {problem.padding[1]}"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return Work.of(problem).zero_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        # Rows are fetched while others are summed.
        moving = machine.moving(problem.bytes, work.pieces)
        return _OVERHEAD + max(work.cycles / machine.hertz, moving) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.walked_run import WalkedRunner

        runner = WalkedRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
