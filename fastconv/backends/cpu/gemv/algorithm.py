"""Fully connected layers as products of a matrix and a few vectors, on the weight as it lies in memory."""

from __future__ import annotations

from typing import ClassVar

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.gemv.batch_work import BatchWork
from fastconv.backends.cpu.gemv.work import Work, sees_all
from fastconv.backends.cpu.work import refuses_all_but
from fastconv.machine import Machine
from fastconv.problem import ConvProblem


class Gemv(Algorithm):
    """Lanes run along the inputs, which lie together in the weight: it is read once, and not packed."""

    name = "gemv"
    backend = "numba"
    # Whether the weight's outputs lie together, and not its inputs.
    across: ClassVar[bool] = False

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        why = sees_all(problem)
        if why is not None:
            return why
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return Work.of(problem).seconds(machine, self.across)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.gemv.run import GemvRunner

        runner = GemvRunner(Work.of(problem), self.across)
        return Plan(problem, self, runner.run, runner.pack)


class GemvAcross(Gemv):
    """The same on a weight that was transposed: lanes run along the outputs, which lie together in it."""

    across = True


class GemvBatch(Gemv):
    """Lanes are images, and elements of the weight are broadcast: for some images and few inputs."""

    name = "gemv_batch"

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = BatchWork.of(problem)
        return work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return BatchWork.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.gemv.batch_run import BatchRunner

        runner = BatchRunner(BatchWork.of(problem), self.across)
        return Plan(problem, self, runner.run, runner.pack)


class GemvBatchAcross(GemvBatch):
    """The same on a weight that was transposed."""

    across = True
