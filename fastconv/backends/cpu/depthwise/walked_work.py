"""One depthwise convolution made ready to be walked down in strips: which ones, how the work is cut, what it costs."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.depthwise.work import NEAR
from fastconv.backends.cpu.work import ConvWork

#: Rows and columns of the kernels.
KERNEL = 3
#: Steps of rows and columns.
STRIDES = (1, 2)

# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
# Vectors that a strip may have: not all, so that the number of compiled functions stays small.
_VECTORS = (7, 5, 4, 3, 2, 1)
# Registers beside weights and sums: what a sum begins with, and what is loaded.
_OTHERS = 2
# Cycles from a multiply-add to the next that needs its result, less what the next planes fill of them.
_LATENCY = 3
# Cycles of a strip beside its rows, and of a row beside its multiply-adds, measured on Zen 4.
_START, _ROW = 20.0, 1.0
# Cycles of a shuffle that deals columns to even and odd ones, however wide, beside the multiply-adds.
_SHUFFLE = 0.75


class Strip(NamedTuple):
    """What is walked down: planes side by side, vectors of a row, lanes of a vector; cycles that all strips take."""

    planes: int
    vectors: int
    lanes: int
    cycles: float


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    growth = 0.0

    @property
    def _rows_under_way(self) -> int:
        """Output rows that an input row belongs to, at most."""
        return -(-KERNEL // self.axes[1].stride)

    @cached_property
    def strip(self) -> Strip:
        """The strip that takes the fewest cycles."""
        strips = [
            Strip(planes, vectors, lanes, self._cycles(planes, vectors, lanes))
            for lanes in (self.lanes, self.lanes // 2)
            for vectors in _VECTORS
            for planes in (1, 2)
            if planes <= self.problem.ic and planes * vectors <= max(2, vectors)
            if vectors <= self._across(lanes) and self._fits(planes, vectors)
        ]
        return min(strips, key=lambda strip: strip.cycles)

    def _across(self, lanes: int) -> int:
        """Return of how many vectors an output row is."""
        return -(-self.axes[2].out // lanes)

    def _fits(self, planes: int, vectors: int) -> bool:
        """Whether weights and sums stay in registers."""
        held = planes * (self.taps + vectors * self._rows_under_way)
        return held + _OTHERS <= self.simd.registers

    def _cycles(self, planes: int, vectors: int, lanes: int) -> float:
        """Return the cycles on one core of all strips of this form."""
        p, (_, height, width) = self.problem, self.axes
        rate = self.simd.fma_per_cycle if lanes == self.lanes else 2.0
        dealing = _SHUFFLE * KERNEL * height.stride if width.stride > 1 else 0.0
        # Every kernel row is a chain of sums; those of neighbouring rows go on from one another.
        row = max(planes * vectors * (self.taps / rate + dealing), _LATENCY * KERNEL * height.stride)
        strips = p.n * -(-p.ic // planes) * -(-self._across(lanes) // vectors)
        # What begins above the first row and ends below the last one is as much as a row.
        return strips * (_START + (height.out + 1) * (row + _ROW))

    @property
    def groups(self) -> int:
        """Planes of an image, as many at a time as are walked down together."""
        return -(-self.problem.ic // self.strip.planes)

    @property
    def far(self) -> bool:
        """Whether rows are asked for ahead: those of strips side by side lie apart, and of large maps in memory."""
        return self.pieces > 0 and self.problem.bytes > NEAR * self.cache

    @property
    def pieces(self) -> int:
        """Pieces of rows, read and written, that do not follow one another in memory: none if strips span the rows."""
        p, (_, height, _) = self.problem, self.axes
        across = -(-self._across(self.strip.lanes) // self.strip.vectors)
        return p.n * p.ic * height.out * (height.stride + 1) * across if across > 1 else 0

    @property
    def band(self) -> int:
        """Output rows of a unit: all, unless some workers would then get none."""
        rows, outer = self.axes[1].out, self.problem.n * self.groups
        wanted = -(-_UNITS * self.workers // max(1, outer)) if self.workers > 1 else 1
        return -(-rows // min(rows, wanted))

    @property
    def bands(self) -> int:
        return -(-self.axes[1].out // self.band)

    @property
    def units(self) -> int:
        return self.problem.n * self.groups * self.bands

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        # Every band begins anew.
        return self.strip.cycles * (1 + (self.bands - 1) / (self.axes[1].out + 1))

    @property
    def zero_bytes(self) -> int:
        """Bytes of the zeros that stand for a row of padding."""
        return (self.strip.vectors * self.axes[2].stride + 1) * self.strip.lanes * self.size + KERNEL * self.size
