"""What the dispatcher asks of depthwise convolution."""

from __future__ import annotations

import math

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.depthwise import run
from fastconv.backends.cuda.depthwise.work import THREADS, Work
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import ConvProblem

_MOST = 2**31
_MOST_TAPS = 2000


class Depthwise(CudaAlgorithm):
    """One input channel a group: each element is read once, and tiles of planes or vectors of channels are shared."""

    name = "depthwise"

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction == "bgrad":
            return "solves convolutions and the gradients of their inputs and weights only"
        if problem.is_local:
            return "shares weights between positions, which a locally connected layer does not"
        if problem.ndim not in (1, 2):
            return f"computes in one and two dimensions, not in {problem.ndim}"
        if problem.groups != problem.ic:
            return f"takes one input channel a group, not {problem.ic // problem.groups}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in padding_mode {problem.padding_mode!r}"
        taps = math.prod(problem.kernel_size)
        if taps > _MOST_TAPS:
            return f"a kernel of more than {_MOST_TAPS} elements does not fit into shared memory"
        channels = max(problem.ic, problem.oc)
        if channels > launching.MOST_ROWS:
            return f"more than {launching.MOST_ROWS} channels"
        positions = max(math.prod(problem.input_size), math.prod(problem.output_size))
        if max(problem.n * channels, problem.n * positions, channels * taps) >= _MOST:
            return "more than 2^31 planes or positions"
        work = _work(problem)
        if not work.fits:
            return f"a window of {' x '.join(map(str, work.window))} does not fit into the {THREADS} threads' tile"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return _work(problem).partial_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _work(problem).seconds

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        return run.prepare(_work(problem), strides, alignment)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem, launching.launcher().properties(), current().max_workspace)
