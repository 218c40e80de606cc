"""One depthwise input gradient made ready: lanes, the shifts of its taps, its cycles."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.dgrad.shifts import shifts_of
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.work import ConvWork

# Bytes of rows that stay in the first-level cache; pairs of rows that a tile has at least.
_NEAR, _LEAST = 16 << 10, 4
# Cycles of a tile beside its rows.
_START = 40


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    @property
    def units(self) -> int:
        """Planes."""
        return self.problem.n * self.problem.ic

    @cached_property
    def pairs(self) -> int:
        """Pairs of columns of the gradient."""
        return -(-self.axes[2].size // 2)

    @cached_property
    def vector(self) -> int:
        """Lanes of a vector: half as many, if that many pairs there are."""
        lanes = self.simd.lanes(self.size)
        return lanes // 2 if self.simd.vector_bytes > 32 and self.pairs <= lanes // 2 else lanes

    @cached_property
    def held(self) -> bool:
        """Whether the weights stay in registers beside what is read and the sums."""
        read = math.prod(shifts_of(axis).elements for axis in self.axes[1:])
        return self.taps + read + 4 < self.simd.registers

    @property
    def band(self) -> int:
        """Pairs of rows done together: so few that the first-level cache holds them until all their columns are."""
        _, height, width = self.axes
        return max(_LEAST, min(-(-height.size // 2), _NEAR // (self.size * (2 * width.size + width.out))))

    @property
    def zero_bytes(self) -> int:
        """Bytes of the zeros that a vector of a row of padding is."""
        return self.vector * self.size

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        p, (_, height, width) = self.problem, self.axes
        whole = self.vector * self.size == self.simd.vector_bytes
        rate = self.simd.fma_per_cycle if whole else 2.0
        crossing = 1 + self.vector * self.size / LINE
        loads = shifts_of(width).elements * crossing
        row = max(self.taps, loads + 4 * crossing, 8) / rate + 6
        tiles = -(-self.pairs // self.vector)
        pairs = -(-height.size // 2)
        return p.n * p.ic * tiles * (_START * -(-pairs // self.band) + pairs * row)
