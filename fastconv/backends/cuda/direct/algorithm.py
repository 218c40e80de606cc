"""What the dispatcher asks of direct convolution on CUDA cores."""

from __future__ import annotations

import math
from collections.abc import Callable

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import Arrays, CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.direct import fold, run
from fastconv.backends.cuda.direct.work import Work
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import DTYPES, ConvProblem

_MOST = 2**31
# `Place::beyond` of kernels/direct.cu must be farther away than the longest line.
_LONGEST = 2**30


class Direct(CudaAlgorithm):
    """An implicit matrix product, for every convolution: half types are summed in single precision."""

    name = "direct"
    fallback = True

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction == "bgrad":
            return "solves convolutions and the gradients of their inputs and weights only"
        work = _work(problem)
        if any(work.taps(f) >= _MOST for f in work.phases):
            return "has 2^31 taps and more"
        if _images_at_once(work) < (problem.n if work.is_wgrad else 1):
            return "has 2^31 positions and more"
        if any(axis.size >= _LONGEST for phase in work.phases for axis in phase):
            return "has an axis of 2^30 elements or more"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.partial_bytes(work.choice[2]) + _folded_bytes(work, problem)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        return work.choice[0] + 2 * _folded_bytes(work, problem) / work.properties.bandwidth

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        assert isinstance(problem, ConvProblem)
        work = _work(problem)
        images = _images_at_once(work)
        if images < problem.n:
            return _in_portions(problem, images, lambda part: self.prepare(part, strides, part.itemsize))
        if _is_folded(problem):
            return fold.prepare_folded(work, problem, strides)
        return run.prepare(work, strides, problem.dtype, alignment)


def _images_at_once(work: Work) -> int:
    """Return how many images' positions the kernel counts."""
    of_one = max(work.positions(phase) for phase in work.phases) // work.problem.n
    return min(work.problem.n, (_MOST - 1) // of_one)


def _in_portions(problem: ConvProblem, images: int, prepare: Callable[[ConvProblem], Start]) -> Start:
    """Return what solves a problem so many images at a time."""
    counts = {min(images, problem.n - first) for first in range(0, problem.n, images)}
    starts = {count: prepare(problem.replace(n=count)) for count in counts}
    per_image = [operand.spatial for operand in problem.inputs + problem.outputs]

    def start(inputs: Arrays, outputs: Arrays) -> None:
        for first in range(0, problem.n, images):
            count = min(images, problem.n - first)
            arrays = zip(inputs + outputs, per_image, strict=True)
            parts = tuple(array[first : first + count] if cut else array for array, cut in arrays)
            starts[count](parts[: len(inputs)], parts[len(inputs) :])

    return start


def _is_folded(problem: AnyProblem) -> bool:
    assert isinstance(problem, ConvProblem)
    return problem.direction == "dgrad" and problem.padding_mode != "zeros"


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    gathered = fold.padded(problem) if _is_folded(problem) else problem
    return Work(gathered, launching.launcher().properties(), current().max_workspace)


def _folded_bytes(work: Work, problem: AnyProblem) -> int:
    """Scratch for a gradient over the padded map."""
    return math.prod(work.problem.x_shape) * DTYPES[problem.accumulator] if _is_folded(problem) else 0
