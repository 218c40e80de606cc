"""The weight gradient of depthwise convolution on channels-last maps: channels in the lanes, as they lie in memory."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.channel_lanes import refuses_other_channels
from fastconv.backends.cpu.depthwise.wgrad_channels_work import Work
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.work import refuses_all_but
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds a call takes beside its loops.
_OVERHEAD = 8e-6


class ChannelsWgrad(Algorithm):
    """Sums of as many kernel rows as registers hold, a vector of channels each; any stride and dilation."""

    name = "depthwise_wgrad_channels"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        other = refuses_other_channels(problem)
        if other is not None:
            return other
        most = Work.most_columns(simd())
        if problem.kernel_size[-1] > most:
            return f"holds the sums of a kernel's row in registers, at most {most}, not {problem.kernel_size[-1]}"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.zero_bytes + work.sums_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        moving = machine.moving(max(0, problem.bytes - work.cache))
        share = -(-work.units // work.workers) / work.units
        return _OVERHEAD + (work.cycles / machine.hertz + moving) * share + work.adding_cycles / machine.hertz

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.depthwise.wgrad_channels_run import Runner

        return Plan(problem, self, Runner(Work.of(problem)).run)
