"""Dense convolution with columns in the lanes of vectors."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.planes.work import STRIDES, Work
from fastconv.backends.cpu.registers import simd
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

_OVERHEAD = 12e-6
_PACK_RATE = 1e9  # weights a second


class Planes(Algorithm):
    """Columns in the lanes of vectors: nothing is turned round, and no lane idles where channels are few."""

    name = "planes"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "fprop" or not problem.ndim:
            return "solves convolutions forward only"
        if problem.is_local or problem.groups > 1:
            return "needs all channels in one group, with weights shared between positions"
        if problem.layout != "channels_first" and problem.ic * problem.oc > 1:
            return "needs columns that lie together"
        if problem.stride[-1] not in STRIDES:
            return f"needs a stride of {' or '.join(map(str, STRIDES))} between columns"
        if problem.dtype != problem.accumulator:
            return f"computes in float32 and float64, not on {problem.dtype}"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        packed = 0 if work.problem.prepacked else work.packed_size * work.size
        return packed + work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        packing = 0.0 if work.problem.prepacked else work.packed_size / _PACK_RATE
        computing = work.cycles / machine.hertz
        moving = machine.moving(problem.bytes)
        return _OVERHEAD + packing + max(computing, moving) / min(work.workers, work.units)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.planes.run import PlanesRunner

        runner = PlanesRunner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, simd(), machine().threads(), machine().l2_bytes)
