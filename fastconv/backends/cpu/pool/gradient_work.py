"""The gradient of one pool, or one unpooling, made ready: which loops compute it, and how they are cut."""

from __future__ import annotations

import math

from fastconv.backends.cpu.pool.windows import Windows, dense, lifted, uniform_rows
from fastconv.backends.cpu.pool.work import LONGEST, WIDEST
from fastconv.backends.cpu.registers import Simd
from fastconv.geometry import Axis
from fastconv.problem import PoolProblem, Sizes

_UNITS = 8
_VECTORS = 2
# Cycles of an element that goes where an index says.
_ROUTED = 5.0


class GradientWork:
    """A gradient as the loops take it: from the small side, where windows are, to the large one.

    Parameters
    ----------
    problem : PoolProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    """

    def __init__(self, problem: PoolProblem, vectors: Simd, workers: int) -> None:
        self.problem, self.simd, self.workers = problem, vectors, workers
        self.size = problem.itemsize
        self.lanes = vectors.lanes(self.size)
        self.last = problem.layout == "channels_last"
        self.unpools = problem.kind == "max_unpool"
        self.vectors = min(_VECTORS, -(-problem.c // self.lanes))
        self.axes: tuple[Windows, ...] = () if self.unpools else lifted(problem)
        self.whole = not self.last and not problem.is_max and all(map(_is_whole, self.axes[-problem.ndim :]))
        if self.whole:  # a map is one long row
            cells = math.prod(problem.input_size)
            point = Axis(1, 1, 1, 1, 1, 0, "zeros")
            self.axes = (point, point, Axis(cells, 1, cells, cells, 1, 0, "zeros"))

    @property
    def small(self) -> Sizes:
        return self.problem.input_size if self.unpools else self.problem.output_size

    @property
    def large(self) -> Sizes:
        return self.problem.output_size if self.unpools else self.problem.input_size

    @property
    def loops(self) -> str:
        """How it is computed: ``recorded``, ``covers``, ``routes`` or ``averages``."""
        if self.unpools:
            return "recorded"
        if self.last and all(map(dense, self.axes)):
            return "covers"
        if not self.problem.is_max:
            return "averages"
        return "routes" if not self.last and all(map(_is_tiled, self.axes)) and self._is_flat else "recorded"

    @property
    def _is_flat(self) -> bool:
        return self.axes[0].size == 1 and isinstance(self.axes[2], Axis) and self.axes[2].kernel <= WIDEST

    @property
    def columns(self) -> tuple[int, int]:
        """Kernel and stride of the columns for which there are loops: 0 for one window, -1 for those of any kind."""
        axis = self.axes[2]
        if _is_whole(axis):
            return 0, 0
        if isinstance(axis, Axis) and axis.kernel <= WIDEST and axis.stride <= LONGEST:
            return axis.kernel, axis.stride
        return -1, -1

    @property
    def weighted(self) -> bool:
        """Whether rows of windows are multiplied by factors that differ."""
        return self.loops == "averages" and not uniform_rows(self.problem)

    @property
    def bands(self) -> int:
        if self.loops != "averages" or self.workers == 1 or self.weighted:
            return 1
        outer = self.problem.n * self.problem.c * self.axes[0].size
        return min(-(-_UNITS * self.workers // outer), self.axes[1].size)

    @property
    def units(self) -> int:
        p = self.problem
        if self.loops == "covers":
            return p.n * self.axes[0].size * self.axes[1].size
        if self.loops == "averages":
            return p.n * p.c * self.axes[0].size * self.bands
        return p.n * (1 if self.last else p.c)

    @property
    def plane(self) -> int:
        """Bytes of a worker's line, with a vector of zeros before it and zeros behind as far as the row goes."""
        if self.loops != "averages":
            return 0
        axis = self.axes[2]
        longest = max(axis.out, axis.size // (axis.stride if isinstance(axis, Axis) else 1) + 1)
        return -(-(longest + 4 * self.lanes) * self.size // 64) * 64

    @property
    def line_bytes(self) -> int:
        windows = math.prod(axis.out for axis in self.axes) * self.size if self.weighted else 0
        return self.plane + -(-windows // 64) * 64

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of windows and factors, making them included."""
        return 80 * sum(axis.size + axis.out + self.lanes for axis in self.axes)

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        p = self.problem
        if self.loops == "recorded":
            return _ROUTED * p.n * p.c * math.prod(self.small)
        overlap = [-(-axis.kernel // axis.stride) if isinstance(axis, Axis) else 2 for axis in self.axes]
        if self.loops == "covers":
            blocks = p.n * math.prod(self.large) * -(-p.c // (self.lanes * self.vectors))
            vector = 8 if p.is_max else 3
            reads = math.prod(math.prod((a.out, a.kernel)) / a.size if isinstance(a, Axis) else 2 for a in self.axes)
            return blocks * (25 + reads * (5 + self.vectors * vector))
        outer = p.n * p.c * self.axes[0].size * self.axes[1].size
        vectors = -(-self.axes[2].size // self.lanes)
        if self.loops == "routes":
            return outer * (8 + 5 * vectors)
        gather = 1.5 * self.lanes * overlap[2] if self.columns[0] < 0 else 2 + overlap[2]
        return outer * (20 + vectors * (gather + overlap[0] * overlap[1] / max(overlap[2], 1)))


def _is_whole(axis: Windows) -> bool:
    return isinstance(axis, Axis) and axis.is_whole


def _is_tiled(axis: Windows) -> bool:
    """Whether windows lie side by side from the first element on."""
    return dense(axis) and isinstance(axis, Axis) and axis.kernel == axis.stride and axis.before == 0
