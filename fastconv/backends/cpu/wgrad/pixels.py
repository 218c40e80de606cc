"""The weight gradient of few input channels: pixels in the lanes, so that neither x nor dy is transposed."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.wgrad.pixels_work import Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD = 8e-6
# Of the shorter of computing and moving, what is not hidden behind the other.
_EXPOSED = 0.25
# More input channels a group are worth what it takes to transpose them.
_MOST_INPUTS = 32
# Columns further apart are brought together one by one, which takes as long as to transpose them.
_MOST_APART = 4


class PixelsWgrad(Algorithm):
    """Few input channels a group; rows padded with zeros, at most four columns apart."""

    name = "wgrad_pixels"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim not in (1, 2):
            return f"computes in one and two dimensions, not in {problem.ndim}"
        if math.prod(problem.kernel_size) == 1:
            return "takes kernels of more than one position"
        if problem.ic // problem.groups > _MOST_INPUTS:
            return f"takes at most {_MOST_INPUTS} input channels a group, not {problem.ic // problem.groups}"
        if problem.stride[-1] > _MOST_APART:
            return f"steps by at most {_MOST_APART} columns, not by {problem.stride[-1]}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in mode {problem.padding_mode!r}"
        if problem.layout == "channels_last":
            return "takes columns that are neighbours, not channels"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        uneven = -(-work.units // work.workers) * work.workers / work.units
        computing, moving = work.cycles * uneven / machine.hertz, machine.reading(work.read)
        return _OVERHEAD + (max(computing, moving) + _EXPOSED * min(computing, moving)) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.wgrad.pixels_run import PixelsRunner

        return Plan(problem, self, PixelsRunner(Work.of(problem)).run)
