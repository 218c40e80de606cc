"""One weight gradient with pixels in the lanes made ready: its tile, its slab of shifted rows, its units of work.

An element of the gradient, a cell, is the product of a line of ``dy`` and a line of ``x``. A plane of ``dy`` is such a
line as it lies. For every kernel column a slab holds the columns of ``x`` that it meets side by side, rows as long as
those of ``dy``, one after the other as the stride takes them; so a kernel row is a place in a slab, and vectors run on
over the ends of rows. A plane of a volume meets as many planes of ``x`` as the kernel has depths, each of which is
another channel to it. Where the kernel is a point and moves by one, a plane of ``x`` is such a line as it lies, too.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.cuts import Cut, even
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.geometry import Axis
from fastconv.problem import ConvProblem

# Units of work a thread, so that an uneven end costs little.
_UNITS = 2
# Slices that the reduction is cut into where channels are too few to be shared out; bands in one of these, at least,
# and multiply-adds of vectors, beside which it takes little to add the slices up.
_SLICES, _BANDS, _STEPS = 8, 2, 200_000
# What of dy tiles read again and again, in a first-level cache; the share of the second level that a slab takes.
_NEAR, _SHARE = 32 << 10, 8
# What of dy is read again from caches beyond the second level, in second-level caches.
_FAR = 4
# Output channels that a tile takes at most.
_MOST_OUTPUTS = 8
# Cycles before a sum is added to again; of starting a tile; of a vector of sums that is loaded and stored, in the first
# level and in the second.
_LATENCY, _TILE, _SUM, _FAR_SUM = 4.0, 40.0, 1.0, 3.0
# Cycles of a row's vector on its way into a slab, for each that it is brought together from, and of a phase's column of
# such vectors, of which there may be but one.
_PUT, _PICK, _PLANE, _ONLY = 2.0, 1.0, 30.0, 5.0
# Cycles of a cell whose lanes are added up, were one instruction to start in a cycle.
_CELL = 4.0
# An axis of one position.
_POINT = Axis(1, 1, 1, 1, 1, 0, "zeros")


class Tile(NamedTuple):
    """What is held in registers: sums of output channels by cells."""

    outputs: int
    cells: int


def step_cycles(outputs: int, cells: int, fma_per_cycle: float) -> float:
    """Return the cycles of a tile for one vector of pixels, most of which take two of the loads of narrower ones."""
    loads = 2.0 / fma_per_cycle * cells + 1.5 / fma_per_cycle * outputs
    return max(outputs * cells / fma_per_cycle, loads, _LATENCY) + 1


def _share(whole: int, parts: float) -> int:
    """Return the largest part of so many things that are dealt out evenly, to as many or more."""
    return next(size for size in range(whole, 0, -1) if whole % size == 0 and (whole // size >= parts or size == 1))


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    growth = 0.0

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        #: Whether x is read where it is.
        self.in_place = all(axis.is_point for axis in self.axes)
        if self.in_place:
            pixels = math.prod(problem.output_size)
            self.axes = (_POINT, _POINT, Axis(pixels, pixels, 1, 1, 1, 0, "zeros"))
        self.depths, self.rows, self.cols = self.axes
        # Channels whose rows a slab holds all at once; all channels, band by band, if dy is too large to be read again.
        dy = math.prod(problem.y_shape) // problem.groups * self.size
        self._together = self.inputs
        if dy <= _FAR * cache and not self.in_place:
            most = max(1, cache // _SHARE // self.slab_bytes(1, self.rows.out))
            self._together = _share(self.inputs, self.inputs / most)
        wanted = _UNITS * workers / (problem.groups * self.slices) if workers > 1 else 1.0
        #: Channels and output channels of a unit of work.
        self.channels = _share(self._together, wanted * self._together / self.inputs)
        self.filters = _share(self.outputs, wanted * self.channels / self.inputs)
        self.cells = self.channels * self.taps
        self.tile = self._choose()

    def _choose(self) -> Tile:
        """Return the tile that takes the fewest cycles."""
        registers = self.simd.registers
        tiles = [
            Tile(height, width)
            for height in range(1, min(self.filters, _MOST_OUTPUTS) + 1)
            for width in range(1, min(self.cells, registers // height) + 1)
            # Beside the sums: the fewer of the two kinds of factors, and one of the others.
            if height * width + min(height, width) + 1 <= registers
        ]
        return min(tiles, key=self._summing_cycles)

    @cached_property
    def slices(self) -> int:
        """Parts of the reduction whose sums are added up at the end; they do not depend on the number of threads."""
        if self.problem.groups * (self.inputs // self._together) >= _SLICES:
            return 1
        steps = self.problem.flops / 2 / self.lanes
        most = min(self.problem.n * self.depths.out * self.bands // _BANDS, int(steps / _STEPS))
        return max(1, min(_SLICES, most))

    @property
    def units(self) -> int:
        parts = (self.inputs // self.channels) * (self.outputs // self.filters)
        return self.problem.groups * parts * self.slices

    def cuts(self, tile: Tile) -> tuple[Cut, Cut]:
        """Return how output channels and cells of a unit are cut into tiles."""
        return even(self.filters, tile.outputs), even(self.cells, tile.cells)

    @cached_property
    def phases(self) -> list[int]:
        """Which of the rows that a stride passes are read at all: a slab holds the rows of each by themselves."""
        return sorted({row * self.rows.dilation % self.rows.stride for row in range(self.rows.kernel)})

    @property
    def overhang(self) -> int:
        """Rows of a phase that a band reads beyond as many as it has."""
        return (self.rows.kernel - 1) * self.rows.dilation // self.rows.stride

    @property
    def vectors(self) -> int:
        """Vectors of a row."""
        return -(-self.cols.out // self.lanes)

    def plane_bytes(self, band: int) -> int:
        """Bytes of a phase of a channel for a kernel column, and of what is stored beyond the last row's end."""
        elements = (band + self.overhang) * self.cols.out + self.lanes
        return whole_lines(elements * self.size)

    def slab_bytes(self, channels: int, band: int) -> int:
        """Bytes of all that a band reads of so many channels, if that is put together."""
        return 0 if self.in_place else self._columns(channels) * self.plane_bytes(band)

    def _columns(self, channels: int) -> int:
        """Return how many planes a slab holds of so many channels: one for each phase of a kernel column of a depth."""
        return channels * self.depths.kernel * len(self.phases) * self.cols.kernel

    @cached_property
    def band(self) -> int:
        """Output rows done together; it does not depend on the number of threads, as the order of sums does not."""
        if self.in_place:
            return self.rows.out
        row = self._columns(self._together) * self.cols.out * self.size
        most = max(1, self.cache // _SHARE // row - self.overhang)
        return even(self.rows.out, most).size

    @property
    def bands(self) -> int:
        return -(-self.rows.out // self.band)

    def piece(self, tile: Tile) -> int:
        """Return how many pixels of a band are summed before the next tile has its turn."""
        vectors = -(-self.band * self.cols.out // self.lanes)
        most = _NEAR // (tile.outputs * self.simd.vector_bytes)
        if self.in_place and self.filters > tile.outputs:  # other output channels read the same of x
            most = min(most, self.cache // 2 // (self.cells * self.simd.vector_bytes))
        return even(vectors, max(1, most)).size * self.lanes

    @property
    def sums_bytes(self) -> int:
        """Bytes of a unit's sums, a vector each; as many are read at once as it has lanes."""
        return (self.filters * self.cells + self.lanes) * self.simd.vector_bytes

    @property
    def scratch_bytes(self) -> int:
        return self.slab_bytes(self.channels, self.band) + self.sums_bytes

    @property
    def slices_bytes(self) -> int:
        """Bytes of the gradients of slices."""
        return self.slices * math.prod(self.problem.w_shape) * self.size if self.slices > 1 else 0

    @property
    def read_once(self) -> int:
        """Bytes of the input."""
        return math.prod(self.problem.x_shape) * self.size

    @property
    def is_far(self) -> bool:
        """Whether the input outgrows the second-level cache, and has rows that are worth asking for one by one."""
        return self.read_once > self.cache and self.cols.size * self.size >= LINE

    @property
    def read_again(self) -> int:
        """Bytes of dy, again for other channels, and of the input for other output channels than the first."""
        dy = math.prod(self.problem.y_shape) * self.size
        return self.read_once * (self.outputs // self.filters - 1) + dy * (self.inputs // self.channels)

    def _summing_cycles(self, tile: Tile) -> float:
        """Return the cycles of the tiles for a band of a unit."""
        pixels, fma = self.band * self.cols.out, self.simd.fma_per_cycle
        pieces, steps = -(-pixels // self.piece(tile)), -(-pixels // self.lanes)
        outputs, cells = self.cuts(tile)
        held = _SUM if self.sums_bytes <= _NEAR else _FAR_SUM
        return sum(
            many * some * (steps * step_cycles(height, width, fma) + pieces * (_TILE + held * height * width))
            for many, height in outputs.spans
            for some, width in cells.spans
        )

    @property
    def cycles(self) -> float:
        """Cycles on one core: the sums, filling slabs, adding up lanes."""
        columns = 0 if self.in_place else self._columns(self.channels) * self.vectors
        rows = self.band + self.overhang
        filling = columns * ((_PLANE if rows > 1 else _ONLY) + rows * (_PUT + _PICK * self.cols.stride))
        summing = self._summing_cycles(self.tile)
        ending = self.filters * self.cells * _CELL / self.simd.fma_per_cycle
        bands = self.problem.n * self.depths.out * self.bands
        return self.units * (bands / self.slices * (summing + filling) + ending)
