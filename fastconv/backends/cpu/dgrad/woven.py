"""The input gradient of strided convolution: all phases of the stride from one slab, woven as they are stored."""

from __future__ import annotations

import math
from functools import lru_cache

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.dgrad.phases import contributions
from fastconv.backends.cpu.dgrad.shifts import paddings
from fastconv.backends.cpu.dgrad.woven_work import Work
from fastconv.backends.cpu.phases import MOST_WAYS
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import KEPT, refuses_all_but
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds of a call, and of one that packs the weight.
_OVERHEAD, _PACKING = 4e-6, 8e-6
_EFFICIENCY = 0.97
# Seconds for a line of a packed weight that does not stay near: phases and blocks lie far apart.
_WAITING = 8e-9
# Of the shorter of computing and moving, what is not hidden behind the other.
_EXPOSED = 0.25


class WovenDgrad(Algorithm):
    """By implicit GEMM, phase by phase of a block of channels; columns move by two to eight."""

    name = "dgrad_woven"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("dgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.layout == "channels_last" or problem.ndim == 0 or not 1 < problem.stride[-1] <= MOST_WAYS:
            return f"weaves two to {MOST_WAYS} neighbouring columns"
        if problem.padding_mode != "zeros":
            return f"adds up no border that the padding mode {problem.padding_mode!r} read twice"
        if problem.residual:
            return "adds no residual"
        some, every = contributions(problem)
        if not every and (problem.bias != "none" or problem.activation):
            return "leaves phases to which nothing contributes zero, without a bias or an activation"
        if not some:
            return "nothing contributes to the gradient"
        if min(map(min, paddings(problem))) < 0:
            return "reads the whole of the output's gradient"
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        assert isinstance(problem, ConvProblem)
        packed = 0 if problem.prepacked else work.packed_size * work.size
        return packed + work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        assert isinstance(problem, ConvProblem)
        packing = 0.0
        if not problem.prepacked:
            packed = work.packed_size * work.size
            computing, moving = work.pack_cycles / machine.hertz, machine.moving(2 * packed)
            if 2 * packed > machine.l2_bytes:
                moving += packed / LINE * _WAITING * min(1.0, 2 * packed / (KEPT * machine.l2_bytes))
            packing = _PACKING + (computing + moving) / work.workers
            packing += machine.handing(packed) if work.workers > 1 else 0.0
        computing = work.cycles / machine.hertz / _EFFICIENCY
        weight = math.prod(problem.w_shape) * problem.itemsize
        moving = machine.moving(problem.bytes - weight) + machine.reading(weight)
        together = max(computing, moving) + _EXPOSED * min(computing, moving)
        return _OVERHEAD + packing + together / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.dgrad.woven_run import WovenRunner

        runner = WovenRunner(_work(problem))
        return Plan(problem, self, runner.run, runner.pack)


def _work(problem: AnyProblem) -> Work:
    return _work_of(*Work.parameters(problem))


# Predicted, planned and asked for its workspace, one after the other: each phase's tile is chosen once.
_work_of = lru_cache(maxsize=16)(Work)
