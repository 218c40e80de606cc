"""One grouped input gradient made ready: the forward convolution whose slabs it reads, and what it sums of them."""

from __future__ import annotations

import math

from fastconv.backends.cpu.dgrad.shifts import stacked_problem
from fastconv.backends.cpu.grouped import work as forward
from fastconv.backends.cpu.registers import Simd
from fastconv.problem import ConvProblem


class Work(forward.Work):
    """A gradient as the loops take it; ``problem`` is the forward one, whose slabs they fill."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(stacked_problem(problem), vectors, workers, cache)
        self.gradient = problem
        #: Channels of a group of the gradient; phases.
        self.channels, self.parts = problem.ic // problem.groups, math.prod(problem.stride)
        tile = forward.choose_tile(
            self.numbers(self.band), self.channels, self.lanes, vectors.registers, vectors.fma_per_cycle
        )
        self.tile, self.step_cycles = tile
        # Of all phases together.
        self.terms = self.inputs * math.prod(problem.kernel_size)

    @property
    def _stored(self) -> tuple[int, int]:
        """Rows of a group that a band stores, and their columns: those of two phases at once at a stride of two."""
        return self.channels * self.gradient.stride[0] * self.band, self.gradient.input_size[1]

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.gradient.w_shape) * self.size
