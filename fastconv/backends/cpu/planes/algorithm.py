"""Dense convolution with columns in the lanes of vectors."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.phases import MOST_WAYS
from fastconv.backends.cpu.planes.work import Work
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD, _PACKING = 3e-6, 2e-6
_PACK_RATE = 1.5e9  # weights a second
# Seconds for a line of output that leaves the second-level cache, written in turns with those of many other channels:
# no more of them are on their way at once than there is room for.
_WRITTEN = 6e-9


class Planes(Algorithm):
    """Columns in the lanes of vectors: nothing is turned round, and no lane idles where channels are few."""

    name = "planes"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if not problem.ndim:
            return "slides over spatial axes, of which a linear layer has none"
        if problem.groups > 1:
            return "needs all channels in one group"
        if problem.layout != "channels_first" and problem.ic * problem.oc > 1:
            return "needs columns that lie together"
        if problem.stride[-1] > MOST_WAYS:
            return f"needs a stride of at most {MOST_WAYS} between columns"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        packed = 0 if work.problem.prepacked else work.packed_size * work.size
        return packed + work.workers * work.slab_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        packing = 0.0 if work.problem.prepacked else _PACKING + work.packed_size / _PACK_RATE
        computing = work.cycles / machine.hertz
        # Lines are copied before they are used: nothing hides behind anything else.
        moving = machine.moving(work.moved, work.pieces) + work.spilled / machine.bandwidth
        output = math.prod(problem.y_shape) * problem.itemsize
        blocks = work.blocks(work.rows)
        writing = _WRITTEN * output / LINE * (1 - 1 / blocks) if output > machine.l2_bytes else 0.0
        together = max(computing + moving, writing)
        return _OVERHEAD + packing + work.handing_over(machine) + together / min(work.workers, work.units)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.planes.run import PlanesRunner

        runner = PlanesRunner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
