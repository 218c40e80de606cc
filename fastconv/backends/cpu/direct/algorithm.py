"""Direct convolution: implicit GEMM on a register-tiled micro-kernel, with no column matrix in memory."""

from __future__ import annotations

import math
from functools import lru_cache

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.activation import unfused_half
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import KEPT, refuses_all_but, workers_for
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD, _PACKING = 3e-6, 2e-6
_EFFICIENCY = 0.97
# Of the shorter of computing and moving, what is not hidden behind the other: tiles store less than cache lines.
# So of much more, if the weight outgrows the cache: every band of tiles waits for it.
_EXPOSED, _STREAMED = 0.25, 0.75
# Every second element of many short rows, read where it is: nothing fetches it ahead. What comes from beyond the cache
# takes so much longer still.
_SCATTERED, _SKIPPING, _FAR_SKIPPING = 2.0, 1.06, 1.12

# Seconds for a line of input that several blocks of output channels read side by side with those of other channels, a
# few columns at a time, where it has left the caches in between for much else that is read and written; and for a line
# of output that is written as many columns at a time.
_AGAIN = 1.5e-9

# A problem is asked about more than once, and phases of a gradient, by several algorithms, ask about the same.
_work_of = lru_cache(maxsize=64)(Work)


def _work(problem: AnyProblem) -> Work:
    problem, vectors, workers, cache = Work.parameters(problem)
    if workers == 1 and (more := workers_for(problem)) > 1:
        shared = _work_of(problem, vectors, more, cache)
        if shared.packs_blocks:  # nobody waits for what another has packed
            return shared
    return _work_of(problem, vectors, workers, cache)


def _waiting(work: Work) -> float:
    """Return the seconds that one core waits for lines of maps whose input is read where it is, block after block."""
    p = work.problem
    aside = work.staged or work.taps > 1 or p.layout != "channels_first" or math.prod(p.stride) > 1
    if aside or work.blocks == 1 or work.bytes <= work.cache:
        return 0.0
    left = max(0.0, 1.0 - KEPT * work.cache / work.bytes)
    lines = (left * work.blocks * math.prod(p.x_shape) + math.prod(p.y_shape)) * p.itemsize / LINE
    return lines * _AGAIN


class Direct(Algorithm):
    """Output channels in the lanes of vectors; any stride, dilation, kernel, padding mode and memory order."""

    name = "direct"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        return unfused_half(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        # A weight that was transposed is packed whole, even where blocks of others are when their turn comes.
        packed = 0 if work.problem.prepacked else work.packed_bytes
        return packed + work.workers * work.scratch_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        computing = work.cycles / machine.hertz / _EFFICIENCY
        weight = math.prod(problem.w_shape) * problem.itemsize
        moving = machine.moving(work.bytes - weight)
        packing = 0.0
        if work.packs_blocks:
            computing += max(work.pack_cycles / machine.hertz, machine.moving(weight))
        else:
            moving += machine.reading(weight)
            if not work.problem.prepacked:
                packed = machine.moving(2 * work.packed_size * work.size)
                packing = _PACKING + max(work.pack_cycles / machine.hertz, packed) + work.handing_over(machine)
        scattered = not work.staged and problem.stride[-1:] > (1,) and problem.layout == "channels_first"
        exposed = _STREAMED if weight > work.cache and not work.packs_blocks else _EXPOSED
        if scattered:
            written = math.prod(problem.y_shape) * problem.itemsize / (work.bytes - weight)
            exposed = _SCATTERED + (exposed - _SCATTERED) * written
            computing *= _FAR_SKIPPING if work.bytes > work.cache else _SKIPPING
        together = max(computing, moving) + exposed * min(computing, moving)
        return _OVERHEAD + packing + (together + _waiting(work)) / work.busy

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.direct.run import BlockwiseRunner, DirectRunner

        work = _work(problem)
        runner = BlockwiseRunner(work) if work.packs_blocks else DirectRunner(work)
        return Plan(problem, self, runner.run, runner.pack)
