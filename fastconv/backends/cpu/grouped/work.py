"""One grouped convolution made ready: its tile, its slab of padded input, and how the work is cut.

Lanes are outputs next to one another, also over the ends of rows: a slab's rows lie ``pitch`` elements apart, output
``(r, q)`` is number ``r * pitch + q``, and what it reads for one term of its sum lies that far from what output 0
reads. The numbers between two rows are computed as the others are, and left out when the sums are stored. With
strides, a slab holds a channel's rows and columns by phase, so that neighbours stay neighbours.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.problem import ConvProblem

# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
# Output channels that a tile takes at most.
_MOST_CHANNELS = 8
# The share of the second-level cache that a slab and its sums take. Of a smaller one, bands would be of few rows: these
# lie in short pieces, channel by channel, which nothing fetches ahead, and those that bands share are copied again.
_SHARE = 2
# What of the sums stays in the first-level cache, and bytes a cycle from the second.
_NEAR, _L2_RATE = 24 << 10, 32
# Cycles for a unit of work, and for a row of a channel on its way into a slab or out of the sums.
_UNIT, _ROW = 60.0, 3.0
# Cycles for a vector that is copied into a slab, split by phase, gathered (for each element), or stored from the sums;
# for one of a square that is turned on its way into or out of neighbouring channels. Measured on 512-bit vectors.
_COPY, _SPLIT, _GATHER, _STORE, _TURN = 3.0, 5.0, 6.0, 2.5, 5.0


class Tile(NamedTuple):
    """What is held in registers: output channels, and vectors of outputs; vectors of a smaller tile for the rest."""

    channels: int
    vectors: int
    less: int


def step_cycles(channels: int, vectors: int, fma_per_cycle: float) -> float:
    """Return the cycles for one term of a tile's sums.

    Vectors are read where they lie, so most take two of the loads that keep up with a multiply-add; fewer sums than
    a multiply-add's four cycles hold wait for their predecessors.
    """
    loads = 2 * vectors / fma_per_cycle + channels / 2
    return max(channels * vectors / fma_per_cycle, loads, 4.0) + 1 / fma_per_cycle


def choose_tile(outputs: int, channels: int, lanes: int, registers: int, fma_per_cycle: float) -> tuple[Tile, float]:
    """Return the tile that takes the fewest cycles, and these cycles for one term of all sums.

    Parameters
    ----------
    outputs : int
        Numbered outputs, those between rows included.
    channels : int
        Output channels of a group.
    lanes, registers : int
        Of the vector unit.
    fma_per_cycle : float
        Fused multiply-adds that start in a cycle.
    """
    needed = -(-outputs // lanes)
    best, best_cost = Tile(1, 1, 1), math.inf
    for height in range(1, min(channels, _MOST_CHANNELS) + 1):
        blocks = -(-channels // height)
        for vectors in range(1, min(needed, registers // height) + 1):
            if height * vectors + min(height, vectors) + 1 > registers:
                continue
            whole, rest = divmod(needed, vectors)
            for less in (-(-vectors // 2), 1):
                tiles = whole + (rest > less)
                cost = tiles * step_cycles(height, vectors, fma_per_cycle)
                if 0 < rest <= less:
                    cost += step_cycles(height, less, fma_per_cycle)
                if blocks * cost < best_cost:
                    best, best_cost = Tile(height, vectors, less), blocks * cost
    return best, best_cost


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    growth = 0.0

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        _, self.rows, self.cols = self.axes
        self.terms = self.inputs * self.taps
        self.phases = self.rows.stride, self.cols.stride
        # Channels-last, a vector of channels is read and written at once, be they of several groups.
        last = problem.layout == "channels_last"
        together = -(-self.lanes // min(self.inputs, self.outputs)) if last else 1
        self.bundle = min(problem.groups, together)
        tile = choose_tile(self.numbers(self.band), self.outputs, self.lanes, vectors.registers, vectors.fma_per_cycle)
        self.tile, self.step_cycles = tile

    @property
    def bundles(self) -> int:
        return -(-self.problem.groups // self.bundle)

    @property
    def phase_width(self) -> int:
        """Columns of a row of one phase."""
        return -(-self.cols.extent(self.cols.out) // self.cols.stride)

    @property
    def phase_vectors(self) -> int:
        return -(-self.phase_width // self.lanes)

    @cached_property
    def pitch(self) -> int:
        """Elements from row to row: zeros behind a row are those before the next one, too."""
        if self.cols.stride > 1 or self.cols.mode != "zeros":
            return self.phase_width
        first, last = inside(self.cols)
        return self.phase_width - min(first, self.phase_width - last)

    def numbers(self, band: int) -> int:
        """Return how many outputs a band has, those between rows included."""
        return (band - 1) * self.pitch + self.cols.out

    @property
    def most_read(self) -> int:
        """Elements behind the last output's that a tile reads, at most."""
        return self.simd.registers * self.lanes

    def phase_bytes(self, band: int) -> int:
        """Bytes of one phase of one channel of a slab."""
        rows = -(-self.rows.extent(band) // self.rows.stride)
        return self.size * (rows * self.pitch + self.phase_width + 2 * self.lanes)

    def place(self, column: int) -> int:
        """Return where in a row of a slab a padded column lies, in bytes."""
        right = self.cols.stride
        return column % right * self.phase_bytes(self.band) + column // right * self.size

    def input_bytes(self, band: int) -> int:
        """Bytes of the padded input that a band of a bundle of groups reads."""
        channels = self.bundle * self.inputs
        return whole_lines(channels * math.prod(self.phases) * self.phase_bytes(band) + self.most_read * self.size)

    @property
    def zeros_bytes(self) -> int:
        """Bytes of a pixel of padding."""
        return whole_lines(self.bundle * self.inputs * self.size)

    @property
    def slab_bytes(self) -> int:
        """Bytes of a worker's scratch memory: padded input, a pixel of padding, sums."""
        return self.input_bytes(self.band) + self.zeros_bytes + self.sums_bytes

    @cached_property
    def line(self) -> int:
        """Bytes of an output channel's sums, with what the last tile stores behind them."""
        needed, tile = -(-self.numbers(self.band) // self.lanes), self.tile
        whole, rest = divmod(needed, tile.vectors)
        stored = whole * tile.vectors + (0 if rest == 0 else tile.less if rest <= tile.less else tile.vectors)
        return stored * self.lanes * self.size

    @property
    def sums_bytes(self) -> int:
        """Bytes of a bundle's sums: whole vectors of channels are read."""
        # A line's last rows are read by whole vectors, too.
        spare = self.lanes * self.size
        return whole_lines(-(-self.bundle * self.outputs // self.lanes) * self.lanes * self.line + spare)

    @cached_property
    def band(self) -> int:
        """Output rows done together: few enough for the cache, and for every worker to get some."""
        outer = self.problem.n * self.bundles
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 else 1
        band = max(1, -(-self.rows.out // wanted))
        sums = self.bundle * self.outputs * self.size
        while band > 1 and self.input_bytes(band) + sums * self.numbers(band) > self.cache // _SHARE:
            band -= 1
        # Even bands: as few rows as may be are done twice.
        return -(-self.rows.out // -(-self.rows.out // band))

    @property
    def bands(self) -> int:
        return -(-self.rows.out // self.band)

    @property
    def units(self) -> int:
        return self.problem.n * self.bundles * self.bands

    @property
    def moved(self) -> float:
        """Bytes that come from memory and go there: rows that bands share come again if the cache forgot them."""
        again = self.bands * self.rows.extent(self.band) / self.rows.size - 1
        read = math.prod(self.problem.x_shape) * self.problem.itemsize
        return self.problem.bytes + (read * max(0.0, again) if self.input_bytes(self.band) > self.cache else 0.0)

    @property
    def spilled(self) -> int:
        """Bytes of slabs that leave the cache before they are read, on their way out and back."""
        copied = self.rows_read * self.cols.stride * self.phase_width * self.size
        return 2 * max(0, copied - self.units * self.cache)

    @property
    def _heights(self) -> int:
        """Rows of a channel that a band reads."""
        kernel, stride = self.rows.kernel, self.rows.stride
        return self.rows.extent(self.band) if kernel >= stride else self.band * kernel

    @property
    def rows_read(self) -> int:
        """Rows of channels that are copied into slabs."""
        return self.units * self.bundle * self.inputs * self._heights

    @property
    def _stored(self) -> tuple[int, int]:
        """Rows of a group that a band stores, and their columns."""
        return self.outputs * self.band, self.cols.out

    def _squares(self, channels: int) -> float:
        """Return how many vectors are turned for each one of a bundle that has so many channels a group."""
        together = self.bundle * channels
        return -(-together // self.lanes) * self.lanes / together

    @property
    def cycles(self) -> float:
        """Cycles on one core: the sums, and vectors on their way into slabs and out of the sums."""
        p = self.problem
        groups = p.n * self.bundles * self.bundle * self.bands
        rows_in, (rows_out, columns) = self.inputs * self._heights, self._stored
        into = rows_in * self.cols.stride * self.phase_vectors
        out = rows_out * -(-columns // self.lanes)
        moving = _ROW * (rows_in + rows_out)
        if self.sums_bytes > _NEAR:
            moving += out * self.simd.vector_bytes / _L2_RATE
        if p.layout == "channels_last":
            # Squares are turned as wholes, however few of their channels there are.
            moving = _TURN * (into * self._squares(self.inputs) + out * self._squares(self.outputs))
        elif self.cols.mode == "zeros" and self.cols.stride <= 2:
            moving += (_COPY if self.cols.stride == 1 else _SPLIT) * into + _STORE * out
        else:
            moving += _GATHER * self.lanes * into + _STORE * out
        return groups * (self.terms * self.step_cycles + moving) + self.units * _UNIT
