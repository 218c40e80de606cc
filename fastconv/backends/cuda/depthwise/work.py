"""A depthwise convolution made ready: which kernel a form of arrays takes, and the tiles of its blocks.

Where columns are neighbours in memory, a block has a tile of planes in shared memory (`PlaneTile`); where channels are,
a thread has a vector of them (`ChannelTile`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cuda.device import Properties
from fastconv.problem import DTYPES, ConvProblem

THREADS = 256
# Kernels that a thread unrolls; and taps of any others whose sums a thread of a weight gradient holds.
UNROLLED = (3, 5, 7)
_PLANE_TAPS, _CHANNEL_TAPS = 8, 4
# Result rows of a thread: seven divides the heights of most networks' maps.
_ROWS = (7, 4, 1)
_SHARED = 48 << 10
_LANES = 32
# Blocks that a multiprocessor runs side by side; and strips that a thread should walk over at least.
_RESIDENT = 4
_LEAST_STRIPS = 2
# Instructions beside multiply-adds, a result; and the share of the peak that these may reach. Not measured.
_OVERHEAD, _EFFICIENCY = 12, 0.6


class Axis(NamedTuple):
    """One spatial axis in the convolution's own words, as ``DepthwiseAxis`` of kernels/depthwise.cuh."""

    results: int
    sources: int
    taps: int
    stride: int
    dilation: int
    before: int

    def packed(self) -> tuple[int, ...]:
        common = math.gcd(self.stride, self.dilation)
        return (*self, self.stride // common, self.dilation // common)


class PlaneTile(NamedTuple):
    """So many planes, groups of so many rows, and columns of results; rows and columns of the source behind them."""

    rows: int
    planes: int
    groups: int
    columns: int
    source_rows: int
    line: int


class ChannelTile(NamedTuple):
    """So many vectors of so many channels; neighbouring columns of a thread."""

    width: int
    lanes: int
    columns: int

    @property
    def walkers(self) -> int:
        """Threads that have the same channels."""
        return THREADS // self.lanes


@dataclass(frozen=True)
class Work:
    """One problem.

    Attributes
    ----------
    problem : ConvProblem
        With one input channel a group.
    properties : Properties
        Of the GPU.
    max_workspace : int
    """

    problem: ConvProblem
    properties: Properties
    max_workspace: int

    @property
    def is_gradient(self) -> bool:
        return self.problem.direction == "dgrad"

    @property
    def is_wgrad(self) -> bool:
        return self.problem.direction == "wgrad"

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns; results and sources change places in an input gradient."""
        p = self.problem
        lines = zip(p.output_size, p.input_size, p.kernel_size, p.stride, p.dilation, p.padding, strict=True)
        axes = [Axis(*((i, o) if self.is_gradient else (o, i)), k, s, d, pad[0]) for o, i, k, s, d, pad in lines]
        row, column = [Axis(1, 1, 1, 1, 1, 0)] * (2 - len(axes)) + axes
        return row, column

    @property
    def taps(self) -> int:
        return self.axes[0].taps * self.axes[1].taps

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return self.problem.ic if self.is_gradient else self.problem.oc

    @property
    def repeats(self) -> int:
        """Result channels that read one source channel."""
        return 1 if self.is_gradient else self.problem.oc // self.problem.ic

    @property
    def sources(self) -> int:
        """Source channels that a result channel sums over."""
        return self.problem.oc // self.problem.ic if self.is_gradient else 1

    @property
    def unrolled(self) -> int:
        """The kernel's size if threads unroll it; else zero."""
        row, column = self.axes
        known = row.taps == column.taps and row.taps in UNROLLED and row.dilation == column.dilation == 1
        stepped = row.stride == column.stride and row.stride in ((1,) if self.is_gradient else (1, 2))
        return row.taps if known and stepped else 0

    @property
    def size(self) -> int:
        """Bytes of a sum."""
        return DTYPES[self.problem.accumulator]

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of the source behind one result."""
        row, column = (self._reached(axis, 1) for axis in self.axes)
        return row, column

    @property
    def fits(self) -> bool:
        return self._plane_tile(1, 1, self.axes[1].results, 1) is not None

    def _reached(self, axis: Axis, results: int) -> int:
        """Elements of the source that neighbouring results read."""
        if not self.is_gradient:
            return (results - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
        span = results - 1 + (axis.taps - 1) * axis.dilation
        return span // axis.stride + (1 if axis.stride == 1 else 2)

    def plane_tile(self, load: int) -> PlaneTile:
        """Return the tile of planes that should take the least time, for copies of so many elements."""
        options = [tile for tile in self._plane_tiles(load) if tile is not None]
        return min(options, key=self._plane_cost)

    def _plane_tiles(self, load: int) -> Iterator[PlaneTile | None]:
        row, column = self.axes
        for rows in _ROWS:
            if rows > 1 and row.results == 1:
                continue
            widths = (256, 128, 32, 8, 1)
            for parts in sorted({1, 2, 3, 4, 6, *(-(-column.results // width) for width in widths)}):
                if parts <= column.results:
                    yield self._plane_tile(load, rows, parts, self.all_planes)

    @property
    def all_planes(self) -> int:
        """Planes that blocks may share: those of a weight gradient's sum are of one channel."""
        return self.problem.n * (1 if self.is_wgrad else self.channels)

    def _plane_tile(self, load: int, rows: int, parts: int, most: int) -> PlaneTile | None:
        row, column = self.axes
        columns = -(-column.results // parts)
        line = -(-(self._reached(column, columns) + load - 1) // load) * load
        if columns > THREADS or line // load > THREADS:
            return None
        groups = min(-(-row.results // rows), THREADS // columns)
        while groups and self._reached(row, groups * rows) * line * self.size > _SHARED:
            groups -= 1
        if not groups:
            return None
        source_rows = self._reached(row, groups * rows)
        room = _SHARED // (source_rows * line * self.size)
        planes = min(most, THREADS // (columns * groups), room) if groups * rows >= row.results and parts == 1 else 1
        return PlaneTile(rows, planes, groups, columns, source_rows, line)

    def plane_tiles(self, tile: PlaneTile) -> tuple[int, int, int]:
        """Return how many tiles there are of planes, rows and columns."""
        row, column = self.axes
        return (
            -(-self.all_planes // tile.planes),
            -(-row.results // (tile.groups * tile.rows)),
            -(-column.results // tile.columns),
        )

    def _plane_cost(self, tile: PlaneTile) -> float:
        staged = tile.planes * tile.source_rows * tile.line
        results = THREADS * tile.rows
        count = math.prod(self.plane_tiles(tile)) * (self.channels if self.is_wgrad else 1)
        busy = max(1.0, count / (_RESIDENT * self.properties.multiprocessors))
        return busy * (2 * staged + results * (1 + self.taps / 4))

    def channel_tile(self, width: int) -> ChannelTile:
        """Return the tile of vectors of so many channels."""
        column = self.axes[1]
        vectors = -(-self.channels // width)
        most = min(_LANES, THREADS // width)
        # The sums of all taps, in shared memory; a few more so that lines of taps do not meet in a bank.
        while most > 1 and self.taps * (most * width + 4) * self.size > _SHARED:
            most //= 2
        lanes = -(-vectors // -(-vectors // most))
        columns = 1
        if self.unrolled:
            # More would take more registers than two blocks side by side have.
            crowded = width * self.size > 16 and (self.is_wgrad or column.stride > 1)
            columns = 2 if crowded else 4
        return ChannelTile(width, lanes, columns)

    def channel_tiles(self, tile: ChannelTile) -> tuple[int, int, int]:
        """Return how many tiles there are of images, rows and columns."""
        row, column = self.axes
        return self.problem.n, row.results, -(-column.results // tile.columns)

    def tap_sums(self, tile: PlaneTile | ChannelTile) -> int:
        """Return how many taps' sums a thread of a weight gradient holds."""
        if isinstance(tile, PlaneTile):
            return self.unrolled**2 or _PLANE_TAPS
        if not self.unrolled:
            return _CHANNEL_TAPS
        return self.unrolled * (3 if self.unrolled == 3 and tile.width * self.size <= 16 else 1)

    def splits(self, tile: PlaneTile | ChannelTile) -> int:
        """Return how many blocks share the images of a weight gradient's channels."""
        chunks = -(-self.taps // self.tap_sums(tile))
        if isinstance(tile, PlaneTile):
            others, most = self.channels * chunks, math.prod(self.plane_tiles(tile))
        else:
            others = -(-self.channels // (tile.lanes * tile.width)) * chunks
            most = -(-math.prod(self.channel_tiles(tile)) // (tile.walkers * _LEAST_STRIPS))
        wanted = -(-_RESIDENT * self.properties.multiprocessors // others)
        allowed = self.max_workspace // (self.channels * self.taps * self.size)
        return max(1, min(wanted, most, allowed))

    @cached_property
    def usual(self) -> PlaneTile | ChannelTile:
        """The tile for arrays as fastconv allocates them."""
        wide = 16 // self.problem.itemsize
        if self.problem.layout == "channels_last" and self.channels > 1:
            fits = self.repeats == self.sources == 1 and self.channels % wide == 0
            return self.channel_tile(wide if fits else 1)
        return self.plane_tile(wide if self.axes[1].sources % wide == 0 else 1)

    @property
    def partial_bytes(self) -> int:
        """Scratch for the parts of a weight gradient."""
        return self.splits(self.usual) * self.channels * self.taps * self.size if self.is_wgrad else 0

    @property
    def seconds(self) -> float:
        tile = self.usual
        if isinstance(tile, PlaneTile):
            blocks = self.channels * self.splits(tile) if self.is_wgrad else math.prod(self.plane_tiles(tile))
        elif self.is_wgrad:
            chunks = -(-self.taps // self.tap_sums(tile))
            blocks = -(-self.channels // (tile.lanes * tile.width)) * chunks * self.splits(tile)
        else:
            threads = math.prod(self.channel_tiles(tile)) * -(-self.channels // tile.width)
            blocks = -(-threads // THREADS)
        results = math.prod(self.problem.x_shape if self.is_gradient else self.problem.y_shape)
        return self.properties.seconds(
            flops=2.0 * (self.problem.macs + _OVERHEAD * results),
            moved=self.problem.bytes + 2 * self.partial_bytes,
            blocks=blocks,
            peak=_EFFICIENCY * self.properties.peak(self.problem.accumulator),
            resident=_RESIDENT,
            launches=2 if self.is_wgrad else 1,
        )
