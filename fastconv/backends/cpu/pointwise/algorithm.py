"""1x1 convolution as a matrix product."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.pointwise.work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem


class Pointwise(Algorithm):
    """Panels of pixels times blocks of the weight; pixels or output channels in the lanes; any stride and layout."""

    name = "pointwise"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "fprop":
            return "solves 1x1 convolutions forward only"
        if problem.is_local:
            return "shares weights between positions, which a locally connected layer does not"
        if set(problem.kernel_size) != {1} or any(max(pad) > 0 for pad in problem.padding):
            return "needs a kernel of 1 and no padding"
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        packed = 0 if work.problem.prepacked else work.packed_bytes
        return packed + work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _work(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.pointwise.run import PointwiseRunner

        runner = PointwiseRunner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, simd(), machine().threads(), machine().l2_bytes)
