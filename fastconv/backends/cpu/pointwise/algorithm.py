"""1x1 convolution as a matrix product."""

from __future__ import annotations

from typing import ClassVar

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.pointwise.work import InPlaceWork, Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem


class Pointwise(Algorithm):
    """Panels of pixels times blocks of the weight; pixels or output channels in the lanes; any stride and layout."""

    name = "pointwise"
    backend = "numba"
    work: ClassVar[type[Work]] = Work

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if set(problem.kernel_size) != {1} or any(max(pad) > 0 for pad in problem.padding):
            return "needs a kernel of 1 and no padding"
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = self.work.of(problem)
        packed = 0 if work.problem.prepacked or work.in_place else work.packed_bytes
        return packed + work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return self.work.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.pointwise.run import PointwiseRunner

        runner = PointwiseRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)


class PointwiseInPlace(Pointwise):
    """Panels of pixels, which are in the lanes, times the weight where it lies: nothing is packed."""

    name = "pointwise_in_place"
    work = InPlaceWork

    def refuses(self, problem: AnyProblem) -> str | None:
        common = super().refuses(problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.layout == "channels_last":
            return "needs pixels that lie together"
        return refuses_halves(problem)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.pointwise.run import InPlaceRunner

        runner = InPlaceRunner(InPlaceWork.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
