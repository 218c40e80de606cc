"""One Winograd convolution made ready: its blocks of tiles and channels, and the scratch that they take."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.backends.cpu.direct.work import Tile
from fastconv.backends.cpu.registers import Simd
from fastconv.backends.cpu.winograd.points import TAPS
from fastconv.geometry import source_index
from fastconv.problem import ConvProblem

_LINE = 64

# Tiles of a block at most, and the share of the cache that their transformed input may take.
_TILES, _SHARE = 112, 3 / 4

# Of the cache, what a block works on (the weight too, if it fits) before parts of it are evicted and come back.
_KEPT = 0.6

# Cycles to bring a vector from the core's own cache and from beyond, and the share that arithmetic never hides.
_NEAR_CYCLES, _FAR_CYCLES, _EXPOSED = 2.0, 7.0, 0.25

# Cycles of a step of the micro-kernel beside its multiply-adds or loads, two a cycle, and the fewest of these.
_STEP_CYCLES, _IN_FLIGHT = 2.0, 8

# Cycles of a transform, a point: loads, arithmetic along both axes, a store, and what does not fit into registers.
_TRANSFORM_CYCLES = 2.5

# Cycles, a vector, to transpose a square: so that lanes are channels, or back.
_TURN_CYCLES = 4.0

# Output vectors of a tile: with more, weights and addresses crowd the sums out of registers.
_VECTORS = 3


class Block(NamedTuple):
    """Tiles that are done together: so many rows of so many, and the cycles that this takes for all blocks."""

    rows: int
    cols: int
    cycles: float


@lru_cache(maxsize=4096)
def _choose_tile(tiles: int, needed: int, registers: int) -> tuple[Tile, float]:
    """Return the micro-kernel's tile for a block, and its cycles for one input channel and all ``needed`` vectors."""

    def cycles(tile: Tile) -> float:
        # Sums, or loads of inputs and weights with what is fetched ahead.
        whole, last = (
            max(tile.cols * v, tile.cols + 2 * v, _IN_FLIGHT) / 2 + _STEP_CYCLES for v in (tile.vectors, tile.tail)
        )
        return -(-tiles // tile.cols) * ((-(-needed // tile.vectors) - 1) * whole + last)

    choices = [
        Tile(1, cols, vectors, needed - (-(-needed // vectors) - 1) * vectors)
        for vectors in range(1, min(needed, _VECTORS) + 1)
        # Beside the sums: the weights of a step, and one value that is broadcast.
        for cols in range(1, min(tiles, (registers - 1 - vectors) // vectors) + 1)
    ]
    best = min(choices, key=cycles)
    return best, cycles(best)


class Work:
    """A problem as the loops take it.

    Parameters
    ----------
    m : int
        Outputs of a tile, along each axis.
    problem : ConvProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.
    """

    def __init__(self, m: int, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        self.m, self.problem, self.simd, self.workers, self.cache = m, problem, vectors, workers, cache
        self.size = problem.itemsize
        self.lanes = vectors.lanes(self.size)
        self.width = self.lanes * self.size
        self.extent = m + TAPS - 1
        self.points = self.extent**2
        self.inputs = problem.ic // problem.groups
        self.outputs = problem.oc // problem.groups
        self.chunks = -(-self.inputs // self.lanes)
        self.chunk = -(-self.inputs // self.chunks)
        self.down, self.across = (-(-size // m) for size in problem.output_size)
        self.all_rows = problem.n * self.down

    @cached_property
    def block(self) -> Block:
        """The tiles that are done together: many, so that the weight is read seldom, but kept in cache."""
        most = max(1, min(_TILES, int(self.cache * _SHARE) // (self.points * self.chunks * self.width)))
        best = Block(1, 1, math.inf)
        fewest = -(-self.across // most)
        for col_bands in range(fewest, 2 * fewest + 1):
            cols = -(-self.across // col_bands)
            for rows in range(1, min(self.all_rows, most // cols) + 1):
                cycles = self._cycles(rows, cols)
                if cycles < best.cycles:
                    best = Block(rows, cols, cycles)
        return best

    def _cycles(self, rows: int, cols: int) -> float:
        tiles, needed = rows * cols, -(-self.outputs // self.lanes)
        tile, step = _choose_tile(tiles, needed, self.simd.registers)
        weight = self.points * self.chunks * self.chunk * needed * self.width
        fits = weight < self.cache // 2
        stream = needed * (_NEAR_CYCLES if fits else _FAR_CYCLES)
        products = self.points * self.chunks * self.chunk * (max(step, stream) + _EXPOSED * stream)
        work = self.points * tiles * (self.chunks + tile.vectors) * self.width + (weight if fits else 0)
        if work > self.cache * _KEPT:
            products += 2 * _FAR_CYCLES * self.points * self.chunks * tiles
        transforms = _TRANSFORM_CYCLES * self.points * tiles * (self.chunks + needed)
        read, written = (-(-min(cols * self.m + more, self.problem.ow) // self.lanes) for more in (TAPS - 1, 0))
        transforms += _TURN_CYCLES * self.lanes * rows * (self.extent * read * self.chunks + self.m * written * needed)
        units = self.problem.groups * -(-self.all_rows // rows) * -(-self.across // cols)
        # Few units are cut along the output channels; of many the last leave some workers idle.
        rounds = units if self.workers == 1 or units < 2 * self.workers else -(-units // self.workers) * self.workers
        cycles: float = rounds * (products + transforms)
        return cycles

    @cached_property
    def tile(self) -> Tile:
        """What the micro-kernel holds in registers: tiles as columns, vectors of output channels."""
        return _choose_tile(self.block.rows * self.block.cols, -(-self.outputs // self.lanes), self.simd.registers)[0]

    @property
    def row_bands(self) -> int:
        return -(-self.all_rows // self.block.rows)

    @property
    def col_bands(self) -> int:
        return -(-self.across // self.block.cols)

    @property
    def blocks(self) -> int:
        """Blocks of output channels of a group."""
        return -(-self.outputs // (self.tile.vectors * self.lanes))

    @property
    def parts(self) -> int:
        """Pieces that the blocks of output channels are cut into, where tiles alone do not feed all workers."""
        units = self.problem.groups * self.row_bands * self.col_bands
        if self.workers == 1 or units >= 2 * self.workers:
            return 1
        return min(self.blocks, -(-2 * self.workers // units))

    @property
    def units(self) -> int:
        return self.problem.groups * self.row_bands * self.col_bands * self.parts

    @property
    def weight_strides(self) -> dict[str, int]:
        """Bytes of the transformed weight: a block of output channels, a point of it, a point of the last block."""
        vector = self.chunks * self.chunk * self.width
        whole = vector * self.tile.vectors
        return {"wblock": whole * self.points, "wpoint": whole, "wlast": vector * self.tile.tail}

    @property
    def packed_size(self) -> int:
        """Elements of the transformed weight."""
        return self.problem.groups * self.blocks * self.weight_strides["wblock"] // self.size

    @cached_property
    def scratch(self) -> dict[str, int]:
        """Where things lie in a worker's scratch, their strides, and how much it is, in bytes."""
        tiles = self.block.rows * self.block.cols
        columns = self.block.cols * self.m
        # A line more than needed: planes a power of two apart would share the few places of one cache set.
        v_plane = self.chunks * tiles * self.width + _LINE
        m_plane = tiles * self.tile.vectors * self.width + _LINE
        slab_row = (columns + TAPS - 1) * self.width
        # Whole squares are transposed, whatever of them is wanted.
        slack = self.lanes * self.width
        # What lies before each.
        sizes = {
            "m": v_plane * self.points,
            "slab": m_plane * self.points,
            "strip": slab_row * self.extent + slack,
            "scratch_bytes": columns * self.width * self.m + slack,
        }
        end, places = 0, {}
        for name, size in sizes.items():
            end += -(-size // _LINE) * _LINE
            places[name] = end
        return {"v_plane": v_plane, "m_plane": m_plane, "slab_row": slab_row, **places}

    @property
    def filters(self) -> int:
        """Bytes of the filters of a vector of output channels and as many input channels, not yet transformed."""
        return (TAPS * TAPS + 1) * self.lanes * self.width

    @property
    def room(self) -> int:
        """Bytes of scratch for all workers, with what transforming the weight takes before."""
        return self.workers * max(self.scratch["scratch_bytes"], self.filters)

    @property
    def inside(self) -> tuple[int, int]:
        """The padded columns that are the input itself."""
        before, after = self.problem.padding[1]
        return before, before + self.problem.iw + min(after, 0)

    def tables(self) -> list[np.ndarray]:
        """Return, for rows and columns, the input index of every padded position that tiles read."""
        return [
            self._table(size, padding, tiles)
            for size, padding, tiles in zip(
                self.problem.input_size, self.problem.padding, (self.down, self.across), strict=True
            )
        ]

    def _table(self, size: int, padding: tuple[int, int], tiles: int) -> np.ndarray:
        before, after = padding
        position = np.arange(tiles * self.m + TAPS - 1) - before
        index = source_index(position, size, self.problem.padding_mode)
        # The last tile may reach beyond what the convolution is defined on.
        return np.ascontiguousarray(np.where(position < size + after, index, -1), np.int64)
