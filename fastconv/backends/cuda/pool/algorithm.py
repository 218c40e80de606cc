"""What the dispatcher asks of pools, unpooling, unfold and fold on a GPU: each is one pass over memory, or few."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from fastconv.algorithm import AnyProblem
from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import CudaAlgorithm, Start, Strides
from fastconv.backends.cuda.pool import moves, run
from fastconv.backends.cuda.pool.windows import THREADS, enough_threads, too_large
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import PoolProblem

# Instructions of a thread for an element that a window visits, and for a result. Not measured.
_VISIT, _RESULT = 5, 40


class _WindowAlgorithm(CudaAlgorithm):
    """What these algorithms have in common: bytes and instructions to count."""

    what: ClassVar[str]
    fallback: ClassVar[bool] = True

    def declines(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, PoolProblem) or not self._solves(problem):
            return f"computes {self.what} only"
        if problem.index_dtype != "int64":
            return "reads and writes indices of 64 bits only"
        return too_large(problem)

    @abstractmethod
    def _solves(self, problem: PoolProblem) -> bool:
        """Return whether a problem is of the kind that this algorithm is for."""

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        properties = launching.launcher().properties()
        results = sum(math.prod(operand.shape) for operand in problem.outputs)
        return properties.seconds(
            flops=2 * (_VISIT * problem.macs + _RESULT * results),
            moved=problem.bytes + 3 * self.workspace_bytes(problem),
            blocks=-(-results // THREADS),
            peak=properties.peak("float32"),
            resident=enough_threads(1) // THREADS,
            launches=self._launches(problem),
        )

    def _launches(self, problem: AnyProblem) -> int:
        return 1


class Pool(_WindowAlgorithm):
    """A thread has a few neighbouring windows, or several threads share a large one."""

    name = "pool"
    what = "forward pools"

    def _solves(self, problem: PoolProblem) -> bool:
        return problem.direction == "fprop" and problem.kind not in ("max_unpool", "unfold")

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        assert isinstance(problem, PoolProblem)
        return run.prepare_pool(problem, strides, alignment)


class PoolGradient(_WindowAlgorithm):
    """Every element gathers from the windows that read it: no sum depends on the order of threads."""

    name = "pool_gradient"
    what = "gradients of pools"

    def _solves(self, problem: PoolProblem) -> bool:
        return problem.direction == "dgrad" and problem.kind not in ("max_unpool", "unfold")

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        assert isinstance(problem, PoolProblem)
        return run.prepare_gradient(problem, strides, alignment)


class Unpool(_WindowAlgorithm):
    """Elements lay claim to places, the last one prevails, and places take what is theirs."""

    name = "unpool"
    what = "maximum unpooling and its gradient"

    def _solves(self, problem: PoolProblem) -> bool:
        return problem.kind == "max_unpool"

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, PoolProblem)
        return moves.claim_bytes(problem) * moves.images_at_once(problem, current().max_workspace)

    def _launches(self, problem: AnyProblem) -> int:
        assert isinstance(problem, PoolProblem)
        if problem.direction == "dgrad":
            return 1
        return 3 * -(-problem.n // moves.images_at_once(problem, current().max_workspace))

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        assert isinstance(problem, PoolProblem)
        return moves.prepare_unpool(problem, strides, current().max_workspace)


class Unfold(_WindowAlgorithm):
    """A thread has a window's column, or an element that it gathers from the columns."""

    name = "unfold"
    what = "unfold and fold"

    def _solves(self, problem: PoolProblem) -> bool:
        return problem.kind == "unfold"

    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        assert isinstance(problem, PoolProblem)
        return moves.prepare_unfold(problem, strides)
