"""Winograd's convolution: fewer multiplications for small kernels, at more rounding.

An axis of one tap is left as it is; a line is a plane of one row. Kernels that move by more than one are taken apart
into phases, which are as further input channels. Of a volume it is the planes that tiles cut, whatever the kernel's
depth, stride and dilation along it are: planes that an output sees at another depth are as further input channels, too.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

from fastconv.algorithm import EPSILON, Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.winograd.phases import plane_phases, refuses_steps
from fastconv.backends.cpu.winograd.work import Work
from fastconv.backends.cpu.work import packed_in_a_run, refuses_all_but, refuses_halves, workers_for
from fastconv.geometry import fewest_reads
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem, Sizes

_OVERHEAD, _PACKING = 6e-6, 3e-6
_EXPOSED = 0.5  # of the time that input and output take to move: what arithmetic does not hide
# Second-level caches' worth of input and output that does not come from memory.
_CACHED = 4

# A problem is asked about more than once, and phases of a gradient ask about the same.
_work_of = lru_cache(maxsize=64)(Work)

# All outputs of a tile have errors of about the same size, so none may be much smaller than the others.
_PRODUCTS = 12


def refuses_few_products(problem: ConvProblem) -> str | None:
    """Return why not, if products that are not with padding are too few behind an output."""
    products = problem.ic // problem.groups * math.prod(map(fewest_reads, lifted_axes(problem)))
    if products >= _PRODUCTS:
        return None
    return f"an output of fewer than {_PRODUCTS} products would have the error of its tile's larger ones"


class Winograd(Algorithm):
    """Tiles of a few outputs by as many multiplications as they read inputs, or a few more, for each pair of channels.

    Parameters
    ----------
    name : str
    m : tuple of int
        Outputs of a tile: rows, columns.
    taps : tuple of int
        Rows and columns of the kernel, or of the largest phase of one that moves by more than one.
    constant : float
        What takes the place of `ERROR_CONSTANT`.
    """

    backend = "numba"
    strict = False

    def __init__(self, name: str, m: Sizes, taps: Sizes, constant: float) -> None:
        self.name, self.m, self.taps, self.constant = name, m, taps, constant

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        return refuses_steps(problem, self.taps) or refuses_few_products(problem) or refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = self._work(problem)
        return work.weight_room + work.room

    def packed_bytes(self, problem: ConvProblem) -> int:
        """Return how much a weight takes that is transformed whole: for all runs, or for rounds of one."""
        work = self._work(problem.replace(prepacked=True))
        return work.packed_size * work.size

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = self._work(problem)
        packing = 0.0 if work.problem.prepacked else _PACKING
        maps = sum(math.prod(shape) for shape in (work.problem.x_shape, work.problem.y_shape)) * problem.itemsize
        moving = _EXPOSED * max(0, maps - _CACHED * work.cache) / machine.bandwidth / work.workers
        return _OVERHEAD + packing + work.block.cycles / machine.hertz + moving

    def error_bound(self, problem: AnyProblem) -> float:
        return self.constant * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.winograd.run import Runner

        runner = Runner(self._work(problem))
        return Plan(problem, self, runner.run, runner.pack)

    def _work(self, problem: AnyProblem) -> Work:
        assert isinstance(problem, ConvProblem)
        workers = workers_for(problem, packed_in_a_run(problem, plane_phases(problem, self.m).growth))
        make = partial(_work_of, self.m, problem, simd(), cache=machine().l2_bytes)
        if workers == 1 and (more := workers_for(problem)) > 1:
            shared = make(workers=more)
            if shared.packs_blocks:  # nobody waits for what another has transformed
                return shared
        return make(workers=workers)


# Outputs of a tile and taps of kernels that are lines, and their error constants.
_LINES = ((4, 2, 32.0), (4, 3, 32.0), (4, 5, 32.0), (4, 7, 32.0), (6, 3, 128.0), (6, 5, 32.0), (6, 7, 64.0))

# Error constants: of tens of millions of outputs of as few products as are allowed, the largest met were half of them.
ALGORITHMS = tuple(
    Winograd(*row)
    for row in (
        ("winograd2", (2, 2), (3, 3), 8.0),
        ("winograd3", (3, 3), (3, 3), 16.0),
        ("winograd4", (4, 4), (3, 3), 32.0),
        ("winograd2_5x5", (2, 2), (5, 5), 32.0),
        # Of such kernels are the phases of those of 3x3 and 4x4 that move by two, and of their gradients.
        ("winograd2_2x2", (2, 2), (2, 2), 16.0),
        ("winograd3_2x2", (3, 3), (2, 2), 16.0),
        ("winograd4_2x2", (4, 4), (2, 2), 32.0),
        ("winograd3_4x4", (3, 3), (4, 4), 32.0),
        *((f"winograd{m}_1x{taps}", (1, m), (1, taps), constant) for m, taps, constant in _LINES),
        *((f"winograd{m}_{taps}x1", (m, 1), (taps, 1), constant) for m, taps, constant in _LINES),
    )
)

# F(6x6, 3x3) is 5 to 40 % faster than winograd4 where the map is large or a multiple of 6, but at five times the error,
# and nobody should lose these digits unasked: ``fastconv.register(WINOGRAD6)`` lets the dispatcher choose it.
WINOGRAD6 = Winograd("winograd6", (6, 6), (3, 3), 128.0)
