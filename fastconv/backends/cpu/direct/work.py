"""One direct convolution made ready: its tile, its slab, how the work is cut, and the record that says so."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.registers import Simd
from fastconv.problem import ConvProblem, Sizes

# Units of work a thread, so that an uneven end costs little.
_UNITS = 4


class Tile(NamedTuple):
    """What is held in registers: output rows and columns, vectors of output channels; vectors of the last block."""

    rows: int
    cols: int
    vectors: int
    tail: int


def choose_tile(output: Sizes, channels: int, lanes: int, registers: int) -> tuple[Tile, float]:
    """Return the tile that takes the fewest cycles, and these cycles for one input channel and kernel position.

    Parameters
    ----------
    output : (rows, columns)
    channels : int
        Output channels of a group.
    lanes, registers : int
        Of the vector unit.
    """
    rows_out, cols_out = output
    needed = -(-channels // lanes)
    best, best_cost = Tile(1, 1, 1, 1), math.inf
    for vectors in range(1, min(needed, 4) + 1):
        blocks = -(-needed // vectors)
        tail = needed - (blocks - 1) * vectors
        # Beside the sums: the weights of a step, and one value that is broadcast.
        pixels = (registers - 1 - vectors) // vectors
        for cols in range(1, min(cols_out, pixels) + 1):
            rows = min(rows_out, pixels // cols) if cols == cols_out else 1
            tiles = -(-rows_out // rows) * -(-cols_out // cols)
            cost = tiles * ((blocks - 1) * _step_cycles(rows * cols, vectors) + _step_cycles(rows * cols, tail))
            if cost < best_cost:
                best, best_cost = Tile(rows, cols, vectors, tail), cost
    return best, best_cost


def _step_cycles(pixels: int, vectors: int) -> float:
    """Two multiply-adds or two loads a cycle, and the loop's own; fewer sums than eight wait for their predecessors."""
    return max(pixels * vectors, pixels + vectors, 8) / 2 + 1


class Work:
    """A problem as the loops take it.

    Parameters
    ----------
    problem : ConvProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.
    """

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        self.problem, self.simd, self.workers, self.cache = problem, vectors, workers, cache
        self.size = problem.itemsize
        self.lanes = vectors.lanes(self.size)
        self.axes = lifted_axes(problem)
        self.inputs = problem.ic // problem.groups
        self.outputs = problem.oc // problem.groups
        self.taps = math.prod(problem.kernel_size)
        self.padded = any(not axis.is_inside((0, axis.out)) for axis in self.axes)
        # Where an image has one output position (a fully connected layer), a tile takes one pixel of several images.
        self.across = not self.padded and problem.n > 1 and math.prod(problem.output_size) == 1
        self.images = 1 if self.across else problem.n
        _, rows, cols = self.axes
        self.output = (1, problem.n) if self.across else (rows.out, cols.out)
        self.tile, self.step_cycles = choose_tile(self.output, self.outputs, self.lanes, vectors.registers)

    @property
    def block(self) -> int:
        """Output channels of a block."""
        return self.tile.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.block)

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        channels = (self.blocks - 1) * self.block + self.tile.tail * self.lanes
        return self.problem.groups * channels * self.inputs * self.taps

    @cached_property
    def band(self) -> int:
        """Output rows done together: few enough for half of the cache, and for every worker to get some."""
        _, rows, _ = self.axes
        outer = self.images * self.problem.groups * self.axes[0].out
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 else 1
        band = max(self.tile.rows, -(-rows.out // wanted))
        while band > self.tile.rows and self.slab_bytes(band) > self.cache // 2:
            band = max(self.tile.rows, band - self.tile.rows)
        # Even bands: as few rows as may be are done twice.
        bands = -(-rows.out // band)
        return max(self.tile.rows, -(-rows.out // bands))

    @property
    def bands(self) -> int:
        return -(-self.axes[1].out // self.band)

    @property
    def parts(self) -> int:
        """Pieces that the blocks of output channels are cut into, where bands alone do not feed all workers."""
        units = self.images * self.problem.groups * self.axes[0].out * self.bands
        if self.workers == 1 or units >= 2 * self.workers:
            return 1
        return min(self.blocks, -(-2 * self.workers // units))

    @property
    def units(self) -> int:
        return self.images * self.problem.groups * self.axes[0].out * self.bands * self.parts

    def slab_bytes(self, band: int) -> int:
        """Bytes of the input, padding included, that a band of output rows reads."""
        depth, rows, cols = self.axes
        return self.inputs * depth.extent(1) * rows.extent(band) * cols.extent(cols.out) * self.size

    def seconds(self, hertz: float) -> float:
        """Return what the micro-kernel should take on one core."""
        p = self.problem
        steps = self.images * p.groups * self.axes[0].out * self.inputs * self.taps
        return steps * self.step_cycles / hertz
