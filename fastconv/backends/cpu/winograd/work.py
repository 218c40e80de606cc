"""One Winograd convolution made ready: its blocks of tiles and channels, and the scratch that they take."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from fastconv.backends.cpu.direct.work import Tile
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.winograd.phases import plane_phases, read_line
from fastconv.backends.cpu.work import ConvWork
from fastconv.geometry import source_line
from fastconv.machine import machine
from fastconv.problem import ConvProblem, Sizes

# Tiles of a block at most, and what their transformed input may take, in caches of a core.
_TILES, _CACHES = 112, 4

# Of the cache, what a block works on (the weight too, if it fits) before parts of it are evicted and come back.
_KEPT = 0.6

# Cycles to bring a vector from the core's own cache and from beyond, and the share that arithmetic never hides.
_NEAR_CYCLES, _FAR_CYCLES, _EXPOSED = 2.0, 7.0, 0.15

# What follows is counted in instructions on vectors, of which as many start in a cycle as multiply-adds do.
# A step of the micro-kernel takes its multiply-adds, or its loads, but no fewer than are in flight, and a little more.
_STEP, _IN_FLIGHT = 1.0, 4
# How much longer it takes where each value that is broadcast is used for one vector only: measured on Zen 4.
_ALONE = 1.5
# A tile of the micro-kernel, beside its steps: to begin, and to store a vector.
_BEGIN, _STORE = 10.0, 2.0
# A transform, a point: a load and a store; arithmetic along an axis of so many inputs; and for one that finds no
# register, a store and a load along each axis.
_MOVE, _COMBINE, _SPILL = 2.5, {1: 0.0, 3: 0.25, 4: 0.25, 5: 0.5, 6: 0.75, 8: 1.0, 10: 2.0, 12: 3.0}, 4.0

# Instructions on a vector, beside its shuffles, when a square is transposed.
_TURN = 2.0
# How much longer than so counted what products are takes to become output: it is stored channel by channel, in parts.
_LEAVE = 2.0

# Instructions to transform the filters of a vector: for a tap, a point, and a phase that is one of several.
_TAP, _POINT, _PHASE = 10.0, 10.0, 34.0
# Cycles of a point that does not stay near until its turn comes; of one that goes to memory, where it is read before it
# is written, and second-level caches' worth of them that do not.
_LEFT_CYCLES, _MEMORY_CYCLES, _CACHED_WEIGHT = 3.0, 26.0, 4
# How much of the cache a block that is transformed when its turn comes may take until what reads it waits, the next
# point of it being fetched ahead.
_FETCHED = 1.25

# Cycles until two stages of a block have begun and ended on all workers.
_MEETING = 6000.0

# Output vectors of a tile: with more, weights and addresses crowd the sums out of registers.
_VECTORS = 3


class Block(NamedTuple):
    """Tiles that are done together: so many rows of so many, by one worker or by all.

    ``cycles`` are those of one worker for the whole problem, all doing their share of it; those of transforming the
    weight are among them, unless that was done before.
    """

    rows: int
    cols: int
    shared: bool
    cycles: float


@lru_cache(maxsize=4096)
def _choose_tile(tiles: int, needed: int, terms: int, vectors: Simd) -> tuple[Tile, float]:
    """Return the micro-kernel's tile for a block, and its cycles for ``terms`` channels and all ``needed`` vectors."""

    def cycles(tile: Tile) -> float:
        whole, last = (
            terms * (_STEP + max(tile.cols * v, tile.cols + 2 * v + 1, _IN_FLIGHT * vectors.fma_per_cycle)
                     * (_ALONE if v == 1 else 1.0))
            + _BEGIN + _STORE * tile.cols * v
            for v in (tile.vectors, tile.tail)
        )  # fmt: skip
        passes = -(-tiles // tile.cols)
        return passes * ((-(-needed // tile.vectors) - 1) * whole + last) / vectors.fma_per_cycle

    choices = [
        Tile(1, cols, count, needed - (-(-needed // count) - 1) * count)
        for count in range(1, min(needed, _VECTORS) + 1)
        # Beside the sums: the weights of a step, and one value that is broadcast.
        for cols in range(1, min(tiles, (vectors.registers - 1 - count) // count) + 1)
    ]
    best = min(choices, key=cycles)
    return best, cycles(best)


def _uneven(units: int, workers: int) -> float:
    """Return the share of the work that the busiest worker does."""
    return -(-units // workers) / units


class Work(ConvWork):
    """A problem as the loops take it: of `ConvWork`'s parameters, and ``m``.

    Parameters
    ----------
    m : tuple of int
        Outputs of a tile: rows, columns.

    Attributes
    ----------
    extent : tuple of int
        Inputs of a tile, of one phase of the stride.
    points : int
        Multiplications of a tile, for each pair of channels and phase, but those that are left out.
    """

    def __init__(self, m: Sizes, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        plane = self.axes[1:]
        self.phases = plane_phases(problem, m)
        self.m, self.extent = m, tuple(outputs + k - 1 for outputs, k in zip(m, self.phases.taps, strict=True))
        self.width = self.lanes * self.size
        self.points = math.prod(self.phases.points)
        self.growth = self.phases.growth
        # Chunks of input channels. Those at another depth of the kernel and of another phase are as further channels.
        self.pieces = -(-self.inputs // self.lanes)
        self.chunk = -(-self.inputs // self.pieces)
        depth = self.axes[0]
        #: Chunks of one phase, and of all; products that are summed, about: a point's share of all.
        self.together = depth.kernel * self.pieces
        self.chunks = self.together * len(self.phases.order)
        self.terms = self.together * self.chunk * self.phases.products // self.points
        self.down, self.across = (-(-axis.out // outputs) for axis, outputs in zip(plane, m, strict=True))
        self.all_rows = problem.n * depth.out * self.down

    @cached_property
    def block(self) -> Block:
        """The tiles that are done together: many, so that the weight is read seldom, but kept in cache."""
        most = max(1, min(_TILES, int(self.cache * _CACHES) // (self.points * self.chunks * self.width)))
        best = Block(1, 1, False, math.inf)
        fewest = -(-self.across // most)
        for col_bands in range(fewest, 2 * fewest + 1):
            cols = -(-self.across // col_bands)
            for rows in range(1, min(self.all_rows, most // cols) + 1):
                for shared in (False, True)[: 1 if self.workers == 1 else 2]:
                    cycles = self._cycles(rows, cols, shared)
                    if cycles < best.cycles:
                        best = Block(rows, cols, shared, cycles)
        return best

    def _cycles(self, rows: int, cols: int, shared: bool) -> float:
        tiles, needed, terms = rows * cols, -(-self.outputs // self.lanes), self.terms
        tile, products = _choose_tile(tiles, needed, terms, self.simd)
        blocks = -(-needed // tile.vectors)
        bands = -(-self.all_rows // rows) * -(-self.across // cols)
        # Of a weight that is transformed in turns, there is one block at a time.
        in_turns = self._in_turns(rows, cols)
        weight = self.points * terms * (tile.vectors if in_turns else needed) * self.width
        fits = weight < self.cache // 2
        if in_turns:
            fetching = _NEAR_CYCLES if weight < self.cache * _FETCHED else _FAR_CYCLES
        else:
            fetching = self._fetching(weight, bands)
        stream = terms * needed * fetching
        products = self.points * (max(products, stream) + _EXPOSED * stream)
        transformed = self.points * tiles * self.chunks
        work = transformed * self.width + self.points * tiles * tile.vectors * self.width + (weight if fits else 0)
        if work > self.cache * _KEPT or shared:
            products += _FAR_CYCLES * transformed * _EXPOSED * blocks
        per_cycle, turn = self.simd.fma_per_cycle, math.log2(self.lanes) + _TURN
        (high, wide), (tall, long) = self.m, self.extent
        (down, across), out = self.phases.stride, self.axes[2].out
        read = -(-min(cols * wide + long - wide, out) * across // self.lanes)
        written = -(-min(cols * wide, out) // self.lanes)
        transform = _MOVE + _COMBINE[tall] + _COMBINE[long] + _SPILL * max(0.0, 1 - self.simd.registers / self.points)
        enter = transform * transformed + turn * self.lanes * rows * tall * down * read * self.together
        leave = transform * self.points * tiles * needed
        leave += turn * self.lanes * rows * high * written * needed
        if work > self.cache * _KEPT:
            enter += _FAR_CYCLES * transformed
        units = self.problem.groups * bands
        enter, leave = enter / per_cycle, products + _LEAVE * leave / per_cycle
        if shared:
            enter, leave = (
                cycles * _uneven(pieces, self.workers)
                for cycles, pieces in ((enter, rows * self.together), (leave, blocks))
            )
            both: float = units * (_MEETING + enter + leave)
        else:
            both = units * _uneven(units, self.workers) * (enter + leave)
        return both + self._packing_cycles(in_turns, blocks if shared else units)

    def _in_turns(self, rows: int, cols: int) -> bool:
        """Whether blocks of the weight are transformed in turns, since each has but one: they are near then."""
        return not self.problem.prepacked and rows >= self.all_rows and cols >= self.across

    def _packing_cycles(self, in_turns: bool, pieces: int) -> float:
        """Return the cycles of one worker for transforming the weight in a run: in turns, by who has so many pieces."""
        if self.problem.prepacked:
            return 0.0
        filters, phases = self.problem.groups * self.chunks * self.chunk * -(-self.outputs // self.lanes), self.phases
        vectors = filters * self.points
        filter_ = _TAP * math.prod(phases.kernel) / len(phases.order) + (_PHASE if len(phases.order) > 1 else 0.0)
        computing = (filters * filter_ + vectors * _POINT) / self.simd.fma_per_cycle
        if in_turns:
            return computing * _uneven(pieces, self.workers)
        computing += vectors * _LEFT_CYCLES
        moving = max(0.0, vectors - _CACHED_WEIGHT * self.cache / self.width) * _MEMORY_CYCLES
        here = machine()
        return max(computing, moving) / self.workers + self.handing_over(here) * here.hertz

    def _fetching(self, weight: int, blocks: int) -> float:
        """Return the cycles to bring a vector of a group's weight, for one of its blocks of tiles as for another."""
        if weight >= self.cache // 2:
            return _FAR_CYCLES
        # The first block finds what the one before left, unless that was another group's.
        first = _NEAR_CYCLES if self.problem.groups * weight < self.cache // 2 else _FAR_CYCLES
        own = max(1.0, blocks / self.workers)
        return _NEAR_CYCLES + (first - _NEAR_CYCLES) / own

    @cached_property
    def tile(self) -> Tile:
        """What the micro-kernel holds in registers: tiles as columns, vectors of output channels."""
        needed = -(-self.outputs // self.lanes)
        return _choose_tile(self.block.rows * self.block.cols, needed, self.terms, self.simd)[0]

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
    def units(self) -> int:
        """Blocks of tiles, of all groups."""
        return self.problem.groups * self.row_bands * self.col_bands

    @property
    def weight_strides(self) -> dict[str, int]:
        """Bytes of the transformed weight: a block of output channels, a point of it, a point of the last block."""
        vector = self.chunks * self.chunk * self.width
        # A line more than needed, as in `scratch`: a filter is written to all points at once.
        whole, last = (vector * count + LINE for count in (self.tile.vectors, self.tile.tail))
        return {"wblock": whole * self.points, "wpoint": whole, "wlast": last}

    @property
    def packed_size(self) -> int:
        """Elements of the transformed weight."""
        return self.problem.groups * self.blocks * self.weight_strides["wblock"] // self.size

    @cached_property
    def scratch(self) -> dict[str, int]:
        """Where things lie in a worker's scratch, their strides, and how much it is, in bytes."""
        tiles = self.block.rows * self.block.cols
        (high, wide), (tall, long) = self.m, self.extent
        columns = self.block.cols * wide
        # A line more than needed: planes a power of two apart would share the few places of one cache set.
        v_plane = self.chunks * tiles * self.width + LINE
        m_plane = tiles * self.tile.vectors * self.width + LINE
        down, across = self.phases.stride
        slab_row = (columns + long - wide) * across * self.width
        # Whole squares are transposed, whatever of them is wanted.
        slack = self.lanes * self.width
        # What lies before each.
        sizes = {
            "slab": m_plane * self.points,
            "strip": slab_row * tall * down + slack,
            "scratch_bytes": columns * self.width * high + slack,
        }
        end, places = 0, {}
        for name, size in sizes.items():
            end += whole_lines(size)
            places[name] = end
        return {"v_plane": v_plane, "m_plane": m_plane, "slab_row": slab_row, **places}

    @property
    def v_bytes(self) -> int:
        """Bytes of the transformed input of a block of tiles."""
        return whole_lines(self.scratch["v_plane"] * self.points)

    @property
    def v_room(self) -> int:
        """Bytes of the transformed input of all workers."""
        return self.v_bytes * (1 if self.block.shared else self.workers)

    @property
    def filters(self) -> int:
        """Bytes of the filters of a vector of output channels and as many input channels, not yet transformed."""
        return (self.taps + 1) * self.lanes * self.width

    @property
    def packs_blocks(self) -> bool:
        """Whether a block of the weight is transformed when its turn comes."""
        return self._in_turns(self.block.rows, self.block.cols)

    @property
    def block_room(self) -> int:
        """Bytes of a worker's block of the weight that is transformed when its turn comes, and of its filters."""
        return self.weight_strides["wblock"] + self.filters

    @property
    def weight_room(self) -> int:
        """Bytes of scratch for what every run transforms of the weight."""
        if self.problem.prepacked:
            return 0
        return self.workers * self.block_room if self.packs_blocks else self.packed_size * self.size

    @property
    def room(self) -> int:
        """Bytes of scratch for all workers, with what transforming the weight takes before."""
        return max(self.v_room + self.workers * self.scratch["scratch_bytes"], self.workers * self.filters)

    def tables(self) -> list[np.ndarray]:
        """Return, for depths, rows and columns, the input index of every padded position that tiles read."""
        plane = zip(self.axes[1:], self.m, self.extent, (self.down, self.across), strict=True)
        return [source_line(self.axes[0]), *(read_line(*axis) for axis in plane)]

    def starts(self) -> np.ndarray:
        """Return where in the slab every phase begins, in bytes."""
        return self.phases.starts(self.scratch["slab_row"], self.width)

    def spans(self) -> np.ndarray:
        """Return of every point the first chunk that has products there, and how many have."""
        return np.multiply(self.phases.spans, self.together, dtype=np.int64)
