"""One pool made ready: which kernel computes it, and how it is cut."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.formats import computed, format_of, size_of
from fastconv.backends.cpu.pool.windows import Picks, Windows, dense, lifted, picks, span
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.geometry import Axis, UnevenAxis
from fastconv.problem import PoolProblem

# Kernels and strides of columns that have loops of their own.
WIDEST, LONGEST = 7, 3
# Vectors of outputs of a row that are unrolled.
_GROUPS = 4
# Bytes of the shortest vectors.
_LEAST_BYTES = 16
# Bytes of the shortest vectors of which a permutation is one instruction.
PERMUTED_BYTES = 32
# Vectors of a window's row that are reduced side by side where it has many.
_SIDE_BY_SIDE = 4
# Maps that are joined at most: what is done twice after a NaN is no more than these. Rows that they have together, at
# most: a large map gains nothing.
_JOINED, _JOINED_ROWS = 64, 2048
# Units of work a thread, so that an uneven end costs little.
_UNITS = 8
# Vectors of channels that are reduced together: independent of one another, as a maximum's latency asks for.
_VECTORS = 4
# Whole exponents up to this are multiplications, one after the other.
FEW = 8
# Cycles of another power of an element, as it is computed: by polynomials, and by the C library. Those of a square root
# of a vector.
POWER = {4: 6.0, 8: 35.0}
ROOT = 10.0


class Work:
    """A forward pool as the loops take it.

    Parameters
    ----------
    problem : PoolProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.

    Attributes
    ----------
    format : int
        How the arrays' elements are stored: `fastconv.backends.cpu.formats`.
    size, lanes : int
        Bytes of an element, and elements of a vector, as they are computed; arrays may hold less.
    indexed : int
        Bytes of an index, 0 if none are written.
    """

    def __init__(self, problem: PoolProblem, vectors: Simd, workers: int) -> None:
        self.problem, self.simd, self.workers = problem, vectors, workers
        self.format = format_of(problem)
        self.size = size_of(computed(self.format))
        self.lanes = vectors.lanes(self.size)
        self.axes: tuple[Windows, ...] = lifted(problem)
        self.indexed = problem.index_itemsize if problem.return_indices else 0
        self.last = problem.layout == "channels_last"
        self.whole = not (self.last or self.indexed) and all(
            not isinstance(axis, UnevenAxis) and axis.is_whole for axis in self.axes[-problem.ndim :]
        )
        if self.whole:  # a map is one long row
            cells = math.prod(problem.input_size)
            point = Axis(1, 1, 1, 1, 1, 0, "zeros")
            self.axes = (point, point, Axis(cells, 1, cells, cells, 1, 0, "zeros"))
        half = self.lanes // 2
        plain = not (self.last or self.whole)
        if plain and half * self.size >= _LEAST_BYTES and 0 < self._groups(half) == self._groups(self.lanes):
            self.lanes = half  # the other half would hold nothing
        if plain and not self.columns and half * self.size >= PERMUTED_BYTES:
            width = self.axes[2]
            if max(width.out, width.size) <= half:
                self.lanes = half
        self.vectors = min(_VECTORS, -(-problem.c // self.lanes))

    @property
    def op(self) -> str:
        if self.problem.is_max:
            return "max"
        if self.problem.kind != "lp_pool" or self.problem.norm_type == 1:
            return "sum"
        return "norm" if self.problem.norm_type == 2 else "any_norm"

    @property
    def columns(self) -> tuple[int, int] | None:
        """Kernel and stride of the columns if there are loops for them, None if these are to be gathered."""
        axis = self.axes[2]
        if isinstance(axis, UnevenAxis) or not dense(axis):
            return None
        if axis.kernel == 1 and axis.stride == 1:
            return 1, 1
        if axis.kernel > WIDEST or not 0 < axis.stride <= LONGEST:
            return None
        # A window's elements lie in two neighbouring vectors.
        return (axis.kernel, axis.stride) if (axis.kernel - 1) // axis.stride <= self.lanes else None

    @cached_property
    def picks(self) -> Picks:
        """What vectors of outputs read along a row."""
        return picks(span(self.axes[2]), self.lanes)

    @property
    def windows(self) -> int:
        """Vectors of a row of a window that are reduced side by side if its elements are in the lanes, otherwise 0."""
        if not self.whole:
            if self.last or self.indexed or self.columns or not dense(self.axes[2]):
                return 0
            if self.picks.vectors and self._picked_cycles < self._window_cycles:
                return 0
        return _SIDE_BY_SIDE if self.kernel[2] > _SIDE_BY_SIDE * self.lanes else 1

    @property
    def groups(self) -> int:
        """Vectors of outputs of a row if these are few enough to be unrolled, otherwise 0."""
        return self._groups(self.lanes)

    def _groups(self, lanes: int) -> int:
        if self.columns is None or not _is_one(self.axes[0]):
            return 0
        kernel, stride = self.columns
        width, span = self.axes[2], stride * lanes
        assert not isinstance(width, UnevenAxis)
        needed = min((width.out - 1) * stride + kernel, width.size + width.before)
        groups = max(-(-width.out // lanes), -(-needed // span))
        return groups if groups <= _GROUPS else 0

    @cached_property
    def joined(self) -> int:
        """Maps that may be taken for one tall map; 1 if none may."""
        height = self.axes[1]
        if self.last or self.indexed or self.windows or not _is_one(self.axes[0]) or not self._can_join:
            return 1
        return joined(self.problem, height.out, self.workers)

    @property
    def _can_join(self) -> bool:
        """Whether the loops find the rows of windows in maps that lie one below the other."""
        if not self.columns:
            return self.picks.vectors > 0
        # No window crosses the edge of a map, and windows are as far apart there as elsewhere.
        height = self.axes[1]
        if not self.groups or isinstance(height, UnevenAxis):
            return False
        reach = (height.out - 1) * height.stride + (height.kernel - 1) * height.dilation + 1
        return not height.before and reach <= height.size and height.out * height.stride == height.size

    @property
    def kernel(self) -> tuple[int, ...]:
        """Elements that a window has at most, along each axis."""
        return tuple(
            -(-axis.size // axis.out) + 1 if isinstance(axis, UnevenAxis) else axis.kernel for axis in self.axes
        )

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(axis.out for axis in self.axes)

    @cached_property
    def bands(self) -> int:
        """Parts that the rows of a plane, or of a map, are cut into: few, but enough units for every worker."""
        outer = self.problem.n * self.output[0] * (1 if self.last else self.problem.c)
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 else 1
        if self.last:  # what is done twice after a NaN is no more than a band
            wanted = max(wanted, 4)
        return min(wanted, self.output[1])

    @property
    def units(self) -> int:
        p = self.problem
        if self.windows:
            return p.n * -(-p.c * math.prod(self.output) // self.lanes)
        return p.n * self.output[0] * self.bands * (1 if self.last else p.c)

    @property
    def line_bytes(self) -> int:
        """Scratch of a worker."""
        if self.windows:
            line = (self.lanes + 1) * self.lanes * self.size
        elif self.last or self.columns or self.picks.vectors:
            return 0
        else:
            line = self.axes[2].size * (self.size + 8 * bool(self.indexed)) + 2 * self.lanes * 8
        return whole_lines(line)

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of windows and factors, making them included."""
        return 128 * (sum(self.output) + 3 * self.lanes) + 32 * math.prod(self.output[:2]) * self.joined

    @property
    def cycles(self) -> float:
        """Cycles on one core: the instructions of vectors, counted, each as long as an addition."""
        p = self.problem
        if self.windows:
            return self._window_cycles
        if self.last:
            blocks = p.n * math.prod(self.output) * -(-p.c // (self.lanes * self.vectors))
            taps = math.prod(self.kernel)
            return blocks * (12 + self.vectors * self._root + taps * (1 + self.vectors * self._tap))
        lines = p.n * p.c * self.output[0] * self.output[1]
        groups = -(-self.output[2] // self.lanes)
        if self.columns is None and self.picks.vectors:
            return self._picked_cycles
        rows = self.kernel[0] * self.kernel[1]
        if self.columns is None:
            vectors = -(-self.axes[2].size // self.lanes)
            gathered = groups * self.kernel[2] * self.lanes * (1.5 + 2 * bool(self.indexed))
            return lines * (40 + vectors * rows * self._tap + gathered + groups * self._root)
        kernel, stride = self.columns
        vector = stride * rows * (1 + self._watch + self._lookup) + 2 * stride * (stride > 1) * (1 + bool(self.indexed))
        group = 1 + self._root + 0.2 * self._pace * (vector + 2 * kernel * (1 + self._lookup / 2))
        around = 0.5 if self.joined > 1 else 0.5 + 40 / self.output[1] if self.groups else 14
        return lines * (around + groups * group)

    @property
    def _window_cycles(self) -> float:
        """Cycles with elements of windows in the lanes."""
        outputs = self.problem.n * self.problem.c * math.prod(self.output)
        rows, vectors = self.kernel[0] * self.kernel[1], -(-self.kernel[2] // self.lanes)
        return outputs * (13 + self._root / self.lanes + rows * (0.2 + 0.45 * vectors * self._tap))

    @property
    def _picked_cycles(self) -> float:
        """Cycles with columns that outputs pick."""
        groups = self.problem.n * self.problem.c * self.output[0] * self.output[1] * -(-self.output[2] // self.lanes)
        rows, vectors = self.kernel[0] * self.kernel[1], self.picks.vectors
        pick = (0.18 * vectors + 0.25) * (1 + bool(self.indexed)) * self._pace
        return groups * (2 + self._root + rows * 0.4 * vectors * self._tap + self.kernel[2] * pick)

    @property
    def _pace(self) -> float:
        """Cycles of an addition of vectors."""
        return 2 / self.simd.fma_per_cycle

    @property
    def _tap(self) -> float:
        """Cycles of a vector of elements."""
        return (1 + self._watch + self._lookup) * self._pace

    @property
    def _watch(self) -> float:
        """Additions that a vector of elements takes besides, to look for NaN, or to be raised to a power."""
        return 0.5 if self.problem.is_max else self._power_cycles

    @property
    def _lookup(self) -> float:
        """Additions that a vector of elements takes besides for its indices."""
        return 3.0 * bool(self.indexed)

    @property
    def _root(self) -> float:
        """Cycles of the root of a vector of outputs."""
        return {"any_norm": POWER[self.size] * self.lanes, "norm": ROOT}.get(self.op, 0.0) * self._pace

    @property
    def _power_cycles(self) -> float:
        """Cycles of raising a vector to a norm's exponent."""
        if self.op != "any_norm":
            return 0.0
        exponent = self.problem.norm_type
        return exponent / 2 if exponent.is_integer() and exponent <= FEW else POWER[self.size] * self.lanes


def joined(problem: PoolProblem, rows: int, workers: int) -> int:
    """Return how many maps of so many rows are worth taking for one tall map."""
    wanted = _UNITS * workers if workers > 1 else 1
    most = min(_JOINED, _JOINED_ROWS // rows, problem.n * problem.c // wanted, problem.c)
    return -(-problem.c // -(-problem.c // most)) if most else 1


def _is_one(axis: Windows) -> bool:
    """Whether there is one window, of the one element that there is."""
    return axis.size == axis.out == 1 and (isinstance(axis, UnevenAxis) or axis.before == 0)
