"""Pools in one pass over memory: windows and whole maps, and their gradients."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.pool.gradient_work import GradientWork
from fastconv.backends.cpu.pool.windows import dense, lifted
from fastconv.backends.cpu.pool.work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.work import workers_for
from fastconv.machine import Machine
from fastconv.problem import PoolProblem

_OVERHEAD = 8e-6
# Bytes a cycle that a core moves from and to its second-level cache.
_NEAR = 24.0
# The third-level cache: a core's share in second-level caches, and its rate in times that of memory.
_SHARED, _SHARED_RATE = 8, 4.0
# Indices are 32-bit integers beside 32-bit elements.
_LARGEST = 2**31 - 1


class Pool(Algorithm):
    """Columns in the lanes of vectors, or channels where these are neighbours; rows of a window first, then columns."""

    name = "pool"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, PoolProblem):
            return "solves pools, not convolutions"
        if problem.direction != "fprop":
            return "computes forward only"
        if problem.kind in ("max_unpool", "unfold"):
            return f"reduces windows, which {problem.kind} does not"
        if max(math.prod(problem.input_size), *problem.input_size) > _LARGEST:
            return "counts the elements of a map in 32 bits"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return work.workers * work.line_bytes + work.table_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        return _OVERHEAD + moving(problem.bytes, work.cycles, work.workers, machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.pool.run import Runner

        return Plan(problem, self, Runner(_work(problem)).run)


class PoolGradient(Algorithm):
    """Each element gathers from the windows that read it; maxima of overlapping windows are sent by their indices."""

    name = "pool_gradient"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, PoolProblem):
            return "solves pools, not convolutions"
        if problem.kind == "unfold" or (problem.direction == "fprop" and problem.kind != "max_unpool"):
            return "computes gradients of pools, and unpools"
        if _gradient(problem).shares and not all(map(dense, lifted(problem))):
            return "takes averages and norms of neighbours, not of dilated windows"
        if max(math.prod(problem.input_size), *problem.input_size) > _LARGEST:
            return "counts the elements of a map in 32 bits"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _gradient(problem)
        return work.workers * work.line_bytes + work.table_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _gradient(problem)
        return _OVERHEAD + moving(problem.bytes, work.cycles, work.workers, machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.pool.gradient_run import GradientRunner

        return Plan(problem, self, GradientRunner(_gradient(problem)).run)


def moving(size: int, cycles: float, workers: int, machine: Machine) -> float:
    """Return the seconds that workers need for so many cycles, and for bytes that come from where they fit."""
    near = size / (_NEAR * machine.hertz)
    beyond = max(0.0, size - workers * machine.l2_bytes)
    shared = min(beyond, _SHARED * machine.l2_bytes)
    far = (shared / _SHARED_RATE + beyond - shared) / machine.bandwidth
    return max(cycles / machine.hertz, near + far) / workers


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, PoolProblem)
    return Work(problem, simd(), workers_for(problem))


def _gradient(problem: AnyProblem) -> GradientWork:
    assert isinstance(problem, PoolProblem)
    return GradientWork(problem, simd(), workers_for(problem))
