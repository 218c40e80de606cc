"""One weight gradient by Winograd made ready: its blocks of tiles and channels, and the memory that they take."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastconv.backends.cpu.direct.work import Tile
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.winograd.phases import plane_phases, read_line
from fastconv.backends.cpu.work import ConvWork
from fastconv.geometry import source_line
from fastconv.problem import ConvProblem

# Tiles of a block at most; below so many, the sums would be loaded and stored too often. What of a block is
# transformed may take so many caches of a core, or as much as the sums.
_TILES, _FEW, _CACHES = 256, 32, 4

# Of a core's cache, what the sums of a unit take that goes on to the gradient; units for each worker.
_SHARE, _UNITS = 0.25, 4

# What follows is counted in instructions on vectors, of which as many start in a cycle as multiply-adds do.
# A step of the micro-kernel takes its multiply-adds, but no fewer than are in flight, and a little more; to begin.
_STEP, _IN_FLIGHT, _BEGIN = 0.5, 4, 20.0
# A point of a transform: of x, of dy, and of the sums.
_OF_X, _OF_DY, _OF_SUMS = 4.5, 6.0, 8.0
# Beside the shuffles, when a square is transposed.
_TURN = 2.0
# Cycles for a vector from beyond the core's own cache, and from that of another core.
_FAR_CYCLES, _SHARED_CYCLES = 6.0, 20.0


class Block(NamedTuple):
    """Tiles whose sums are taken together: rows of tiles of all planes, and columns of them."""

    row: int
    rows: int
    col: int
    cols: int


class Work(ConvWork):
    """A problem as the loops take it: of `ConvWork`'s parameters, and ``m``.

    Parameters
    ----------
    m : int
        Elements of the output's gradient in a tile, along each axis.
    """

    def __init__(self, m: int, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.m, self.phases = m, plane_phases(problem, (m, m))
        self.width = self.lanes * self.size
        self.extent = m + self.phases.taps[-1] - 1
        self.points = self.extent**2
        self.needed = -(-self.outputs // self.lanes)
        self.tile = self._choose()
        self.chunk = self.tile.cols
        # Chunks of inputs. Those at another depth of the kernel and of another phase are as further inputs.
        self.pieces = -(-self.inputs // self.chunk)
        #: Chunks of one phase, and of all.
        self.together = self.axes[0].kernel * self.pieces
        self.chunks = self.together * len(self.phases.order)
        self.kblocks = -(-self.needed // self.tile.vectors)
        self.down, self.across = (-(-size // m) for size in problem.output_size[-2:])
        self.all_rows = problem.n * self.axes[0].out * self.down

    def _choose(self) -> Tile:
        """Return the micro-kernel's tile: inputs as columns, vectors of output channels."""
        registers = self.simd.registers

        def tile(chunks: int, vectors: int) -> Tile:
            return Tile(1, -(-self.inputs // chunks), vectors, self.needed - (-(-self.needed // vectors) - 1) * vectors)

        choices = [
            tile(-(-self.inputs // cols), vectors)
            for vectors in range(1, min(self.needed, 4) + 1)
            # Beside the sums: a step's output channels, and one value that is broadcast.
            for cols in range(1, min(self.inputs, self.lanes, (registers - 1 - vectors) // vectors) + 1)
        ]

        def cycles(tile: Tile) -> float:
            # Each chunk is transformed, too, for all tiles.
            return -(-self.inputs // tile.cols) * (self._step_cycles(tile) + _OF_X)

        return min(choices, key=cycles)

    def _step_cycles(self, tile: Tile) -> float:
        """Return the instructions for a tile's worth of one chunk and all output channels."""
        whole, last = (
            _STEP + max(tile.cols * count, tile.cols + count, _IN_FLIGHT * self.simd.fma_per_cycle)
            for count in (tile.vectors, tile.tail)
        )
        return (-(-self.needed // tile.vectors) - 1) * whole + last

    @property
    def unit_sums(self) -> int:
        """Bytes of the sums at a point of a block of output channels and a chunk."""
        return self.chunk * self.tile.vectors * self.width

    @property
    def all_sums(self) -> int:
        """Bytes of all sums of a group."""
        return self.kblocks * (self.points * (self.chunks * self.unit_sums + LINE))

    @cached_property
    def blocks(self) -> list[Block]:
        """The blocks of tiles of a group. They do not depend on the number of threads: sums are the same for any."""
        limit = max(_CACHES * self.cache, self.all_sums)
        most = limit // (self.points * (self.chunks + self.needed) * self.width)
        most = max(_FEW, min(_TILES, most))
        bands = -(-self.across // most)
        cols = -(-self.across // bands)
        rows = min(self.all_rows, max(1, most // cols))
        rows = -(-self.all_rows // -(-self.all_rows // rows))
        return [
            Block(row, min(rows, self.all_rows - row), col, min(cols, self.across - col))
            for row, col in itertools.product(range(0, self.all_rows, rows), range(0, self.across, cols))
        ]

    @property
    def alone(self) -> bool:
        """Whether one block has all tiles: sums then go on to the gradient at once."""
        return len(self.blocks) == 1

    @cached_property
    def part(self) -> int:
        """Chunks of a phase that go on to the gradient together."""
        sums = self.points * len(self.phases.order) * self.unit_sums
        wanted = max(1, int(self.cache * _SHARE) // sums) if self.alone else self.together
        fewest = -(-_UNITS * self.workers // self.kblocks) if self.workers > 1 else 1
        return max(1, min(wanted, self.together // min(fewest, self.together)))

    @property
    def parts(self) -> int:
        return -(-self.together // self.part)

    @property
    def tiles(self) -> int:
        """Tiles of the largest block."""
        return self.blocks[0].rows * self.blocks[0].cols

    @cached_property
    def planes(self) -> dict[str, int]:
        """Strides of a point in transformed x and dy, and in the sums, in bytes."""
        # A line more than needed: planes a power of two apart would share the few places of one cache set.
        return {
            "v": self.tiles * self.chunks * self.width + LINE,
            "u": self.tiles * self.needed * self.width + LINE,
            "m": (self.part if self.alone else self.together) * len(self.phases.order) * self.unit_sums + LINE,
        }

    @cached_property
    def rooms(self) -> dict[str, int]:
        """Bytes of transformed x and dy, of the sums, and of the workers' scratch."""
        squares = self.lanes * self.width
        slab = whole_lines(self.extent * self.phases.stride[0] * self.slab_row + squares)
        strip = whole_lines(self.chunk * math.prod(self.problem.kernel_size[-2:]) * self.width + squares)
        sums = whole_lines(self.points * self.planes["m"])
        return {
            "v": whole_lines(self.points * self.planes["v"]),
            "u": whole_lines(self.points * self.planes["u"]),
            "sums": (self.workers if self.alone else self.kblocks) * sums,
            "scratch": self.workers * (slab + strip),
            "slab": slab,
        }

    @property
    def scratch_bytes(self) -> int:
        return sum(self.rooms[name] for name in ("v", "u", "sums", "scratch"))

    @property
    def slab_row(self) -> int:
        """Bytes of a row of what tiles read, those of the widest block."""
        return (self.blocks[0].cols * self.m + self.extent - self.m) * self.phases.stride[1] * self.width

    def tables(self) -> list[np.ndarray]:
        """Return the indices of x at every padded position that tiles read, by depths, rows and columns; then of dy."""
        found = [source_line(self.axes[0])]
        plane = list(zip(self.axes[1:], (self.down, self.across), strict=True))
        found += [read_line(axis, self.m, self.extent, tiles) for axis, tiles in plane]
        for axis, tiles in plane:
            position = np.arange(tiles * self.m)
            found.append(np.where(position < axis.out, position, -1))
        return [np.ascontiguousarray(table, np.int64) for table in found]

    def phase_tables(self) -> tuple[np.ndarray, ...]:
        """Return where in the slab every phase begins, in bytes; its `Phases.tap_places`; and `Phases.spans`."""
        starts = self.phases.starts(self.slab_row, self.width)
        return starts, self.phases.tap_places(turned=False), np.array(self.phases.spans, np.int64)

    @property
    def cycles(self) -> float:
        """Cycles of one worker, all doing their share."""
        tiles, needed = self.all_rows * self.across, self.needed
        turn = math.log2(self.lanes) + _TURN
        per_row = self.all_rows * self.lanes * turn
        down, across = self.phases.stride
        read, taken = (
            -(-min(self.across * self.m + more, self.problem.ow) * step // self.lanes)
            for more, step in ((self.extent - self.m, across), (0, 1))
        )
        enter = self.points * tiles * (_OF_X * self.chunks + _OF_DY * needed)
        enter += per_row * (self.extent * down * read * self.together + self.m * taken * needed)
        sums = self.chunks * self.chunk * needed
        summed = self.together * self.phases.products / self.points
        products = tiles * summed * self._step_cycles(self.tile)
        products += len(self.blocks) * (self.chunks * self.kblocks * _BEGIN + 3 * sums)
        moved = tiles * (self.chunks + needed)
        if self.points * moved * self.width > self.cache:
            products += _FAR_CYCLES * moved
        if not self.alone and self.all_sums > self.cache // 2:
            products += 2 * _FAR_CYCLES * len(self.blocks) * sums
        leave = (
            self.inputs
            * needed
            * (_OF_SUMS * self.points * len(self.phases.order) * self.axes[0].kernel + turn * self.taps)
        )
        total: float = self.problem.groups * (enter + self.points * products + leave)
        units = self.kblocks * (self.parts if self.alone else self.points)
        uneven = -(-units // self.workers) / units
        # Who sums is not who transformed.
        shared = self.problem.groups * self.points * moved * _SHARED_CYCLES * (1 - 1 / self.workers)
        return float(total / self.simd.fma_per_cycle * max(uneven, 1 / self.workers) + shared / self.workers)

    @property
    def launches(self) -> int:
        return self.problem.groups * (2 * len(self.blocks) + (0 if self.alone else 1))
