"""The input gradient of depthwise convolution: kernels read backwards, phases of a stride woven in registers."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise import walked_work
from fastconv.backends.cpu.depthwise import work as tiled_work
from fastconv.backends.cpu.depthwise.algorithm import Depthwise
from fastconv.backends.cpu.depthwise.walked import DepthwiseWalked
from fastconv.backends.cpu.dgrad.depthwise_work import Work
from fastconv.backends.cpu.dgrad.shifts import paddings, refuses_all_but_woven, stacked_problem
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

# Seconds of a call beside its loops, and of looking for weights that are not finite.
_OVERHEAD, _LOOKING = 8e-6, 4e-6

# What a tile's code unrolls, at most.
_MOST_TAPS, _MOST_PHASES = 96, 64

_TILED, _WALKED = Depthwise(), DepthwiseWalked()


class DepthwiseDgrad(Algorithm):
    """Columns in the lanes of vectors; strides of up to eight, dilation, one to three dimensions."""

    name = "dgrad_depthwise2"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but_woven(problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if not problem.groups == problem.ic == problem.oc:
            return (
                f"takes one input and one output channel a group, not {problem.ic} and {problem.oc} in {problem.groups}"
            )
        if _is_forward(problem):
            return _refuses_forward(problem)
        if math.prod(problem.kernel_size) > _MOST_TAPS or math.prod(problem.stride) > _MOST_PHASES:
            return f"holds the code of at most {_MOST_TAPS} taps and {_MOST_PHASES} phases"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        if _is_forward(problem):
            return _forward(problem).workspace_bytes(stacked_problem(problem))
        return Work.of(problem).zero_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        assert isinstance(problem, ConvProblem)
        if _is_forward(problem):
            return _LOOKING + _forward(problem).predict(stacked_problem(problem), machine)
        work = Work.of(problem)
        workers = work.units / -(-work.units // work.workers)
        return _OVERHEAD + max(work.cycles / machine.hertz, machine.moving(problem.bytes)) / workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.dgrad.depthwise_loops import CellsRunner
        from fastconv.backends.cpu.dgrad.depthwise_run import BackwardsRunner, BackwardsWalkedRunner

        assert isinstance(problem, ConvProblem)
        runner: BackwardsRunner | BackwardsWalkedRunner | CellsRunner
        if not _is_forward(problem):
            runner = CellsRunner(Work.of(problem))
        elif _forward(problem) is _WALKED:
            runner = BackwardsWalkedRunner(problem, walked_work.Work.of(stacked_problem(problem)))
        else:
            runner = BackwardsRunner(problem, tiled_work.Work.of(stacked_problem(problem)))
        return Plan(problem, self, runner.run, runner.pack)


def _is_forward(problem: AnyProblem) -> bool:
    """Whether the gradient is a forward convolution of ``dy``."""
    return isinstance(problem, ConvProblem) and math.prod(problem.stride) == 1


def _forward(problem: ConvProblem) -> Algorithm:
    """Return which forward algorithm computes the gradient: the one that is predicted to be faster."""
    stacked, here = stacked_problem(problem), machine()
    if _WALKED.refuses(stacked) is not None:
        return _TILED
    return min(_WALKED, _TILED, key=lambda algorithm: algorithm.predict(stacked, here))


def _refuses_forward(problem: ConvProblem) -> str | None:
    """Return why a gradient at a stride of one is refused."""
    if problem.ndim != 2:
        return f"steps by one row and column in two dimensions, not in {problem.ndim}"
    if problem.dilation != (1, 1) or max(problem.kernel_size) > 7 or min(problem.kernel_size) < 2:
        return f"takes kernels of two to seven rows and columns, not {problem.kernel_size} by {problem.dilation}"
    if min(map(min, paddings(problem))) < 0:
        return "reads the whole of the output's gradient"
    return None
