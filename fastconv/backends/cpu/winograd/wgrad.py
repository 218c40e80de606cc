"""The weight gradient by Winograd's minimal filtering: the transposed transforms of the convolution's own."""

from __future__ import annotations

import math
from typing import ClassVar

from fastconv.algorithm import EPSILON, Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.winograd.phases import refuses_steps
from fastconv.backends.cpu.winograd.wgrad_work import Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves, workers_for
from fastconv.geometry import fewest_uses
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

# Seconds of a call, and of a launch.
_OVERHEAD, _LAUNCH = 8e-6, 1.5e-6

# Of the time that x, dy and dw take to move, what arithmetic does not hide; caches' worth that come from no memory.
_EXPOSED, _CACHED = 0.35, 4

# All taps of a filter have errors of about the same size, so none may have a much smaller sum than the others.
_PRODUCTS = 24


def _fewest_products(problem: ConvProblem) -> int:
    """Return how many products that are not with padding are behind an element of the gradient, at least."""
    return problem.n * math.prod(map(fewest_uses, lifted_axes(problem)))


class WinogradWgrad(Algorithm):
    """Tiles of m x m elements of dy by (m+taps-1)^2 multiplications for each pair of channels, not (m taps)^2.

    So for every phase of the stride.
    """

    backend = "numba"
    strict = False
    m: ClassVar[int]
    taps: ClassVar[int]
    # What takes the place of `ERROR_CONSTANT`: the largest met was 20, of as few products as are allowed, where the
    # transforms' own rounding is most of the error.
    constant: ClassVar[float] = 32.0

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.op not in ("conv2d", "conv3d"):
            return f"works on planes, not on {problem.op}"
        steps = refuses_steps(problem, (self.taps,) * 2)
        if steps is not None:
            return steps
        if _fewest_products(problem) < _PRODUCTS:
            return f"a sum of fewer than {_PRODUCTS} products would have the error of its filter's larger ones"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return self._work(problem).scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = self._work(problem)
        moved = max(0, work.problem.bytes - _CACHED * work.cache) / machine.bandwidth / work.workers
        return _OVERHEAD + _LAUNCH * work.launches + work.cycles / machine.hertz + _EXPOSED * moved

    def error_bound(self, problem: AnyProblem) -> float:
        return self.constant * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.winograd.wgrad_run import Runner

        return Plan(problem, self, Runner(self._work(problem)).run)

    def _work(self, problem: AnyProblem) -> Work:
        assert isinstance(problem, ConvProblem)
        return Work(self.m, problem, simd(), workers_for(problem), machine().l2_bytes)


class WinogradWgrad4(WinogradWgrad):
    """F(3x3, 4x4): 4 times fewer multiplications."""

    name = "winograd_wgrad4"
    m, taps = 4, 3


class WinogradWgrad2x5(WinogradWgrad):
    """F(5x5, 2x2): 2.8 times fewer multiplications."""

    name = "winograd_wgrad2_5x5"
    m, taps = 2, 5


class WinogradWgrad4x2(WinogradWgrad):
    """F(2x2, 4x4): 2.6 times fewer multiplications for kernels of 4x4 that step by two, 1.8 times for those of 3x3."""

    name = "winograd_wgrad4_2x2"
    m, taps = 4, 2


class WinogradWgrad3x4(WinogradWgrad):
    """F(4x4, 3x3): 4 times fewer multiplications."""

    name = "winograd_wgrad3_4x4"
    m, taps = 3, 4
