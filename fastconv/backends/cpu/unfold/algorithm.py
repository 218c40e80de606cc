"""unfold (im2col) and fold (col2im) in one pass over memory."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.pool.algorithm import moving
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.unfold.work import FoldWork, UnfoldWork, Work
from fastconv.backends.cpu.work import workers_for
from fastconv.machine import Machine, machine
from fastconv.problem import PoolProblem

_OVERHEAD = 8e-6
# Columns are counted in 32 bits.
_LARGEST = 2**31 - 1


class _Columns(Algorithm):
    backend = "numba"
    direction: str
    only: str
    work: type[Work]

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, PoolProblem) or problem.kind != "unfold" or problem.direction != self.direction:
            return self.only
        if max(math.prod(problem.output_size), *problem.input_size) > _LARGEST:
            return "counts the columns of a map in 32 bits"
        return None

    def _work(self, problem: AnyProblem) -> Work:
        assert isinstance(problem, PoolProblem)
        return self.work(problem, simd(), workers_for(problem), machine().l2_bytes)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = self._work(problem)
        return work.workers * work.slab_bytes + work.table_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = self._work(problem)
        return _OVERHEAD + moving(problem.bytes, work.cycles, work.workers, machine)


class Unfold(_Columns):
    """Rows are laid out so that what a kernel position reads is contiguous, and copied once for each position."""

    name = "unfold"
    direction = "fprop"
    only = "computes unfold only"
    work = UnfoldWork

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.unfold.run import UnfoldRunner

        return Plan(problem, self, UnfoldRunner(self._work(problem)).run)


class Fold(_Columns):
    """Each element sums what the kernel positions that read it hold, in vectors along the row."""

    name = "fold"
    direction = "dgrad"
    only = "computes fold only"
    work = FoldWork

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.unfold.run import FoldRunner

        return Plan(problem, self, FoldRunner(self._work(problem)).run)
