"""One convolution with columns in the lanes made ready: its tile, its slab, its cost."""

from __future__ import annotations

import itertools
import math
from functools import cached_property

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.phases import dealing_cycles
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.problem import ConvProblem

# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
# Bytes a cycle from the second-level cache.
_L2_RATE = 32
_NEAR = 1 << 14  # half of a first-level cache

# Cycles of a vector that is stored, of a tile beside its terms, and of a unit of work.
_STORE, _TILE, _UNIT = 1.0, 22.0, 150.0
# Cycles of a line that is copied into the slab, a vector of it, a line that is dealt, and a column on its own.
_ROW, _COPY, _DEAL, _PAD = 9.0, 3.5, 60.0, 6.0

# Output channels and vectors of columns that a tile may have.
_CHANNELS, _VECTORS = (1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 5, 6, 7)


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.depth, self.height, self.width = self.axes
        self.terms = problem.ic * math.prod(problem.kernel_size)
        self.phases = self.width.stride
        # What tiles read behind a line's end belongs to lanes that are not stored.
        self.columns = -(-self.width.extent(self.width.out) // self.phases)
        shapes = [s for s in itertools.product(_CHANNELS, _VECTORS) if self._fits(*s)]
        self.rows, self.vectors = min(shapes, key=lambda shape: self._cycles(*shape))

    def _fits(self, rows: int, vectors: int) -> bool:
        """Whether the sums, the columns of a term and a weight find room."""
        return rows * vectors + vectors + 1 <= self.simd.registers

    def _cycles(self, rows: int, vectors: int) -> float:
        """Cycles of all tiles of one output line: multiply-adds, loads, instructions, or waiting for the sum before."""
        sums, loads, rate = rows * vectors, rows + vectors, self.simd.fma_per_cycle
        # Vectors of columns mostly cross cache lines, and so take two of the loads that keep up with multiply-adds.
        loading = rows / 2 + 2 * vectors / rate
        step = max(sums / rate, loading, (sums + (loads if vectors > 1 else 1) + 6) / 6, 4.0)
        if self._read_bytes > _NEAR:
            step = max(step, vectors * self.simd.vector_bytes / _L2_RATE)
        tiles = self.blocks(rows) * -(-self.width.out // (vectors * self.lanes))
        # Stores cross lines, too.
        return tiles * (self.terms * step + _STORE * sums + _TILE)

    @property
    def _read_bytes(self) -> int:
        """Bytes of a slab that a line of outputs reads."""
        return self.problem.ic * self.depth.kernel * self.height.kernel * self._line_bytes

    def blocks(self, rows: int) -> int:
        return -(-self.problem.oc // rows)

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.blocks(self.rows) * self.rows * self.terms

    @property
    def _line_bytes(self) -> int:
        """Bytes of a slab's line, all its phases."""
        return self.phases * self.columns * self.size

    def steps(self, band: int) -> tuple[int, int, int]:
        """Return the strides of a slab: channel, depth, row; in bytes."""
        plane = self._line_bytes * self.height.extent(band)
        return plane * self.depth.extent(1), plane, self._line_bytes

    @cached_property
    def together(self) -> tuple[int, int]:
        """Columns of a line that are copied, or dealt, together: of those inside the input, whole turns of phases."""
        first, last = inside(self.width)
        begin = -(-first // self.phases) * self.phases
        return (begin, last - (last - begin) % self.phases) if begin < last else (last, last)

    @cached_property
    def band(self) -> int:
        """Output rows done together: few enough for half of the cache, and for every worker to get some."""
        rows, outer = self.height.out, self.problem.n * self.depth.out
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 else 1
        band = -(-rows // wanted)
        while band > 1 and self.problem.ic * self.steps(band)[0] > self.cache // 2:
            band -= 1
        return -(-rows // -(-rows // band))  # even bands

    @property
    def bands(self) -> int:
        return -(-self.height.out // self.band)

    @property
    def units(self) -> int:
        return self.problem.n * self.depth.out * self.bands

    @property
    def span(self) -> int:
        """Columns that a block of channels does before the next: whole lines if all that they read stays near.

        So a few output lines are written on, not a piece of very many.
        """
        step = self.vectors * self.lanes
        lines = self.problem.ic * self.depth.kernel * self.height.kernel
        fitting = _NEAR // (lines * self.phases * self.size) // step * step
        return max(step, fitting)

    @property
    def slab_bytes(self) -> int:
        """Bytes of what a band reads, and what lies behind, which lanes that are not stored read."""
        beyond = (self.vectors + 1) * self.lanes * self.size
        return whole_lines(self.problem.ic * self.steps(self.band)[0] + beyond)

    @property
    def spilled(self) -> int:
        """Bytes of slabs that leave the cache before they are read, on their way out and back."""
        return 2 * self.units * max(0, self.slab_bytes - self.cache)

    @property
    def _lines(self) -> int:
        """Lines that are copied into slabs."""
        heights = self.height.extent(self.band)
        return self.problem.n * self.problem.ic * self.depth.out * self.depth.extent(1) * self.bands * heights

    @property
    def pieces(self) -> int:
        """Pieces of memory that lie apart: lines of the input, and of the output, channel by channel."""
        p = self.problem
        return self._lines + p.n * p.oc * self.depth.out * self.height.out * -(-self.width.out // self.span)

    @property
    def moved(self) -> float:
        """Bytes that come from memory and go there: lines that bands share come again if the cache forgot them."""
        again = self._lines * self.width.size * self.size - math.prod(self.problem.x_shape) * self.size
        return self.problem.bytes + (max(0, again) if self.slab_bytes > self.cache else 0)

    @property
    def cycles(self) -> float:
        """Cycles on one core, the copy into the slab included."""
        p, width, (first, last) = self.problem, self.width, self.together
        line = _ROW + _PAD * (width.extent(width.out) - last + first)
        if self.phases == 1:
            line += _COPY * (last - first) / self.lanes
        else:
            line += _DEAL + -(-(last - first) // (self.lanes * self.phases)) * dealing_cycles(self.phases)
        read = min(1.0, self.height.kernel / self.height.stride) * min(1.0, self.depth.kernel / self.depth.stride)
        fill = self._lines * read * line
        tiles = p.n * self.depth.out * self.height.out * self._cycles(self.rows, self.vectors)
        return tiles + fill + self.units * _UNIT
