"""Winograd's convolution of few input channels: tiles in the lanes, strides as phases."""

from __future__ import annotations

import math

from fastconv.algorithm import EPSILON, Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.winograd.algorithm import refuses_few_products
from fastconv.backends.cpu.winograd_tiles.work import TAPS, Work, phase_taps
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_OVERHEAD, _PACKING = 6e-6, 4e-6
_FILTER = 16.0  # instructions to transform a vector of the weight
# Seconds that a piece of output beyond the second-level cache waits for memory: it is asked for in time, but with many.
_WAITING = 8e-9

# In place of `ERROR_CONSTANT`: among millions of outputs of few products, errors of more than 32 are met where an
# axis has one or two taps.
_CONSTANT = 64.0
# Every distance of tiles along a row has a kernel that takes rows apart.
_MOST_APART = 4
# With more input channels of all phases, their transforms would be worth lanes of channels.
_TERMS = 64


class WinogradTiles(Algorithm):
    """Tiles of m x m outputs by 6 x 6 multiplications for each pair of channels and phase of the stride."""

    name = "winograd_tiles"
    backend = "numba"
    strict = False

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.op != "conv2d":
            return f"works on planes, not on {problem.op}"
        if problem.dilation != (1, 1):
            return "takes kernels of dilation 1 only"
        if phase_taps(problem) not in TAPS:
            return f"takes kernels of {TAPS[0]} to {TAPS[-1]} taps a step of the stride, not {phase_taps(problem)}"
        if max(problem.stride) > _MOST_APART:
            return f"steps by at most {_MOST_APART}, not by {max(problem.stride)}"
        if problem.layout == "channels_last":
            return "stores columns that are neighbours, not channels"
        terms = problem.ic // problem.groups * math.prod(problem.stride)
        if terms > _TERMS:
            return f"takes at most {_TERMS} input channels a group, phases of the stride counted, not {terms}"
        return refuses_few_products(problem) or refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = Work.of(problem)
        packed = 0 if work.problem.prepacked else work.packed_size * work.size
        return packed + work.room

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = Work.of(problem)
        packing = 0.0
        if not work.problem.prepacked:
            vectors = work.packed_size / work.lanes
            packing = _PACKING + vectors * _FILTER / work.simd.fma_per_cycle / machine.hertz
        uneven = -(-work.units // work.workers) * work.workers / work.units
        computing, moving = work.cycles * uneven / machine.hertz, machine.moving(work.bytes)
        moving += work.pieces * _WAITING * max(0.0, 1 - machine.l2_bytes / work.bytes)
        return _OVERHEAD + packing + work.handing_over(machine) + (computing + moving) / work.workers

    def error_bound(self, problem: AnyProblem) -> float:
        return _CONSTANT * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.winograd_tiles.run import Runner

        runner = Runner(Work.of(problem))
        return Plan(problem, self, runner.run, runner.pack)
