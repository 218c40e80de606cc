"""What the dispatcher asks of direct convolution on CUDA cores."""

from __future__ import annotations

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.direct import run
from fastconv.backends.cuda.direct.work import Work
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import ConvProblem

_MOST = 2**31


class Direct(CudaAlgorithm):
    """An implicit matrix product, for every convolution: half types are summed in single precision."""

    name = "direct"

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction == "bgrad":
            return "solves convolutions and the gradients of their inputs and weights only"
        if problem.direction == "dgrad" and problem.padding_mode != "zeros":
            return f"padding_mode {problem.padding_mode!r} has no input gradient yet"
        work = _work(problem)
        if any(max(work.positions(f), work.taps(f)) >= _MOST for f in work.phases):
            return "more than 2^31 positions or taps"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.partial_bytes(work.choice[2])

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _work(problem).choice[0]

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        return run.prepare(_work(problem), strides, problem.dtype)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, launching.launcher().properties(), current().max_workspace)
