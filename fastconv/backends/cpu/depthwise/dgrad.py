"""The input gradient of depthwise convolution that steps by two: phases woven in registers."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.dgrad_work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

# Seconds of a call beside its loops.
_OVERHEAD = 8e-6


class DepthwiseDgrad(Algorithm):
    """Columns in the lanes of vectors; maps that a kernel steps over by two rows and columns."""

    name = "dgrad_depthwise2"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("dgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim != 2 or problem.stride != (2, 2):
            return "steps by two rows and two columns"
        if not problem.groups == problem.ic == problem.oc:
            return "takes one input and one output channel a group"
        if problem.padding_mode != "zeros":
            return f"adds up no border that the padding mode {problem.padding_mode!r} read twice"
        if problem.dilation != (1, 1) or max(problem.kernel_size) > 7 or min(problem.kernel_size) < 2:
            return "takes kernels of two to seven rows and columns, not dilated"
        if problem.bias != "none" or problem.residual or problem.activation is not None:
            return "computes the plain gradient, with no bias, residual or activation"
        if problem.layout == "channels_last":
            return "takes columns that are neighbours, not channels"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return _work(problem).zero_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        assert isinstance(problem, ConvProblem)
        return _OVERHEAD + max(work.cycles / machine.hertz, machine.moving(problem.bytes)) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.dgrad_loops import Runner

        runner = Runner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, simd(), machine().threads(), machine().l2_bytes)
