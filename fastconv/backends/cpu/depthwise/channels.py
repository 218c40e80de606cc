"""Depthwise convolution on channels-last maps: channels in the lanes, a few outputs of a row at a time."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.channel_lanes import refuses_other_channels
from fastconv.backends.cpu.depthwise.channels_work import Work
from fastconv.backends.cpu.work import refuses_all_but
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds a call takes beside its loops.
_OVERHEAD = 3e-6
# Columns of a kernel whose weights registers are to hold.
_MOST_COLUMNS = 11


class DepthwiseChannels(Algorithm):
    """Sums of a few neighbouring outputs, a vector of channels each; any stride and dilation, padding with zeros."""

    name = "depthwise_channels"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim and problem.kernel_size[-1] > _MOST_COLUMNS:
            return f"holds a row of the kernel in registers, at most {_MOST_COLUMNS}, not {problem.kernel_size[-1]}"
        return refuses_other_channels(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        packed = 0 if work.problem.prepacked else work.packed_size * work.size
        return packed + work.zero_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        uneven = -(-work.units // work.workers) * work.workers / max(1, work.units)
        return _OVERHEAD + (work.cycles * uneven / machine.hertz + machine.moving(problem.bytes)) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.channels_run import Runner

        runner = Runner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
