"""Depthwise convolution of short rows: planes in the lanes of vectors, turned before and after."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.turned_work import Work
from fastconv.backends.cpu.depthwise.work import NEAR
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds a call takes beside its loops, and packing a weight.
_OVERHEAD, _PACKING = 3e-6, 2e-6
# What is left of the cycles of turning and summing, one tile's being still under way when the next one's begin, where
# planes are turned for one output each.
_OVERLAPPED = 0.77


class DepthwiseTurned(Algorithm):
    """Planes in the lanes of vectors, be they channels or images; any stride, dilation and zero padding."""

    name = "depthwise_turned"
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
        if problem.layout != "channels_first":
            return "turns planes, which channels-last maps are not"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in mode {problem.padding_mode!r}"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        packed = 0 if work.problem.prepacked else 2 * work.packed_size * work.size  # repeated, then packed
        return packed + work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        packing = 0.0 if work.problem.prepacked else _PACKING + work.pack_cycles / machine.hertz
        computing, moving = work.cycles / machine.hertz, machine.moving(problem.bytes)
        computing *= _OVERLAPPED if work.multiplier == 1 else 1.0
        # Many planes are read side by side, which is not fetched ahead: what did not stay near is waited for.
        exposed = min(1.0, problem.bytes / (NEAR * work.cache))
        together = max(computing, moving) + exposed * min(computing, moving)
        return _OVERHEAD + packing + work.handing_over(machine) + together / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.turned_run import TurnedRunner

        runner = TurnedRunner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    """Return a problem with the planes of all images in one line, where that fills lanes enough."""
    assert isinstance(problem, ConvProblem)
    apart = Work.of(problem)
    if problem.n == 1 or problem.ic % apart.simd.lanes(apart.size) == 0:
        return apart
    folded = Work(problem, apart.simd, apart.workers, apart.cache, folded=True)
    return min(apart, folded, key=lambda work: work.cycles + (0 if problem.prepacked else work.pack_cycles))
