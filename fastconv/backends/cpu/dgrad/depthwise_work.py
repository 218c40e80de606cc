"""One depthwise input gradient made ready: lanes, the shifts of its taps, its cycles.

The gradient is cut into cells of as many elements along each axis as the stride, one a phase.
"""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.phases import shuffles
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import ConvWork

# Bytes of rows that stay in the first-level cache; rows of cells that a tile has at least.
_NEAR, _LEAST = 16 << 10, 4
# Cycles of a tile beside its rows.
_START = 40
# What stays in registers from one row of cells to the next: nothing, rows that are read again, or the weights, too.
NOTHING, ROWS, WEIGHTS = 0, 1, 2


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    @property
    def units(self) -> int:
        """Channels of images."""
        return self.problem.n * self.problem.ic

    @cached_property
    def cells(self) -> tuple[int, ...]:
        """Planes, rows and columns of cells."""
        return tuple(-(-axis.size // axis.stride) for axis in self.axes)

    @cached_property
    def vector(self) -> int:
        """Lanes of a vector: half as many, if that many cells there are."""
        lanes = self.simd.lanes(self.size)
        return lanes // 2 if self.simd.vector_bytes > 32 and self.cells[2] <= lanes // 2 else lanes

    @cached_property
    def _read(self) -> tuple[int, int]:
        """Rows that cells read, and vectors of one of them."""
        deep, down, right = (shifts_of(axis).elements for axis in self.axes)
        return down, deep * right

    @cached_property
    def held(self) -> int:
        """What stays in registers beside the sums of a row: `NOTHING`, `ROWS` or `WEIGHTS`."""
        room = self.simd.registers - self.axes[2].stride - 2 - math.prod(self._read)
        return WEIGHTS if self.taps < room else ROWS if room > 0 else NOTHING

    @property
    def _loads(self) -> int:
        """Vectors that a row of cells loads: of the next row, or of all that it multiplies."""
        if self.held == NOTHING:
            return math.prod(len(shifts_of(axis).read) for axis in self.axes)
        return self._read[1]

    @property
    def band(self) -> int:
        """Rows of cells done together: so few that the first-level cache holds them until all their columns are."""
        height, width = self.axes[1:]
        near = self.size * (height.stride * width.size + width.out)
        return max(_LEAST, min(self.cells[1], _NEAR // near))

    @property
    def zero_bytes(self) -> int:
        """Bytes of the zeros that a vector of a row of padding is."""
        return self.vector * self.size

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        whole = self.vector * self.size == self.simd.vector_bytes
        rate = self.simd.fma_per_cycle if whole else 2.0
        crossing = 1 + self.vector * self.size / LINE
        stores = math.prod(axis.stride for axis in self.axes)
        moving = (self._loads + stores) * crossing
        # Shuffles take the place of multiply-adds.
        shuffled = stores * shuffles(self.axes[2].stride)
        row = max(self.taps, moving, shuffled + self.taps / 2, 8) / rate + 6
        tiles = -(-self.cells[2] // self.vector)
        height = self.cells[1]
        return self.units * self.cells[0] * tiles * (_START * -(-height // self.band) + height * row)
