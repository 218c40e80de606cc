"""Depthwise convolution with channels in the lanes made ready: tiles, parts of channels, cost.

Tiles are a few neighbouring outputs of a few rows, for one vector of channels after another: as these lie in memory.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.cuts import Cut, even
from fastconv.backends.cpu.depthwise.channel_lanes import ChannelsWork
from fastconv.backends.cpu.registers import Simd
from fastconv.problem import ConvProblem

# Kernel rows that are done together, of rows that follow one another; output rows of a tile: not all, so that the
# number of compiled functions stays small.
_HEIGHTS, _ROWS = (7, 5, 3, 2, 1), (1, 2)
# Registers beside sums and weights: what they are multiplied with, and what is loaded meanwhile.
_OTHERS = 2
# Output columns of a tile: with more, loads of weights and sums would not become much fewer.
_COLUMNS = 6
# Bytes of the narrowest vectors.
_NARROWEST = 16
# The share of the second-level cache that the weights of channels take that are done together: all, if it holds them,
# so that maps are read in their order.
_SHARE = 8
# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
# What of the rows that tiles read stays in the first-level cache, and bytes a cycle from the second.
_KEPT, _L2_RATE = 24 << 10, 32
# Instructions on vectors: of an output that is begun and stored, of an element at an edge, for the choice of its
# address. Cycles: of a call of a tile, of a round of the loop over vectors of channels.
_BEGIN, _CHOICE, _CALL, _ROUND = 2.0, 1.0, 40.0, 4.0


class Tile(NamedTuple):
    """What is held in registers: sums of ``rows`` rows of outputs, whose columns are cut into pieces."""

    rows: int
    columns: Cut


class Work(ChannelsWork):
    """A problem as the loops take it; see `ConvWork`."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        # Few channels are better whole, in a narrow vector, than a part of a wide one.
        while self.vector > _NARROWEST and 2 * problem.ic <= self.lanes:
            self.lanes //= 2

    @property
    def most_together(self) -> int:
        return self.cache // _SHARE // (self.taps * self.vector)

    @property
    def height(self) -> int:
        """Kernel rows that are done together, so that an input row is loaded once for all of them."""
        rows = self.axes[1]
        return 1 if rows.dilation > 1 else next(count for count in _HEIGHTS if rows.kernel % count == 0)

    @cached_property
    def tile(self) -> Tile:
        """The tile that takes the fewest cycles."""
        return min(self._tiles(), key=self.tile_cycles)

    def _tiles(self) -> list[Tile]:
        """Return every tile worth a thought: rows of outputs that read none in common are done one by one."""
        _, rows, columns = self.axes
        shares = rows.stride < self.height
        tiles = []
        for count in _ROWS if shares else (1,):
            weights = min(count, -(-self.height // rows.stride)) * columns.kernel
            free = (self.simd.registers - weights - _OTHERS) // count
            if count == 1 or (free > 0 and count <= rows.out):
                tiles.append(Tile(count, even(columns.out, max(1, min(_COLUMNS, free)))))
        return tiles

    @property
    def tiles_down(self) -> int:
        """Rows of tiles of a plane; the last overlaps the one before."""
        return -(-self.axes[1].out // self.tile.rows)

    @property
    def lines(self) -> int:
        """Rows of tiles, of all images and depths."""
        return self.problem.n * self.axes[0].out * self.tiles_down

    @cached_property
    def stretches(self) -> int:
        """Units of a row of tiles: as many as give every thread some."""
        wanted = -(-_UNITS * self.workers // self.lines) if self.workers > 1 else 1
        return min(self.tile.columns.pieces, wanted)

    @property
    def units(self) -> int:
        return self.lines * self.stretches

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.blocks * self.lanes * self.taps

    def _edges(self, tile: Tile) -> float:
        """Return about what share of tiles lies at an edge."""
        rows = self.axes[1]
        return min(1.0, 2 / tile.columns.pieces + 2 * tile.rows * (rows.before > 0) / rows.out)

    def tile_cycles(self, tile: Tile) -> float:
        """Return the cycles on one core of all tiles of this form."""
        depth, rows, columns = self.axes
        cut, per_cycle = tile.columns, self.simd.fma_per_cycle
        wide = columns.out / cut.pieces
        apart = wide * columns.kernel
        across = min(apart, (wide - 1) * columns.stride + columns.extent(1)) if all(self.steps) else apart
        high = self.height + (tile.rows - 1) * rows.stride
        read, weights = across * high, tile.rows * self.height * columns.kernel
        group = max(weights * wide, read * (1 + self._edges(tile) * _CHOICE) + weights) / per_cycle
        if high * columns.extent(columns.out) * self.part * self.vector > _KEPT:
            group = max(group, read * self.vector / _L2_RATE)
        tail = _BEGIN * wide * tile.rows / per_cycle + _ROUND
        block = depth.kernel * rows.kernel / self.height * group + tail
        pieces = self.problem.n * depth.out * -(-rows.out // tile.rows) * cut.pieces
        return pieces * (self.blocks * block + self.parts * _CALL)

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        return self.tile_cycles(self.tile)
