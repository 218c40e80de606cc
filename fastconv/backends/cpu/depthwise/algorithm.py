"""Depthwise convolution: every input channel on its own, at the speed of the memory it moves."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds a call takes beside its loops.
_OVERHEAD = 3e-6
# How much longer than to move them it takes to copy neighbouring channels apart, and back; to read them pixel by pixel
# of many rows, which nothing fetches ahead.
_APART, _SCATTERED = 4.0, 1.3


class Depthwise(Algorithm):
    """Columns in the lanes of vectors, or channels where these are neighbours; any stride, dilation and padding."""

    name = "depthwise"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim == 0:
            return "slides over spatial axes, of which a linear layer has none"
        if problem.groups != problem.ic:
            return f"takes one input channel a group, not {problem.ic // problem.groups}"
        if problem.ndim == 3 and Work.of(problem).slab:
            return "pads volumes with zeros only, and steps by at most two columns there"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        packed = 0 if work.problem.prepacked else work.packed_size * work.size
        return packed + work.workers * work.slab_bytes + work.zero_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        moving = machine.moving(problem.bytes) * (_SCATTERED if work.last else 1.0)
        computing, moving = work.cycles / machine.hertz, moving + work.waiting
        # Of an input that is read for several outputs nothing waits but what is stored, as fast as it is computed.
        together = computing + moving if work.multiplier > 1 or work.last else max(computing, moving)
        copied = _APART * problem.bytes / machine.bandwidth if work.is_copied else 0.0
        return _OVERHEAD + together / work.workers + copied

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.run import DepthwiseRunner

        runner = DepthwiseRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
