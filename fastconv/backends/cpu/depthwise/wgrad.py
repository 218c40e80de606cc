"""The weight gradient of depthwise convolution: every kernel position's sum in a vector, each image read once."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves, workers_for
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

# Seconds a call takes beside its loops.
_OVERHEAD = 4e-6


class DepthwiseWgrad(Algorithm):
    """Columns in the lanes of vectors; any dilation, zero padding, columns one or two apart."""

    name = "depthwise_wgrad"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim == 0:
            return "slides over spatial axes, of which a linear layer has none"
        if problem.groups != problem.ic:
            return f"takes one input channel a group, not {problem.ic // problem.groups}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in mode {problem.padding_mode!r}"
        work = _work(problem)
        return f"steps by one or two columns, not by {work.phases}" if work.phases > 2 else refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        # Channels-last arrays are copied.
        copied = 0
        if problem.layout == "channels_last":
            copied = sum(work.size * math.prod(operand.shape) for operand in work.problem.inputs)
        if work.flat:
            return copied + 17 * work.mask_bytes  # made with a byte for each bit, twice
        return work.workers * work.sums_bytes + work.zero_bytes + copied

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        seconds = work.wgrad_cycles / machine.hertz
        copied = 2 * problem.bytes / machine.bandwidth if problem.layout == "channels_last" else 0.0
        # Nothing fetches ahead what lies below one another.
        moving = machine.moving(max(0, problem.bytes - work.cache))
        return _OVERHEAD + (seconds + moving) * -(-problem.oc // work.workers) / problem.oc + copied

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.wgrad_flat import FlatRunner
        from fastconv.backends.cpu.depthwise.wgrad_loops import Runner

        work = _work(problem)
        return Plan(problem, self, (FlatRunner if work.flat else Runner)(work).run)


def _work(problem: AnyProblem) -> Work:
    assert isinstance(problem, ConvProblem)
    return Work(problem.replace(layout="channels_first"), simd(), workers_for(problem), machine().l2_bytes, slab=False)
