"""A convolution made ready for `kernels/direct.cu`: sizes of the matrix product, tile, parts of the reduction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cuda.device import Properties
from fastconv.backends.cuda.geometry import Phase, phases
from fastconv.problem import DTYPES, ConvProblem


class Tile(NamedTuple):
    """Rows, columns and depth of a block's tile, rows and columns of a thread's."""

    rows: int
    columns: int
    depth: int
    thread_rows: int
    thread_columns: int

    @property
    def threads(self) -> int:
        return self.rows * self.columns // (self.thread_rows * self.thread_columns)

    @property
    def efficiency(self) -> float:
        """The share of the peak that the kernel should reach: more sums a thread, fewer loads. Not measured."""
        loads = self.thread_rows + self.thread_columns
        sums = self.thread_rows * self.thread_columns
        return 0.85 * sums / (sums + loads)

    @property
    def resident(self) -> int:
        """Blocks that fit a multiprocessor side by side, by registers: one a sum, and 96 for all else."""
        return max(1, 65536 // (self.threads * (self.thread_rows * self.thread_columns + 96)))


TILES = (Tile(128, 128, 8, 8, 8), Tile(64, 128, 8, 8, 8), Tile(64, 64, 8, 8, 4), Tile(32, 128, 8, 4, 8))
# Sums in double take twice the registers.
WIDE_TILES = (Tile(64, 64, 8, 4, 4), Tile(32, 64, 8, 4, 4))
_MOST_SPLITS = 64
# Slices of the reduction that a part has at least.
_LEAST_SLICES = 8


@dataclass(frozen=True)
class Work:
    """The matrix product of one problem, all phases of it.

    Attributes
    ----------
    problem : ConvProblem
        With padding of zeros in ``dgrad``: other modes come after (`fold`).
    properties : Properties
        Of the GPU.
    max_workspace : int
    """

    problem: ConvProblem
    properties: Properties
    max_workspace: int

    @cached_property
    def phases(self) -> list[Phase]:
        return phases(self.problem)

    @property
    def is_local(self) -> bool:
        return self.problem.is_local

    @property
    def is_wgrad(self) -> bool:
        return self.problem.direction == "wgrad"

    @property
    def rows(self) -> int:
        """Rows of the product, a group."""
        p = self.problem
        return (p.ic if p.direction == "dgrad" else p.oc) // p.groups

    @property
    def channels(self) -> int:
        """Channels of the array that is gathered, a group."""
        p = self.problem
        return (p.oc if p.direction == "dgrad" else p.ic) // p.groups

    def positions(self, phase: Phase) -> int:
        """Positions that one product spans, over all images."""
        return self.problem.n * (1 if self.is_local else math.prod(axis.positions for axis in phase))

    def taps(self, phase: Phase) -> int:
        return self.channels * math.prod(axis.taps for axis in phase)

    def columns(self, phase: Phase) -> int:
        return self.taps(phase) if self.is_wgrad else self.positions(phase)

    def depth(self, phase: Phase) -> int:
        return self.positions(phase) if self.is_wgrad else self.taps(phase)

    def products(self, phase: Phase) -> int:
        """How many products there are: groups, and positions of a locally connected layer."""
        return self.problem.groups * (math.prod(axis.positions for axis in phase) if self.is_local else 1)

    def blocks(self, tile: Tile) -> int:
        """Blocks of all phases, before the reduction is split."""
        row_tiles = -(-self.rows // tile.rows)
        return sum(self.products(f) * row_tiles * -(-self.columns(f) // tile.columns) for f in self.phases)

    @cached_property
    def choice(self) -> tuple[float, Tile, int]:
        """The seconds that it should take, the tile, and the number of parts of the reduction."""
        tiles = WIDE_TILES if self.problem.accumulator == "float64" else TILES
        options = [(self.seconds(tile, splits), tile, splits) for tile in tiles for splits in self._splits(tile)]
        return min(options, key=lambda option: option[0])

    def _splits(self, tile: Tile) -> list[int]:
        if self.is_local or len(self.phases) > 1:
            return [1]
        slices = -(-self.depth(self.phases[0]) // tile.depth)
        most = min(_MOST_SPLITS, slices // _LEAST_SLICES, self.max_workspace // max(1, self.partial_bytes(2) // 2))
        return [1, *(s for s in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if s <= most)]

    def partial_bytes(self, splits: int) -> int:
        """Scratch for the parts of a split reduction."""
        if splits == 1:
            return 0
        (phase,) = self.phases
        count = self.problem.groups * self.rows * self.columns(phase)
        return splits * count * DTYPES[self.problem.accumulator]

    def seconds(self, tile: Tile, splits: int) -> float:
        blocks = self.blocks(tile)
        padded = 2 * tile.rows * tile.columns
        row_tiles = -(-self.rows // tile.rows)
        flops = sum(
            padded * row_tiles * self.products(f) * -(-self.columns(f) // tile.columns) * max(self.depth(f), tile.depth)
            for f in self.phases
        )
        moved = self.problem.bytes + 2 * self.partial_bytes(splits)
        return self.properties.seconds(
            flops=flops,
            moved=moved,
            blocks=blocks * splits,
            peak=self.properties.peak(self.problem.accumulator) * tile.efficiency,
            resident=tile.resident,
            launches=-(-len(self.phases) // 8) + (splits > 1),
        )
