"""One pool made ready: which kernel computes it, and how it is cut."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.formats import computed, format_of, size_of
from fastconv.backends.cpu.pool.windows import Windows, dense, lifted
from fastconv.backends.cpu.registers import Simd
from fastconv.geometry import UnevenAxis
from fastconv.problem import PoolProblem

# Kernels and strides of columns that have loops of their own.
WIDEST, LONGEST = 5, 3
# Vectors of outputs of a row that are unrolled.
_GROUPS = 4
# Bytes of the shortest vectors.
_LEAST_BYTES = 16
# Maps that are joined at most: what is done twice after a NaN is no more than these.
_JOINED = 64
# Rows of outputs that joined maps have together, at most: a large map gains nothing.
_JOINED_ROWS = 2048
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
    """

    def __init__(self, problem: PoolProblem, vectors: Simd, workers: int) -> None:
        self.problem, self.simd, self.workers = problem, vectors, workers
        self.format = format_of(problem)
        self.size = size_of(computed(self.format))
        self.lanes = vectors.lanes(self.size)
        self.axes: tuple[Windows, ...] = lifted(problem)
        self.indexed = problem.return_indices
        self.last = problem.layout == "channels_last"
        self.whole = not (self.last or self.indexed) and all(
            not isinstance(axis, UnevenAxis) and axis.is_whole for axis in self.axes[-problem.ndim :]
        )
        half = self.lanes // 2
        plain = not (self.last or self.whole)
        if plain and half * self.size >= _LEAST_BYTES and 0 < self._groups(half) == self._groups(self.lanes):
            self.lanes = half  # the other half would hold nothing
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
        """Maps that may be taken for one tall map, where no window crosses the edge of theirs; 1 if none may."""
        height = self.axes[1]
        apart = self.last or self.indexed or self.whole or self.problem.ndim == 1
        if apart or not self.groups or isinstance(height, UnevenAxis):
            return 1
        reach = (height.out - 1) * height.stride + (height.kernel - 1) * height.dilation + 1
        if height.before or reach > height.size or height.out * height.stride != height.size:
            return 1
        wanted = _UNITS * self.workers if self.workers > 1 else 1
        most = min(_JOINED, _JOINED_ROWS // height.out, self.problem.n * self.problem.c // wanted)
        return max(parts for parts in range(1, max(most, 1) + 1) if self.problem.c % parts == 0)

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
        if self.whole:
            return p.n * -(-p.c // self.lanes)
        return p.n * self.output[0] * self.bands * (1 if self.last else p.c)

    @property
    def line_bytes(self) -> int:
        """Scratch of a worker."""
        if self.whole:
            return self.lanes * self.lanes * self.size
        if self.last or self.columns:
            return 0
        line = self.axes[2].size * (self.size + 8 * self.indexed) + 2 * self.lanes * 8
        return -(-line // 64) * 64

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of windows and factors, making them included."""
        return 80 * (sum(self.output) + 3 * self.lanes) + 32 * math.prod(self.output[:2]) * self.joined

    @property
    def cycles(self) -> float:
        """Cycles on one core: the instructions of vectors, counted, each as long as an addition."""
        p = self.problem
        pace = 2 / self.simd.fma_per_cycle
        watch = 0.5 if p.is_max else self._power_cycles
        root = {"any_norm": POWER[self.size] * self.lanes, "norm": ROOT}.get(self.op, 0.0) * pace
        outer = p.n * p.c * self.output[0]
        rows, width = self.kernel[0] * self.kernel[1], self.axes[2].size
        lookup = 3.0 * self.indexed
        if self.whole:
            vectors = math.prod(p.input_size) / self.lanes
            return p.n * p.c * (6 + root / self.lanes + vectors * (1 + self._power_cycles))
        if self.last:
            blocks = p.n * math.prod(self.output) * -(-p.c // (self.lanes * self.vectors))
            taps = math.prod(self.kernel)
            return blocks * (12 + self.vectors * root + taps * (1 + self.vectors * (1 + watch + lookup) * pace))
        lines = outer * self.output[1]
        if self.columns is None:
            vectors, out = -(-width // self.lanes), -(-self.output[2] // self.lanes)
            gathered = out * self.kernel[2] * self.lanes * (1.5 + 2 * self.indexed)
            return lines * (40 + vectors * rows * (1 + watch + lookup) * pace + gathered + out * root)
        kernel, stride = self.columns
        groups = -(-self.output[2] // self.lanes)
        vector = stride * rows * (1 + watch + lookup) + 2 * stride * (stride > 1) * (1 + self.indexed)
        return lines * (14 + groups * (5 + root + pace * (vector + 2 * kernel * (1 + lookup / 2))))

    @property
    def _power_cycles(self) -> float:
        """Cycles of raising a vector to a norm's exponent."""
        if self.op != "any_norm":
            return 0.0
        exponent = self.problem.norm_type
        return exponent / 2 if exponent.is_integer() and exponent <= FEW else POWER[self.size] * self.lanes


def _is_one(axis: Windows) -> bool:
    """Whether there is one window, of the one element that there is."""
    return axis.size == axis.out == 1 and (isinstance(axis, UnevenAxis) or axis.before == 0)
