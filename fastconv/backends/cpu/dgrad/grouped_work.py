"""One grouped input gradient made ready: the forward convolution whose slabs it reads, and what it sums of them."""

from __future__ import annotations

import math

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.dgrad.shifts import stacked_problem
from fastconv.backends.cpu.grouped import work as forward
from fastconv.backends.cpu.phases import shuffles
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.problem import ConvProblem


class Work(forward.Work):
    """A gradient as the loops take it; ``problem`` is the forward one, whose slabs they fill."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(stacked_problem(problem), vectors, workers, cache)
        self.gradient = problem
        #: Channels of a group of the gradient; phases.
        self.channels, self.parts = problem.ic // problem.groups, math.prod(problem.stride)
        #: Rows and columns of the gradient.
        self.height, self.width = lifted_axes(problem)[1:]
        tile = forward.choose_tile(
            self.numbers(self.band), self.channels, self.lanes, vectors.registers, vectors.fma_per_cycle
        )
        self.tile, self.step_cycles = tile
        # Of all phases together.
        self.terms = self.inputs * math.prod(problem.kernel_size)

    @property
    def idle_bytes(self) -> int:
        """Bytes of a row of zeros, for phases to which nothing contributes."""
        return whole_lines(self.cols.out * self.size)

    @property
    def slab_bytes(self) -> int:
        """Bytes of a worker's scratch memory: padded input, sums, a row of zeros."""
        return super().slab_bytes + self.idle_bytes

    @property
    def _stored(self) -> tuple[int, int]:
        """Rows of a group that a band stores, and their columns: those of all phases of the columns at once."""
        return self.channels * self.height.stride * self.band, self.width.size

    @property
    def cycles(self) -> float:
        """Cycles on one core: the sums, and vectors on their way into slabs and, woven, out of the sums."""
        rows, columns = self._stored
        vectors = rows * -(-columns // self.lanes)
        return super().cycles + self.units * vectors * shuffles(self.width.stride)

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.gradient.w_shape) * self.size
