"""A depthwise weight gradient with channels in the lanes made ready: tiles, bands, cost."""

from __future__ import annotations

from functools import cached_property

from fastconv.backends.cpu.cuts import Cut, even
from fastconv.backends.cpu.depthwise.channel_lanes import ChannelsWork
from fastconv.backends.cpu.registers import Simd

# Registers beside the sums: one gradient at least, what it is multiplied with, and one for what is loaded meanwhile.
_OTHERS = 3
# Output columns of a tile: more would not make loads of sums much fewer.
_COLUMNS = 8
# Bytes of the sums of a part's channels, which the first-level cache is to hold besides.
_SUMS = 1 << 13
# Terms that are summed one after another, so that rounding stays small; vectors of terms that are worth a unit of
# their own, and units at most.
_TERMS, _WORTH, _UNITS = 1 << 13, 1 << 11, 64
# Instructions on vectors: of a sum that is loaded and stored; of an element at an edge, for the choice of its address.
_SUM, _CHOICE = 3.0, 1.0
# Cycles of a call of a tile; of a sum that is added up and stored, lane by lane.
_CALL, _STORE = 15.0, 24.0


class Work(ChannelsWork):
    """A problem as the loops take it; see `ConvWork`."""

    growth = 0.0

    @staticmethod
    def most_columns(vectors: Simd) -> int:
        """Return how many kernel columns there are registers for."""
        return vectors.registers - _OTHERS

    @cached_property
    def kernel_cut(self) -> Cut:
        """Kernel rows, in pieces whose sums registers hold."""
        rows, columns = self.axes[1].kernel, self.axes[2].kernel
        return even(rows, max(1, self.most_columns(self.simd) // columns))

    @cached_property
    def column_cut(self) -> Cut:
        """Columns of the output, in pieces whose gradients registers hold beside these sums."""
        free = self.simd.registers - self.kernel_cut.size * self.axes[2].kernel - _OTHERS + 1
        return even(self.axes[2].out, max(1, min(_COLUMNS, free)))

    @property
    def most_together(self) -> int:
        return _SUMS // (self.taps * self.vector)

    @property
    def lines(self) -> int:
        """Rows of the output, of all images and depths."""
        return self.problem.n * self.axes[0].out * self.axes[1].out

    @cached_property
    def band(self) -> int:
        """Lines that are summed apart. Threads change nothing about it: sums are the same for any number of them."""
        terms = self.lines * self.axes[2].out
        units = min(_UNITS, terms * self.blocks // _WORTH)
        bands = max(1, -(-units // self.parts), terms // _TERMS)
        return max(1, self.lines // bands)

    @property
    def bands(self) -> int:
        return max(1, -(-self.lines // self.band))  # a batch may be empty

    @property
    def units(self) -> int:
        return self.bands * self.parts

    @property
    def part_bytes(self) -> int:
        """Bytes of a unit's sums."""
        return self.part * self.taps * self.vector

    @property
    def sums_bytes(self) -> int:
        # Whole squares are transposed, whatever of them is wanted.
        return self.units * self.part_bytes + self.lanes * self.vector

    @property
    def cycles(self) -> float:
        """Cycles on one core, but those of `adding_cycles`."""
        _, rows, columns = self.axes
        per_cycle = self.simd.fma_per_cycle
        tiles = self.lines * self.axes[0].kernel * self.kernel_cut.pieces * self.column_cut.pieces
        sums = rows.kernel / self.kernel_cut.pieces * columns.kernel
        wide = columns.out / self.column_cut.pieces
        read = wide * columns.kernel
        if all(self.steps):
            read = min(read, columns.extent(self.column_cut.size))
        loads = rows.kernel / self.kernel_cut.pieces * read
        edges = min(1.0, 2 / self.column_cut.pieces + 2 * max(0, rows.before) / rows.out)
        work = max(wide * sums, loads + wide) + _SUM * sums + _CHOICE * edges * loads
        return tiles * (self.blocks * work / per_cycle + self.parts * _CALL)

    @property
    def adding_cycles(self) -> float:
        """Cycles of adding up the bands' sums and storing them."""
        return self.blocks * self.taps * (self.bands + _STORE)
