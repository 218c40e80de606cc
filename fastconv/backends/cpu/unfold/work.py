"""One unfold or fold made ready: which elements meet, and how the work is cut.

Elements of the padded map that are a stride apart are neighbours in what a kernel position reads. So along every axis
the positions are sorted into *phases* by their remainder; a kernel position is a phase and a shift within it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.work import KEPT
from fastconv.geometry import Axis
from fastconv.problem import DTYPES, PoolProblem

# Units of work a thread, so that an uneven end costs little.
_UNITS = 8
# Bytes that stay in the first-level cache.
_NEAR = 16 << 10
# Bytes that are written in one go at least, if the cache allows.
_RUN = 1 << 10
# Lines of memory that are read side by side and come by themselves, since the processor sees where each goes on.
_PATTERNS = 8
# Positions that a list has at most.
_LONGEST = 1 << 16
# Cycles of a channel by a list, and of each element: taken from the map, or added to it.
_LISTED, _TAKEN, _ADDED = 20.0, 1.7, 2.2
# Cycles of bringing a row of a fold back to the map, and each of its elements: two phases that are woven, patches, and
# phases of other numbers, each of which takes these cycles.
_WOVEN, _PATCHED, _PHASES = (100.0, 0.4), (25.0, 0.2), (25.0, 5.0)


class Phases(NamedTuple):
    """The phases of an axis that a kernel reads, and its positions: the number of a phase, and the shift in it."""

    remainders: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> int:
        """The greatest shift."""
        return max(shift for _, shift in self.taps)


def phases_of(axis: Axis) -> Phases:
    """Return the phases of an axis."""
    places = [divmod(k * axis.dilation, axis.stride) for k in range(axis.kernel)]
    remainders = tuple(sorted({remainder for _, remainder in places}))
    return Phases(remainders, tuple((remainders.index(remainder), shift) for shift, remainder in places))


class Work:
    """An unfold or a fold as the loops take it.

    Parameters
    ----------
    problem : PoolProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.
    """

    def __init__(self, problem: PoolProblem, vectors: Simd, workers: int, cache: int) -> None:
        self.problem, self.simd, self.workers, self.cache = problem, vectors, workers, cache
        self.axes = lifted_axes(problem)
        self.phases = tuple(map(phases_of, self.axes))
        self.size = problem.itemsize
        self.computed = DTYPES[problem.accumulator]
        self.last = problem.layout == "channels_last"
        # Neighbouring channels are in the same lines of the cache.
        self.block = min(problem.c, LINE // self.size) if self.last else 1
        self.blocks = -(-problem.c // self.block)

    @property
    def band(self) -> int:
        """Rows of a unit: of windows in an unfold, of the map in a fold."""
        rows = self._most_rows()
        length = self._rows
        parts = -(-length // rows)
        if self.workers > 1:
            parts = max(parts, -(-_UNITS * self.workers // self._outer))
        return -(-length // min(parts, length))

    def _most_rows(self) -> int:
        raise NotImplementedError

    @property
    def _rows(self) -> int:
        raise NotImplementedError

    @property
    def _outer(self) -> int:
        """Units if a map were one band."""
        raise NotImplementedError

    @property
    def bands(self) -> int:
        return -(-self._rows // self.band)

    @property
    def units(self) -> int:
        return self._outer * self.bands

    @property
    def slab_bytes(self) -> int:
        """Scratch of a worker."""
        raise NotImplementedError

    @property
    def passes(self) -> bool:
        """Whether rows of the map go past the caches."""
        return False

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables, making them included."""
        axes = 200 * sum(axis.kernel + axis.size * -(-axis.kernel // axis.stride) for axis in self.axes)
        return axes + 40 * self._columns * self.is_listed

    @cached_property
    def is_listed(self) -> bool:
        """Whether elements go where a list says, where arrays allow it. Sums differ in their order then."""
        return self._columns <= _LONGEST and not self.last and self._list_cycles < self._row_cycles

    @property
    def position(self) -> int:
        """Bytes of a position of the list, which has a sign."""
        return 2 if math.prod(self.problem.input_size) < 1 << 15 else 4

    @property
    def _columns(self) -> int:
        """Elements of a channel's columns."""
        return math.prod(self.problem.kernel_size + self.problem.output_size)

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        return self._list_cycles if self.is_listed else self._row_cycles

    @property
    def _list_cycles(self) -> float:
        """Cycles of all channels by the list."""
        raise NotImplementedError

    @property
    def _row_cycles(self) -> float:
        """Cycles of all channels row by row."""
        raise NotImplementedError


class UnfoldWork(Work):
    """An unfold: the rows that some windows read are laid out by phases, and copied once for every kernel position."""

    @property
    def line(self) -> int:
        """Elements of a row in one phase."""
        return self.phases[2].reach + self.axes[2].out

    @property
    def _row_bytes(self) -> int:
        """Bytes in the slab that a row of windows adds, for a channel."""
        _, height, width = self.phases
        return self.axes[0].kernel * len(height.remainders) * len(width.remainders) * self.line * self.size

    def _most_rows(self) -> int:
        reach = self.phases[1].reach
        near = _NEAR // self._row_bytes - reach
        long = _RUN // (self.axes[2].out * self.size)
        fits = self.cache // 4 // (self.block * self._row_bytes) - reach
        return max(1, min(max(near, long, 4 * reach), fits))

    @property
    def _rows(self) -> int:
        return self.axes[1].out

    @property
    def _outer(self) -> int:
        return self.problem.n * self.blocks * self.axes[0].out

    @property
    def _channel_bytes(self) -> int:
        return (self.band + self.phases[1].reach) * self._row_bytes

    @property
    def slab_bytes(self) -> int:
        return whole_lines(self.block * self._channel_bytes)

    @property
    def _list_cycles(self) -> float:
        return self.problem.n * self.problem.c * (_LISTED + _TAKEN * self._columns)

    @property
    def _row_cycles(self) -> float:
        p = self.problem
        row, element = self._laying
        laid = self._outer * self.block * self.bands * self._channel_bytes / (self.line * self.size)
        fill = laid * (row + element * self.line)
        bytes_of_row = self.axes[2].out * self.size
        pieces = -(-bytes_of_row // self.simd.vector_bytes) + 1
        pace = 2 * self.simd.vector_bytes / 64
        return fill + p.macs / self.axes[2].out * (2 + pace * pieces)

    @property
    def _laying(self) -> tuple[float, float]:
        """Cycles of laying out a phase of a row, and each of its elements."""
        phases, stride = len(self.phases[2].remainders), self.axes[2].stride
        if self.last:
            return 25.0, 1.5
        if stride == 1:
            return 26.0, 0.0
        if self.size == self.computed and 2 * phases * self.size >= self.simd.vector_bytes:  # transposed
            return 10.0, 0.5
        return 25.0, 0.7 if stride == 2 and self.size >= 4 else 1.3


class FoldWork(Work):
    """A fold: every element of the map gathers from the kernel positions that read it."""

    def __init__(self, problem: PoolProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.lanes = vectors.lanes(self.computed)

    @property
    def line(self) -> int:
        """Elements of a row in one phase, in whole vectors."""
        length = -(-self.axes[2].size // self.axes[2].stride)
        vectors = -(-length // self.lanes)
        # Three vectors are done as four.
        return (vectors + (vectors % 4 == 3)) * self.lanes

    @property
    def patches(self) -> bool:
        """Whether no element of a channel is in two windows, which are side by side in a row; for float32 and 64."""
        width = self.axes[2]
        apart = all(axis.kernel <= axis.stride and axis.dilation == 1 for axis in self.axes)
        even = width.kernel == width.stride > 1 and width.before == 0 and width.out * width.kernel <= width.size
        pays = width.kernel == 2 or 2 * width.kernel >= self.lanes
        return apart and even and pays and self.block == 1 and self.size == self.computed

    @property
    def _row_bytes(self) -> int:
        return len(self.phases[2].remainders) * self.line * self.computed

    def _most_rows(self) -> int:
        if self.block == 1:
            return -(-_NEAR // (self.axes[2].out * self.size))
        return max(1, self.cache // 4 // (self.block * self._row_bytes))

    @property
    def _rows(self) -> int:
        return self.axes[1].size

    @property
    def _outer(self) -> int:
        return self.problem.n * self.blocks * self.axes[0].size

    @property
    def ahead(self) -> int:
        """Bytes to the same kernel position of the next channel, which no pattern tells; 0 if the way is too long.

        The few kernel positions of small patches are patterns of their own.
        """
        channel = self._columns * self.size
        found = self.patches and (math.prod(self.problem.kernel_size) <= _PATTERNS or self.problem.bytes <= self.cache)
        return channel if channel <= self.cache // 4 and not found else 0

    @property
    def passes(self) -> bool:
        """Whether rows of the map go past the caches, which could not keep them until somebody reads them."""
        far = self.problem.bytes > KEPT * self.workers * self.cache
        return self.patches and far and self.axes[2].size * self.size >= LINE

    @property
    def slab_bytes(self) -> int:
        phases = self.block * self._row_bytes * (self.band if self.block > 1 else 1)
        # Rows of a map whose columns have gaps do not go past the caches.
        return max(phases, LINE + whole_lines(self.axes[2].size * self.size)) if self.passes else phases

    @property
    def _list_cycles(self) -> float:
        # Rows of stride 1 are vectors as they are. Sums of half formats are not to be rounded at every addition.
        if self.axes[2].stride == 1 or self.size != self.computed:
            return math.inf
        cleared = math.prod(self.problem.input_size) / self.lanes
        return self.problem.n * self.problem.c * (_LISTED + _ADDED * self._columns + cleared)

    @property
    def _row_cycles(self) -> float:
        p = self.problem
        rows = p.macs / self.axes[2].out
        vectors = -(-self.axes[2].out // self.lanes)
        pace = 2 / self.simd.fma_per_cycle
        row, element = self._spread
        spread = element + row / self.axes[2].size
        return rows * (6 + pace * 2.5 * vectors) + p.n * p.c * math.prod(p.input_size) * spread

    @property
    def _spread(self) -> tuple[float, float]:
        """Cycles of bringing a row back to the map, and each of its elements."""
        if self.patches:
            return _PATCHED
        phases, stride = len(self.phases[2].remainders), self.axes[2].stride
        if self.last or 2 * phases >= self.lanes:  # transposed
            return 30.0, 0.7
        if stride == 1:
            return 0.0, 0.2
        if phases == stride == 2 and self.size == self.computed:
            return _WOVEN
        row, element = _PHASES
        return row * phases, element
