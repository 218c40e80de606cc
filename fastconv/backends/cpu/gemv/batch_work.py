"""A fully connected layer whose lanes are images made ready: its tile, how the work is cut, what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from fastconv.backends.cpu.cuts import even
from fastconv.backends.cpu.gemv.work import LATENCY, OVERHEAD, SIDE_BY_SIDE, RowsWork
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Rows of the weight, whose elements are broadcast, and vectors of images of a tile.
_ROWS, _MOST_VECTORS = (1, 2, 4, 8), 3
# Rows whose sums wait for one another, to be stored as lines of outputs.
_BLOCK = 128
# Cycles of a tile's beginning and end; bytes a cycle from the second-level cache; bytes that the first holds.
_TILE_CYCLES, _L2_RATE, _L1 = 40, 32, 32 << 10


class Tile(NamedTuple):
    """Rows of the weight, and vectors of images."""

    rows: int
    vectors: int


class BatchWork(RowsWork):
    """A problem as the loops take it; see `ConvWork`."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.tile = min(self._tiles(), key=self._cycles)

    @property
    def tile_rows(self) -> int:
        return self.tile.rows

    @property
    def cycles(self) -> float:
        return self._cycles(self.tile)

    def _tiles(self) -> Iterator[Tile]:
        """Yield every tile whose sums the registers hold, beside a step's vectors and an element that is broadcast."""
        needed = -(-self.problem.n // self.lanes)
        for rows in _ROWS:
            for most in range(1, _MOST_VECTORS + 1):
                vectors = even(needed, most).size
                if rows <= self.outputs and rows * vectors + vectors + 1 <= self.simd.registers:
                    yield Tile(rows, vectors)

    def _cycles(self, tile: Tile) -> float:
        """Return the cycles of the whole problem, if the weight is in the second-level cache."""
        rows, vectors = tile
        moved = vectors * self.simd.vector_bytes
        far = moved / _L2_RATE if self.terms * moved > _L1 else 0.0
        step = max(rows * vectors / self.simd.fma_per_cycle, (rows + vectors) / 2, LATENCY, far)
        tiles = -(-self.outputs // rows) * (self.terms * step + 2 * rows * vectors + _TILE_CYCLES)
        squares = vectors * (-(-self.terms // self.lanes) + -(-self.outputs // self.lanes))
        turning = squares * self.lanes * (math.log2(self.lanes) + 2)
        return -(-self.problem.n // (vectors * self.lanes)) * (tiles + turning)

    @property
    def pixel(self) -> int:
        """Bytes of an element of all images of a tile."""
        return self.tile.vectors * self.lanes * self.size

    @property
    def block(self) -> int:
        """Rows whose sums are stored together: whole tiles."""
        return min(_BLOCK, self.share)

    @property
    def slab_bytes(self) -> int:
        """Bytes of the images of a tile, turned."""
        return whole_lines(self.terms * self.pixel)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a worker's images, and of the sums of a block."""
        return self.slab_bytes + whole_lines(self.block * self.pixel)

    def seconds(self, machine: Machine) -> float:
        """Return what a run should take."""
        computing, moving = self._cycles(self.tile) / machine.hertz, SIDE_BY_SIDE * machine.reading(self.problem.bytes)
        return OVERHEAD + max(computing, moving) / min(self.workers, self.units)
