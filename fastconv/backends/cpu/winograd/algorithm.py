"""Winograd's convolution: fewer multiplications for 2x2, 3x3 and 5x5 kernels at stride 1, at more rounding.

Of a volume it is the planes that tiles cut, whatever the kernel's depth, stride and dilation along it are: planes that
an output sees at another depth are as further input channels.
"""

from __future__ import annotations

import math
from typing import ClassVar

from fastconv.algorithm import EPSILON, Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.winograd.points import TAPS
from fastconv.backends.cpu.winograd.work import Work, growth
from fastconv.backends.cpu.work import packed_in_a_run, refuses_all_but, refuses_halves, workers_for
from fastconv.geometry import Axis, axes_of, fewest_reads
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

_OVERHEAD, _PACKING = 6e-6, 3e-6
_EXPOSED = 0.5  # of the time that input and output take to move: what arithmetic does not hide
# Second-level caches' worth of input and output, and of weights, that does not come from memory.
_CACHED, _CACHED_WEIGHT = 4, 4
_FILTER = 8.0  # instructions to transform a vector of the weight


# All outputs of a tile have errors of about the same size, so none may be much smaller than the others.
_PRODUCTS = 12


def _fewest_products(problem: ConvProblem, taps: int) -> int:
    """Return how many products that are not with padding are behind an output, at least."""
    products = problem.ic // problem.groups
    for axis in axes_of(problem)[:-2]:
        assert isinstance(axis, Axis)
        products *= fewest_reads(axis)
    for size, padding in zip(problem.input_size[-2:], problem.padding[-2:], strict=True):
        seen = min(taps - max(0, *padding), size) if problem.padding_mode == "zeros" else taps
        products *= max(seen, 0)
    return products


class Winograd(Algorithm):
    """Tiles of m x m outputs by (m+taps-1)^2 multiplications for each pair of channels, instead of (m taps)^2."""

    backend = "numba"
    strict = False
    m: ClassVar[int]
    taps: ClassVar[int] = TAPS
    # What takes the place of `ERROR_CONSTANT`: the largest met was 1.9 for m = 2 and 12 for m = 4, at 3 input channels.
    constant: ClassVar[float]

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.op not in ("conv2d", "conv3d"):
            return f"works on planes, not on {problem.op}"
        if problem.kernel_size[-2:] != (self.taps, self.taps):
            return f"takes {self.taps}x{self.taps} kernels, not {problem.kh}x{problem.kw}"
        if problem.stride[-2:] != (1, 1) or problem.dilation[-2:] != (1, 1):
            return "takes kernels of stride 1 and dilation 1 only"
        if _fewest_products(problem, self.taps) < _PRODUCTS:
            return f"an output of fewer than {_PRODUCTS} products would have the error of its tile's larger ones"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = self._work(problem)
        packed = 0 if work.problem.prepacked else work.packed_size * work.size
        return packed + work.room

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = self._work(problem)
        packing = 0.0 if work.problem.prepacked else self._packing_seconds(work, machine)
        maps = sum(math.prod(shape) for shape in (work.problem.x_shape, work.problem.y_shape)) * problem.itemsize
        moving = _EXPOSED * max(0, maps - _CACHED * work.cache) / machine.bandwidth / work.workers
        packing += work.handing_over(machine)
        return _OVERHEAD + packing + work.block.cycles / machine.hertz + moving

    def _packing_seconds(self, work: Work, machine: Machine) -> float:
        computing = work.packed_size / work.lanes * _FILTER / work.simd.fma_per_cycle / machine.hertz
        # Memory is read before it is written.
        moving = 2 * max(0, work.packed_size * work.size - _CACHED_WEIGHT * work.cache) / machine.bandwidth
        return _PACKING + (computing + moving) / work.workers

    def error_bound(self, problem: AnyProblem) -> float:
        return self.constant * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.winograd.run import Runner

        runner = Runner(self._work(problem))
        return Plan(problem, self, runner.run, runner.pack)

    def _work(self, problem: AnyProblem) -> Work:
        assert isinstance(problem, ConvProblem)
        workers = workers_for(problem, packed_in_a_run(problem, growth(self.m, self.taps)))
        return Work(self.m, problem, simd(), workers, machine().l2_bytes)


class Winograd2(Winograd):
    """F(2x2, 3x3): 2.25 times fewer multiplications."""

    name = "winograd2"
    m = 2
    constant = 8.0


class Winograd4(Winograd):
    """F(4x4, 3x3): 4 times fewer multiplications."""

    name = "winograd4"
    m = 4
    constant = 32.0


class Winograd2x5(Winograd):
    """F(2x2, 5x5): 2.8 times fewer multiplications, at the points of `Winograd4`."""

    name = "winograd2_5x5"
    m = 2
    taps = 5
    constant = 32.0


class Winograd3x2(Winograd):
    """F(3x3, 2x2): 2.25 times fewer multiplications, at the points of `Winograd2`.

    Of such kernels are the phases of a transposed convolution whose kernel of 4x4 moves by two.
    """

    name = "winograd3_2x2"
    m = 3
    taps = 2
    constant = 16.0


class Winograd6(Winograd):
    """F(6x6, 3x3): 5.06 times fewer multiplications, at five times the error of `Winograd4`.

    It is 5 to 40 % faster where the map is large or a multiple of 6, but nobody should lose these digits unasked:
    ``fastconv.register(Winograd6())`` lets the dispatcher choose it.
    """

    name = "winograd6"
    m = 6
    constant = 128.0
