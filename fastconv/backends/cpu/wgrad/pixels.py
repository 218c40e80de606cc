"""The weight gradient of few channels: pixels in the lanes, so that neither x nor dy is transposed."""

from __future__ import annotations

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.wgrad.pixels_work import Work
from fastconv.backends.cpu.work import KEPT, refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD = 5e-6
# Of the shorter of computing and moving, what is not hidden behind the other.
_EXPOSED = 0.25
# More channels a group are worth what it takes to transpose them.
_MOST_CHANNELS = 32
# Columns further apart are brought together one by one, which takes as long as to transpose them.
_MOST_APART = 4


class PixelsWgrad(Algorithm):
    """Few input or output channels a group; zero padding, at most four columns apart."""

    name = "wgrad_pixels"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ndim == 0:
            return "slides over spatial axes, of which a linear layer has none"
        channels = min(problem.ic, problem.oc)
        if channels > _MOST_CHANNELS * problem.groups:
            return f"takes at most {_MOST_CHANNELS} channels a group, not {channels // problem.groups}"
        if problem.stride[-1] > _MOST_APART:
            return f"steps by at most {_MOST_APART} columns, not by {problem.stride[-1]}"
        if problem.padding_mode != "zeros":
            return f"pads with zeros, not in mode {problem.padding_mode!r}"
        if problem.layout == "channels_last":
            return "takes columns that are neighbours, not channels"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        return work.workers * work.scratch_bytes + work.slices_bytes

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        uneven = -(-work.units // work.workers) * work.workers / work.units
        computing, reading = work.cycles * uneven / machine.hertz, machine.reading(work.read_again)
        if work.in_place:  # many planes side by side
            reading += machine.moving(work.read_once)
        else:  # rows are put together before they are used: of those that come from afar nothing is hidden
            near = min(work.read_once, KEPT * machine.l2_bytes)
            reading += machine.reading(near)
            computing += machine.moving(work.read_once - near)
        return _OVERHEAD + (max(computing, reading) + _EXPOSED * min(computing, reading)) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.wgrad.pixels_run import PixelsRunner

        return Plan(problem, self, PixelsRunner(Work.of(problem)).run)
