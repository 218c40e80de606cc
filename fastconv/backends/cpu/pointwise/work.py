"""A 1x1 convolution made ready: its tile, its bands of pixels, its cost."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.registers import simd
from fastconv.problem import ConvProblem


class Work:
    """A problem as the loops take it."""

    def __init__(self, problem: ConvProblem, workers: int, cache: int) -> None:
        self.problem, self.workers, self._cache = problem, workers, cache
        self.simd = simd()
        self.lanes = self.simd.lanes(problem.itemsize)
        self.rows = 8 if self.simd.registers >= 32 else 4
        self.pixels = math.prod(problem.output_size)
        self.inputs, self.outputs = problem.ic // problem.groups, problem.oc // problem.groups
        self.blocks = -(-self.outputs // self.rows)
        self.vectors = min((3, 2, 1), key=self._cycles)

    def _cycles(self, vectors: int) -> float:
        """Two multiply-adds or two loads a cycle, and the loop's own."""
        step = max(self.rows * vectors, self.rows + vectors) / 2 + 1
        tiles = self.blocks * -(-self.pixels // (vectors * self.lanes))
        return self.problem.n * self.problem.groups * tiles * self.inputs * step

    @property
    def cycles(self) -> float:
        return self._cycles(self.vectors)

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.problem.groups * self.blocks * self.rows * self.inputs

    @cached_property
    def band(self) -> int:
        """Pixels done with every block of the weight in turn: few if the weight stays in the cache."""
        tile = self.vectors * self.lanes
        if self.packed_size * self.problem.itemsize <= self._cache // 2:
            return tile
        return max(1, self._cache // 2 // (self.inputs * self.problem.itemsize * tile)) * tile
