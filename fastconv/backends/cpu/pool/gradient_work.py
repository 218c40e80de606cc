"""The gradient of one pool, or one unpooling, made ready: which loops compute it, and how they are cut."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.formats import computed, format_of, size_of
from fastconv.backends.cpu.pool.windows import Picks, Windows, alike, cover, dense, lifted, picks
from fastconv.backends.cpu.pool.work import LONGEST, PERMUTED_BYTES, POWER, ROOT, WIDEST, joined
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.geometry import Axis, UnevenAxis
from fastconv.machine import machine
from fastconv.problem import PoolProblem, Sizes

# Kernels and strides that there are maps for: by indices, and for averages.
_ROUTED = ((2, 1), (2, 2), (3, 1), (3, 2), (3, 3))
_SHARED = tuple(
    (kernel, stride) for kernel in range(2, WIDEST + 1) for stride in range(1, min(kernel, LONGEST + 1) + 1)
)
# Windows side by side that are wider are fewer than what they read: their gradients are better sent one by one.
_WIDEST_TILE = 5
_UNITS = 8
# What half a vector takes of the time of a whole one: a little less, unless whole ones are done as two halves.
_HALF, _HALF_OF_HALVES = 0.9, 0.6
# Bytes that stay in the first-level cache.
_NEAR = 16 << 10
# Vectors of a row from which on it is done along: what comes from afar should come in the order of memory.
_LONG = 4
# Second-level caches' worth of bytes from which on that pays where windows overlap.
_LONG_AFAR = 12
# Averages of larger maps are faster as rows of their own.
_MAP = 64 << 10
_VECTORS = 4
# Strips of windows side by side that are done one after the other, from the top of a map to its end.
_STRIPS = 2
# Cycles of an element that goes where an index says, and bytes a cycle that are cleared before.
_SCATTERED, _CLEARED = 3.0, 16
# Second-level caches' worth of bytes beyond which everything comes from afar.
_AFAR = 4
# The same, for each worker, beyond which rows go past the caches: most would not stay for what reads them next.
_KEPT = 4
# Bytes, at most, of rows that are made in scratch before they go past the caches.
_PASSING = 128 << 10
# Planes, or channels, that take turns in going where indices say.
WAYS = 4
# Bytes that sums of half formats take in scratch, if more than one plane or line of channels.
_SUMS = 1 << 20


class GradientWork:
    """A gradient as the loops take it: from the small side, where windows are, to the large one.

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
    index : int
        Bytes of an index.
    """

    def __init__(self, problem: PoolProblem, vectors: Simd, workers: int) -> None:
        self.problem, self.simd, self.workers = problem, vectors, workers
        self.format = format_of(problem)
        self.size = size_of(computed(self.format))
        self.is_half = self.format != computed(self.format)
        self.lanes = vectors.lanes(self.size)
        self.last = problem.layout == "channels_last"
        self.index = problem.index_itemsize
        self.unpools = problem.kind == "max_unpool"
        self.vectors = min(_VECTORS, -(-problem.c // self.lanes))
        self.axes: tuple[Windows, ...] = () if self.unpools else lifted(problem)
        self.whole = not self.last and not problem.is_max and all(map(_is_whole, self.axes[-problem.ndim :]))
        if self.whole:  # a map is one long row
            cells = math.prod(problem.input_size)
            point = Axis(1, 1, 1, 1, 1, 0, "zeros")
            self.axes = (point, point, Axis(cells, 1, cells, cells, 1, 0, "zeros"))
        if self.loops == "maps":
            self.lanes = self._map_lanes
        if self.loops == "shares":
            self.lanes = self._share_lanes

    @property
    def small(self) -> Sizes:
        return self.problem.input_size if self.unpools else self.problem.output_size

    @property
    def large(self) -> Sizes:
        return self.problem.output_size if self.unpools else self.problem.input_size

    @cached_property
    def loops(self) -> str:
        """How it is computed.

        Recorded positions: ``recorded``; maxima: ``blocks``, ``routes``; averages: ``fills``, ``covers``, ``shares``,
        ``averages``; either: ``maps``, ``tiles``.
        """
        if self.unpools:
            return "recorded"
        if self.problem.is_max:
            if self.last and self.square in _ROUTED and self._block_cycles < self._scattered_cycles + self._cleared:
                return "blocks"
            if self.last or not self.square[0]:
                return "recorded"
            if self._is_tiled:
                return "tiles" if 0 < self._strips <= _STRIPS else "routes"
            # Zeros that are near cost next to nothing. Sums are in another order: threads must not decide.
            scattered = self._scattered_cycles + self._cleared * self._is_beyond(_AFAR)
            return "maps" if self._is_mapped(_ROUTED) and self._map_cycles < scattered else "recorded"
        if self.last:
            return "covers"
        if self.whole and not self.norm:
            return "fills"
        found = {"averages": self._average_cycles}
        if not self.whole and self.picks.vectors:
            found["shares"] = self._share_cycles
        if not (self.whole or self.norm) and self._is_mapped(_SHARED):
            found["maps"] = self.problem.n * self.problem.c * self._map_cycles
        if self._is_tiled and not (self.whole or self.norm) and 0 < self._strips <= _STRIPS:
            found["tiles"] = self._tile_cycles
        return min(found, key=lambda loops: found[loops])

    @property
    def shares(self) -> bool:
        """Whether a window sends the same to all that it reads."""
        return not (self.unpools or self.problem.is_max)

    @property
    def norm(self) -> int:
        """Which norm the gradient is of: 0 for none, the exponents 1 and 2, 3 for any other."""
        exponent = self.problem.norm_type
        if self.problem.kind != "lp_pool":
            return 0
        return int(exponent) if exponent in (1, 2) else 3

    @property
    def _is_tiled(self) -> bool:
        """Whether windows that tiles may hold lie side by side from the first element on, the last row in the map."""
        kernel, stride = self.square
        inside = all(getattr(axis, "before", 0) == 0 for axis in self.axes)
        return 0 < kernel == stride <= _WIDEST_TILE and inside and self.axes[1].out * stride <= self.axes[1].size

    @property
    def _strips(self) -> int:
        """Vectors that the columns of windows side by side take, 0 if none holds a window."""
        kernel = self.square[0]
        return -(-self.axes[2].size // (self.lanes // kernel * kernel)) if kernel <= self.lanes else 0

    @cached_property
    def _share_lanes(self) -> int:
        """Lanes of vectors of elements that pick from windows: half of all if the other half would hold nothing."""
        half = self.lanes // 2
        return half if half * self.size >= PERMUTED_BYTES and self.axes[2].size <= half else self.lanes

    def _is_mapped(self, among: tuple[tuple[int, int], ...]) -> bool:
        map_bytes = self.problem.itemsize * self.axes[1].size * self.axes[2].size
        return self.square in among and (self.problem.is_max or map_bytes <= _MAP)

    @cached_property
    def _map_lanes(self) -> int:
        """Lanes of the vectors of a map's columns: half of all where the other half would hold little."""
        half = self.lanes // 2
        if half * self.size < PERMUTED_BYTES or self._groups(half) * self._half >= self._groups(self.lanes):
            return self.lanes
        return half

    @property
    def _half(self) -> float:
        return _HALF if self.simd.fma_per_cycle > 1 else _HALF_OF_HALVES

    def _groups(self, lanes: int) -> int:
        """Vectors of blocks of elements, as many as the stride, that cover a row."""
        return -(-self.axes[2].size // (self.square[1] * lanes))

    @property
    def _map_cycles(self) -> float:
        """Cycles of a map by rows of windows."""
        kernel, stride = self.square
        pace = 2 / self.simd.fma_per_cycle
        window = pace * (kernel * kernel if self.problem.is_max else kernel) + stride * stride + 3
        if self._map_lanes < self.simd.lanes(self.size):
            window *= self._half
        return 55 + self.axes[1].out * self._groups(self._map_lanes) * window

    @property
    def block_rows(self) -> tuple[int, int]:
        """Blocks of elements, as many as the stride squared, along rows and columns."""
        rows, columns = (
            -(-(axis.size + axis.before) // axis.stride) if isinstance(axis, Axis) else 0 for axis in self.axes[1:]
        )
        return rows, columns

    @property
    def _block_cycles(self) -> float:
        """Cycles of a channel's map by blocks, channels in the lanes."""
        kernel, stride = self.square
        windows = (-(-kernel // stride)) ** 2
        pace = 2 / self.simd.fma_per_cycle
        vector = pace * (2 * windows + kernel * kernel) + 2 * stride * stride
        channels = self.problem.c
        return math.prod(self.block_rows) * (40 / channels + vector * -(-channels // self.lanes) / channels)

    @property
    def _scattered_cycles(self) -> float:
        """Cycles of a map's elements, each going where an index says."""
        return _SCATTERED * math.prod(self.small)

    @property
    def _cleared(self) -> float:
        """Cycles of the zeros that are in a map before."""
        return self.problem.itemsize * math.prod(self.large) / _CLEARED

    def _is_beyond(self, caches: int) -> bool:
        """Whether what is read and written is more than so many second-level caches hold."""
        return self.problem.bytes > caches * machine().l2_bytes

    @property
    def square(self) -> tuple[int, int]:
        """Kernel and stride if they are the same along rows and columns, without depth and dilation; else zeros."""
        depth, height, width = self.axes
        if isinstance(height, UnevenAxis) or isinstance(width, UnevenAxis) or depth.size > 1 or depth.out > 1:
            return 0, 0
        if not (dense(height) and dense(width)) or (height.kernel, height.stride) != (width.kernel, width.stride):
            return 0, 0
        return width.kernel, width.stride

    @property
    def columns(self) -> tuple[int, int]:
        """Kernel and stride of the columns for which there are loops: 0 for one window, -1 for those of any kind."""
        axis = self.axes[2]
        if _is_whole(axis):
            return 0, 0
        if isinstance(axis, Axis) and axis.kernel <= WIDEST and axis.stride <= LONGEST:
            return axis.kernel, axis.stride
        return -1, -1

    @cached_property
    def picks(self) -> Picks:
        """What vectors of elements pick from a row of windows."""
        return picks(cover(self.axes[2]), self._share_lanes)

    @property
    def joined(self) -> int:
        """Maps that may be taken for one tall map; 1 if none may."""
        if self.loops != "shares" or self.passes:
            return 1
        depth, height, _ = self.axes
        if depth.size * depth.out > 1:
            return 1
        return joined(self.problem, height.size, self.workers)

    @property
    def phase(self) -> int:
        """Padding before columns, modulo the stride."""
        _, _, width = self.axes
        assert isinstance(width, Axis)
        return width.before % width.stride

    @property
    def along(self) -> bool:
        """Whether rows of maps are done along, in the order of memory, which comes from afar; else down columns."""
        kernel, stride = self.square
        groups = self._groups(self.lanes)
        if groups < 2 or groups * stride < _LONG:
            return False
        # Where windows overlap, sums wait between rows, which only maxima from afar are worth.
        return kernel == stride or (self.problem.is_max and self._is_beyond(_LONG_AFAR))

    @property
    def waiting(self) -> int:
        """Bytes of a vector of windows that wait for the next row of these."""
        kernel, stride = self.square
        return max(kernel - stride, 0) * stride * self.lanes * self.size

    @property
    def block(self) -> int:
        """Rows of windows that are done before the next columns: what they read and write stays near."""
        _, height, width = self.axes
        size = self.problem.itemsize
        row = size * width.size * (height.stride if isinstance(height, Axis) else 1)
        row += width.out * (size + self.index * self.problem.is_max)
        return max(_NEAR // row, 4)

    @property
    def apart(self) -> bool:
        """Whether sums are made in scratch: in a half format they would be rounded at every addition."""
        return self.is_half and self.loops == "recorded" and not self.unpools

    @property
    def planes(self) -> int:
        """Planes that take turns, channels first."""
        return WAYS if not self.apart or WAYS * self._sum_bytes <= _SUMS else 1

    @property
    def _sum_bytes(self) -> int:
        """Bytes of the sums of a plane."""
        return math.prod(self.large) * self.size

    @property
    def bands(self) -> int:
        if self.loops == "recorded" and self.last:
            # Parts of the channels, cut where lines of the cache are.
            wanted = -(-_UNITS * self.workers // self.problem.n) if self.workers > 1 else 1
            if self.apart:
                wanted = max(wanted, -(-self.problem.c * self._sum_bytes // _SUMS))
            return max(1, min(wanted, self.problem.c // self._line))
        if self.loops not in ("averages", "shares") or self.workers == 1 or self.passes:
            return 1
        outer = self.problem.n * self.problem.c * self.axes[0].size
        return min(-(-_UNITS * self.workers // outer), self.axes[1].size)

    @property
    def _line(self) -> int:
        """Channels in a line of the cache."""
        return 64 // self.problem.itemsize

    @property
    def units(self) -> int:
        p = self.problem
        if self.loops == "blocks":
            return p.n * self.block_rows[0]
        if self.loops == "covers":
            return p.n * self.axes[0].size * self.axes[1].size
        if self.loops in ("averages", "shares"):
            return p.n * p.c * self.axes[0].size * self.bands
        return p.n * (self.bands if self.last else p.c)

    @property
    def plane(self) -> int:
        """Bytes of a worker's line, with zeros before it, and behind as far as the row goes."""
        if self.loops != "averages":
            return 0
        axis = self.axes[2]
        longest = max(axis.out, axis.size // (axis.stride if isinstance(axis, Axis) else 1) + 1)
        return whole_lines((longest + 3 * self.lanes + self.lead) * self.size)

    @property
    def lead(self) -> int:
        """Zeros before a line: as many as a window reads before its last element, and whole vectors of them."""
        return max(self.lanes, WIDEST)

    @property
    def passes(self) -> bool:
        """Whether maps go past the caches, their rows in scratch first: large ones, row by row without gaps."""
        row = self.problem.itemsize * self.axes[2].size if self.axes else 0
        return 0 < self._passing <= _PASSING and row >= LINE and self._is_beyond(_KEPT * self.workers)

    @property
    def _passing(self) -> int:
        """Bytes of the rows that are made before they are sent on, and of what vectors write behind; 0: never."""
        if self.loops not in ("routes", "tiles", "maps", "shares"):
            return 0
        _, height, width = self.axes
        kernel, stride = self.square
        rows = {
            "routes": 2 * kernel,
            "tiles": height.size,
            "shares": height.size,
            "maps": (self.block + 1) * stride + kernel,
        }[self.loops]
        behind = max(kernel, stride) * self.simd.vector_bytes
        return whole_lines(rows * width.size * self.problem.itemsize + behind)

    @property
    def ready(self) -> int:
        """Where in a worker's scratch such rows are: behind everything else, and what waits of a line."""
        return self._working_bytes + LINE

    @property
    def line_bytes(self) -> int:
        return self._working_bytes + (LINE + self._passing if self.passes else 0)

    @property
    def _working_bytes(self) -> int:
        if self.loops == "recorded":
            channels = -(-self.problem.c // (self._line * self.bands)) * self._line if self.last else self.planes
            return 64 + whole_lines(self.apart * channels * self._sum_bytes)
        if self.loops == "maps":
            return whole_lines(self._groups(self.lanes) * self.waiting)
        if self.loops in ("fills", "shares"):
            return 0
        if self.loops == "covers":
            return whole_lines(self.axes[2].out * self.problem.c * self.size)
        return self.plane + (whole_lines(self.axes[2].size * self.size) if self.norm else 0)

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of windows and factors, making them included."""
        return 80 * sum(axis.size + axis.out + self.lanes for axis in self.axes)

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        p = self.problem
        if self.loops == "recorded":
            return p.n * p.c * self._scattered_cycles
        if self.loops == "blocks":
            return p.n * p.c * self._block_cycles
        if self.loops == "fills":
            return p.n * p.c * (10 + 2 * -(-math.prod(self.large) // self.lanes))
        if self.loops == "covers":
            pace = 2 / self.simd.fma_per_cycle
            sent, received = self._norm_cycles
            reads = [a.out * a.kernel / a.size if isinstance(a, Axis) else 1.5 for a in self.axes]
            lines = p.n * math.prod(min(axis.size, 2 * axis.out + 1) for axis in self.axes[:2])
            line = self.axes[2].out * p.c / self.lanes * (3 + reads[0] * reads[1] * (1 + sent) * pace)
            column = 1 + received + 1.5 * reads[2]
            blocks = -(-p.c // (self.lanes * self.vectors))
            return lines * line + p.n * math.prod(self.large) * (12 + blocks * (8 + self.vectors * column * pace))
        if self.loops == "shares":
            return self._share_cycles
        if self.loops == "maps":
            return p.n * p.c * self._map_cycles
        if self.loops == "tiles":
            return self._tile_cycles
        if self.loops == "routes":
            return p.n * p.c * self.axes[1].size * (8 + 5 * -(-self.axes[2].size // self.lanes))
        return self._average_cycles

    @property
    def _tile_cycles(self) -> float:
        """Cycles of windows side by side, each repeated for the elements that it reads."""
        kernel = self.square[0]
        row = 5 + 3 * kernel if self.problem.is_max else 3 + kernel
        return self.problem.n * self.problem.c * (40 + self.axes[1].out * self._strips * row)

    @property
    def _average_cycles(self) -> float:
        """Cycles with sums of rows of windows, made once for rows that are alike, that are folded into each row."""
        depths, height, width = self.axes
        overlap, pace, (sent, received) = self._overlap, 2 / self.simd.fma_per_cycle, self._norm_cycles
        maps = self.problem.n * self.problem.c * depths.size
        sums = len(alike(height, 1)) * -(-width.out // self.lanes) * overlap[0] * overlap[1] * (1 + sent) * pace
        fold = 1.5 * (self.lanes * overlap[2] if self.columns[0] < 0 else 3 + 1.5 * overlap[2]) + received * pace
        return maps * (sums + height.size * (40 + -(-width.size // self.lanes) * fold))

    @property
    def _overlap(self) -> list[float]:
        """Windows that read an element, along each axis."""
        return [-(-axis.kernel // axis.stride) if isinstance(axis, Axis) else 2 for axis in self.axes]

    @property
    def _norm_cycles(self) -> tuple[float, float]:
        """Additions that a norm takes besides for a vector that is sent, and for one that is received."""
        power = POWER[self.size] * self.lanes
        return ((0.0, 0.0), (1.0, 0.0), (ROOT, 1.0), (power, power))[self.norm]

    @property
    def _share_cycles(self) -> float:
        """Cycles with windows that elements pick: those of rows that are alike, and of each row."""
        depths, height, width = self.axes
        sent, received = self._norm_cycles
        groups = self.problem.n * self.problem.c * depths.size * -(-width.size // self._share_lanes)
        entries, most, pace = len(alike(height, 1)), self.picks.most, 2 / self.simd.fma_per_cycle
        overlap = -(-height.kernel // height.stride) if isinstance(height, Axis) else 1.5
        line = overlap * self.picks.vectors * pace
        return groups * (
            entries * (20 + (0.6 + sent) * line + most * (0.15 * self.picks.vectors + 0.25) * pace)
            + height.size * (1 + received)
        )


def _is_whole(axis: Windows) -> bool:
    return isinstance(axis, Axis) and axis.is_whole
