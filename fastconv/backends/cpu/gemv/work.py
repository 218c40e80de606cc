"""A fully connected layer made ready: its tile, how the work is cut, what it costs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_UNITS = 4  # units of work a thread, so that an uneven end costs little
OVERHEAD = 3.2e-6
# Rows that are read side by side come slower than a weight that was packed for reading in one go.
SIDE_BY_SIDE = 1.25
LATENCY = 4  # cycles before a sum can be added to again
# Rows of the weight that are read side by side, and images at once.
_ROWS, _MOST_IMAGES = (1, 2, 4, 8), 6
# Bytes a cycle from the second-level cache: rows and images are longer than the first can hold.
_L2_RATE = 32
# Bytes of sums that the first-level cache keeps, other rows passing through.
_L1 = 24 << 10
# Cycles: a tile's beginning and end; those of one across; those that are worth a thread of their own.
_TILE_CYCLES, _ACROSS_CYCLES, _WORTH = 30, 20, 20_000


def sees_all(problem: ConvProblem) -> str | None:
    """Return why a problem is refused in which some output does not see the whole input."""
    if problem.groups > 1:
        return "needs all channels in one group"
    whole = problem.kernel_size == problem.input_size and all(pad == (0, 0) for pad in problem.padding)
    if not whole and math.prod(problem.input_size) > 1:
        return "needs a kernel that is as large as the input"
    return None if whole else "pads nothing"


class Tile(NamedTuple):
    """Rows of the weight, and images."""

    rows: int
    images: int


class RowsWork(ConvWork):
    """What all layers have whose work is cut by rows of the weight; see `ConvWork`.

    Attributes
    ----------
    terms : int
        Elements of a row of the weight.
    """

    growth = 0.0

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.terms = self.inputs * self.taps

    @property
    @abstractmethod
    def tile_rows(self) -> int:
        """Rows of a tile."""

    @property
    @abstractmethod
    def cycles(self) -> float:
        """Cycles of the whole problem, if the weight is in the second-level cache."""

    @property
    @abstractmethod
    def scratch_bytes(self) -> int:
        """Bytes of a worker's scratch memory."""

    @cached_property
    def share(self) -> int:
        """Rows of a unit of work: whole tiles."""
        worth = int(self.cycles / _WORTH)
        units = max(1, min(_UNITS * self.workers, worth)) if self.workers > 1 else 1
        tiles = -(-self.outputs // self.tile_rows)
        return -(-tiles // units) * self.tile_rows

    @property
    def units(self) -> int:
        return -(-self.outputs // self.share)


class Work(RowsWork):
    """A problem as the loops take it; see `ConvWork`."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.is_half = self.format != computed(self.format)
        self.tile = min(self._tiles(), key=self._cycles)

    @property
    def tile_rows(self) -> int:
        return self.tile.rows

    @property
    def cycles(self) -> float:
        return self._cycles(self.tile)

    def _tiles(self) -> Iterator[Tile]:
        """Yield every tile whose sums the registers hold, beside the fewer of its rows and images and one more."""
        for rows in _ROWS:
            for images in range(1, min(_MOST_IMAGES, self.problem.n) + 1):
                held = rows * images + min(rows, images) + 1
                if rows <= self.outputs and held <= self.simd.registers:
                    yield Tile(rows, images)

    def _cycles(self, tile: Tile) -> float:
        """Return the cycles of the whole problem, if the weight is in the second-level cache."""
        rate, sums = self.simd.fma_per_cycle, tile.rows * tile.images
        tiles = -(-self.outputs // tile.rows) * -(-self.problem.n // tile.images)
        loads = (tile.rows + tile.images) * self.simd.vector_bytes / _L2_RATE
        step = max(sums / rate, loads, LATENCY)
        return tiles * (-(-self.terms // self.lanes) * step + 2 * sums / rate + _TILE_CYCLES)

    def _cycles_across(self) -> float:
        """Return the same, where the weight's outputs lie together."""
        rows, images = self.across
        vectors = -(-min(self.share, self.outputs) // self.lanes)
        near = self.problem.n * self.line <= _L1

        def tile(rows: int, images: int) -> float:
            # Sums come from their place and go back there.
            moved = (rows + (0 if near else 2 * images)) * self.simd.vector_bytes / _L2_RATE
            step = max(rows * images / self.simd.fma_per_cycle, images, (rows + images) / 2, moved)
            return _ACROSS_CYCLES + vectors * step

        tiles, left = divmod(self.terms, rows)
        whole, more = divmod(self.problem.n, images)
        cycles = tiles * (whole * tile(rows, images) + more * tile(rows, 1)) + left * self.problem.n * tile(1, 1)
        return self.units * cycles

    @property
    def across(self) -> Tile:
        """The tile for a weight whose outputs lie together: all its factors are held, and a vector of each image."""
        images = min(4, self.problem.n)
        fitting = (rows for rows in reversed(_ROWS) if (rows + 1) * images + 2 <= self.simd.registers)
        return Tile(next(fitting), images)

    @property
    def line(self) -> int:
        """Bytes of an image's sums, with what a vector stores behind them."""
        return whole_lines((min(self.share, self.outputs) + 2 * self.lanes) * self.size)

    @property
    def image(self) -> int:
        """Bytes of an image that is widened."""
        return whole_lines(self.terms * self.size)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a worker's sums, of one tile's, and of images that are widened."""
        tile = whole_lines((self.tile.rows * self.tile.images + self.lanes) * self.size)
        return self.problem.n * (self.line + (self.image if self.is_half else 0)) + tile

    def seconds(self, machine: Machine, across: bool = False) -> float:
        """Return what a run should take, on a weight whose inputs lie together, or its outputs (``across``)."""
        computing = (self._cycles_across() if across else self._cycles(self.tile)) / machine.hertz
        images = 0 if across else self.problem.n * self.image
        # Images that the cache does not hold come from beyond it for every tile of rows.
        times = self.outputs / self.tile.rows if images > self.cache // 2 else 0.0
        moving = SIDE_BY_SIDE * machine.reading(self.problem.bytes) + times * machine.moving(images)
        return OVERHEAD + max(computing, moving) / min(self.workers, self.units)
