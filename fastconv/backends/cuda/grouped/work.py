"""A grouped convolution made ready: the tile of a block of `kernels/grouped.cu`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cuda.device import Properties
from fastconv.backends.cuda.geometry import Axis, Phase, phases
from fastconv.problem import DTYPES, ConvProblem

THREADS = 256
ROWS = 4
MAX_PHASES = 4
SHARED = 48 << 10
# Blocks that a multiprocessor runs side by side; images of a block that has its weights at hand.
RESIDENT, _MOST_PASSES = 2, 8
# Instructions beside multiply-adds, a source element of a tile; share of the peak. Not measured.
STAGING, EFFICIENCY = 20, 0.6


class Tile(NamedTuple):
    """A block's results: so many groups, columns, and groups of rows; and what it holds of the source.

    Attributes
    ----------
    groups, columns, row_groups : int
    chunk : int
        Source channels of a group that are in shared memory at a time.
    source_rows, line, plane : int
        Rows and columns of one of them there, and elements from one to the next.
    """

    groups: int
    columns: int
    row_groups: int
    chunk: int
    source_rows: int
    line: int
    plane: int


@dataclass(frozen=True)
class Work:
    """One problem: a gather (see `fastconv.backends.cuda.geometry`) for each of its phases."""

    problem: ConvProblem
    properties: Properties

    @cached_property
    def phases(self) -> list[Phase]:
        return phases(self.problem)

    @property
    def is_gradient(self) -> bool:
        return self.problem.direction == "dgrad"

    @property
    def inputs(self) -> int:
        """Source channels of a group."""
        p = self.problem
        return (p.oc if self.is_gradient else p.ic) // p.groups

    @property
    def outputs(self) -> int:
        """Result channels of a group."""
        p = self.problem
        return (p.ic if self.is_gradient else p.oc) // p.groups

    @property
    def size(self) -> int:
        """Bytes of a sum."""
        return DTYPES[self.problem.accumulator]

    @cached_property
    def thread_outputs(self) -> int:
        """Result channels of a thread: as many as pad the group least, of up to 32 bytes."""
        options = [n for n in (8, 4, 2, 1) if n * self.size <= 32]
        return least_padding(self.outputs, options)

    @property
    def output_blocks(self) -> int:
        return -(-self.outputs // self.thread_outputs)

    @property
    def taps(self) -> int:
        """Taps of a phase, at most."""
        return max(phase[1].taps * phase[2].taps for phase in self.phases)

    def positions(self, axis: int) -> int:
        return max(phase[axis].positions for phase in self.phases)

    def _reached(self, axis: int, positions: int) -> int:
        """Elements of the source that neighbouring positions read."""

        def of(a: Axis) -> int:
            return (positions - 1) * a.stride + max(a.taps - 1, 0) * abs(a.dilation) + 1

        return max(of(phase[axis]) for phase in self.phases)

    @property
    def fits(self) -> bool:
        return self._tile(1, True, 1, 1) is not None

    def tile(self, load: int, last: bool) -> Tile:
        """Return the tile that should take the least time, for copies of so many elements along columns or channels."""
        return min(self._tiles(load, last), key=self._cost)

    def _tiles(self, load: int, last: bool) -> Iterator[Tile]:
        positions = self.positions(2)
        for parts in sorted({1, 2, 3, 4, 8, -(-positions // 64), -(-positions // 32), positions}):
            columns = -(-positions // min(parts, positions))
            for row_groups in (1, 2, 4, 8, 16, 32):
                tile = self._tile(load, last, columns, row_groups)
                if tile is not None:
                    yield tile

    def _tile(self, load: int, last: bool, columns: int, row_groups: int) -> Tile | None:
        threads = columns * row_groups * self.output_blocks
        if threads > THREADS or (row_groups > 1 and (row_groups - 1) * ROWS >= self.positions(1)):
            return None
        source_rows, reached = self._reached(1, row_groups * ROWS), self._reached(2, columns)
        line = reached if last else -(-(reached + load - 1) // load) * load
        # Of an odd size, where neighbouring threads copy neighbouring channels.
        plane = source_rows * line | 1 if last else source_rows * line
        bytes_of_one = (plane + self.taps * self.output_blocks * self.thread_outputs) * self.size
        unit = load if last else 1
        chunk = self.inputs
        while chunk > unit and chunk * bytes_of_one > SHARED:
            chunk = max(unit, chunk // 2 // unit * unit)
        if chunk * bytes_of_one > SHARED:
            return None
        groups = 1
        if chunk == self.inputs:
            groups = min(THREADS // threads, self.problem.groups, SHARED // (chunk * bytes_of_one))
        return Tile(groups, columns, row_groups, chunk, source_rows, line, plane)

    def shared(self, tile: Tile) -> int:
        """Bytes of shared memory of a block."""
        weights = self.taps * self.output_blocks * self.thread_outputs
        # The weights begin at a multiple of 16 bytes.
        return tile.groups * tile.chunk * (tile.plane + weights) * self.size + 16

    def passes(self, tile: Tile) -> int:
        """Images of a block, one after another."""
        if tile.chunk < self.inputs:
            return 1
        blocks = self.blocks(tile, 1)
        return max(1, min(_MOST_PASSES, self.problem.n, blocks // (8 * self.properties.multiprocessors)))

    def tiles(self, tile: Tile) -> tuple[int, int]:
        """Return how many tiles there are of rows and of columns."""
        return -(-self.positions(1) // (tile.row_groups * ROWS)), -(-self.positions(2) // tile.columns)

    def blocks(self, tile: Tile, passes: int) -> int:
        group_blocks = -(-self.problem.groups // tile.groups)
        return math.prod(self.tiles(tile)) * group_blocks * len(self.phases) * -(-self.problem.n // passes)

    def _block_flops(self, tile: Tile) -> float:
        sums = THREADS * ROWS * self.thread_outputs * self.inputs * max(self.taps, 1)
        weights = self.taps * self.output_blocks * self.thread_outputs
        staged = tile.groups * self.inputs * (tile.source_rows * tile.line + weights)
        return 2.0 * (sums + STAGING * staged)

    def _cost(self, tile: Tile) -> float:
        slots = RESIDENT * self.properties.multiprocessors
        return max(1.0, self.blocks(tile, 1) / slots) * self._block_flops(tile)

    @property
    def seconds(self) -> float:
        last = self.problem.layout == "channels_last"
        tile = self.tile(1, last)
        blocks = self.blocks(tile, 1)
        return self.properties.seconds(
            flops=blocks * self._block_flops(tile),
            moved=self.problem.bytes,
            blocks=blocks,
            peak=EFFICIENCY * self.properties.peak(self.problem.accumulator),
            resident=RESIDENT,
            launches=-(-len(self.phases) // MAX_PHASES),
        )


def least_padding(count: int, options: list[int]) -> int:
    """Return the part into which a count divides with the least left over; of those the largest."""
    return min(options, key=lambda n: (-(-count // n) * n, -n))
