"""1x1 convolution as a matrix product in place."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.pointwise.work import Work
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

_OVERHEAD = 10e-6
_EFFICIENCY = 0.85
_PACK_RATE = 1.5e9  # weights a second
_HERTZ = 3e9


class Pointwise(Algorithm):
    """Pixels in the lanes of vectors: for maps in channels-first order, whose pixels lie together."""

    name = "pointwise"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "fprop":
            return "solves 1x1 convolutions forward only"
        if set(problem.kernel_size) != {1} or set(problem.stride) != {1} or any(map(any, problem.padding)):
            return "needs a kernel of 1, a stride of 1 and no padding"
        if problem.is_local or problem.layout != "channels_first":
            return "needs pixels that lie together and share their weights"
        if problem.dtype != problem.accumulator:
            return f"computes in float32 and float64, not on {problem.dtype}"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return 0 if work.problem.prepacked else work.packed_size * work.problem.itemsize

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        packing = 0.0 if work.problem.prepacked else work.packed_size / _PACK_RATE
        moving = problem.bytes / machine.bandwidth
        return _OVERHEAD + packing + max(work.cycles / _HERTZ / _EFFICIENCY, moving) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.pointwise.run import Runner

        runner = Runner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, machine().threads(), machine().l2_bytes)
