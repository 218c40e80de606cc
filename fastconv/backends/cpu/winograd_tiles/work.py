"""One convolution with tiles in the lanes made ready: phases, planes, runs of tiles, units of work, cost.

A kernel of k taps that moves by s is s kernels of ceil(k / s) taps that move by one, each on every s-th element of the
input: so many phases along both axes are as further channels. Those that have fewer taps have zeros instead.

Tiles of a row, and rows of tiles, stand in one line, and each vector holds the next of them. Of an image whose rows
and columns are taken apart by the tiles' distance, every element of all windows is such a line then, too, a little
further on: what tiles read beyond their last column stands behind each row, in lanes that are not stored.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.registers import LINE, Simd
from fastconv.backends.cpu.work import ConvWork
from fastconv.geometry import Axis, source_line
from fastconv.problem import ConvProblem

#: Points along an axis: those of `Winograd4`.
EXTENT = 6
#: Taps of a phase for which there are several outputs in a tile.
TAPS = (2, 3, 4, 5)

# Units of work a thread, so that an uneven end costs little; shares of the cache that the transformed input of a strip
# and the planes of a band may take.
_UNITS, _SHARE, _PLANES = 2, 0.25, 0.5

# Output channels and vectors of tiles that are summed together; bytes of their sums at all points, which a first-level
# cache is to hold.
_ROWS, _VECTORS = (8, 4), (1, 2, 3)
_NEAR = 1 << 15

# Instructions on vectors, of which as many start in a cycle as multiply-adds do: of a point beside its multiply-adds,
# for each vector of it; of a transform, for each vector read on the way in, and out; of one of outputs, which is turned
# and stored in parts.
_POINT, _SUM, _ENTER, _LEAVE, _TURN = 4.0, 2.0, 4.0, 2.0, 17.0
# How much longer than its multiply-adds a term takes: weights come from the second-level cache.
_TERM = 1.2
# Cycles of an element that is brought to its plane.
_MOVE = 1.5


def phase_taps(problem: ConvProblem) -> int:
    """Return how many taps the longest phase of a kernel has, along either axis."""
    return max(-(-k // s) for k, s in zip(problem.kernel_size, problem.stride, strict=True))


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    # About: of 7x7 taps at stride 2 it is 2.9, of 11x11 at stride 4 4.8.
    growth = 4.0

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        _, self.height, self.width = self.axes
        self.kernel_taps = phase_taps(problem)
        self.m = EXTENT + 1 - self.kernel_taps
        self.points = EXTENT**2
        self.phases = self.height.stride * self.width.stride
        self.terms = self.inputs * self.phases
        self.vector_bytes = self.lanes * self.size
        #: Rows and columns of tiles; how many tiles further on what a tile reads may be; tiles of a row and those.
        self.down, self.across = -(-self.height.out // self.m), -(-self.width.out // self.m)
        self.beyond = (EXTENT - 1) // self.m
        self.pitch = self.across + self.beyond
        #: Vectors of an image's tiles.
        self.all_vectors = -(-((self.down - 1) * self.pitch + self.across) // self.lanes)
        shapes = [
            (r, v)
            for r in _ROWS
            for v in _VECTORS
            if r * v + v + 1 <= vectors.registers and self.points * r * v * self.vector_bytes <= _NEAR
        ]
        self.rows, self.vectors = min(shapes, key=lambda shape: self._product_cycles(*shape))

    def _product_cycles(self, rows: int, vectors: int) -> float:
        """Cycles of an image's products."""
        sums = rows * vectors
        term = max(sums / self.simd.fma_per_cycle, (rows + vectors) / 2, 4.0)
        point = self.terms * term * _TERM + (_POINT + _SUM * sums) / self.simd.fma_per_cycle
        return -(-self.all_vectors // vectors) * -(-self.outputs // rows) * self.points * point

    @cached_property
    def blocks(self) -> int:
        """Blocks of vectors in an image."""
        return -(-self.all_vectors // self.vectors)

    @cached_property
    def band(self) -> int:
        """Blocks of vectors done together: few enough for the cache, and for every worker to get some."""
        wanted = -(-_UNITS * self.workers // (self.problem.n * self.problem.groups)) if self.workers > 1 else 1
        band = -(-self.blocks // wanted)
        while band > 1 and self.plane_bytes(band) * self.planes > self.cache * _PLANES:
            band -= 1
        return -(-self.blocks // -(-self.blocks // band))  # even bands

    @cached_property
    def strip(self) -> int:
        """Blocks of vectors that are transformed together: many, so that rows of outputs are written far, but kept."""
        return max(1, min(self.band, int(self.cache * _SHARE) // self.block_bytes))

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's transformed input."""
        return self.points * self.terms * self.vectors * self.vector_bytes

    @property
    def bands(self) -> int:
        return -(-self.blocks // self.band)

    @property
    def units(self) -> int:
        return self.problem.n * self.problem.groups * self.bands

    def plane_rows(self, band: int) -> int:
        """Return how many rows of tiles a band of blocks meets at most, and those that it reads of besides."""
        return (band * self.vectors * self.lanes - 2) // self.pitch + 2 + self.beyond

    def plane_bytes(self, band: int) -> int:
        """Return the bytes of a plane, with what is read behind its last row."""
        elements = self.plane_rows(band) * self.pitch + self.beyond
        # A line more than a multiple of lines: planes a power of two apart would share the few places of a cache set.
        return (-(-elements * self.size // LINE) | 1) * LINE

    @property
    def period(self) -> tuple[int, int]:
        """Rows and columns of the input from one tile to the next."""
        return self.m * self.height.stride, self.m * self.width.stride

    @property
    def planes(self) -> int:
        """Planes of all channels of a group."""
        return self.inputs * math.prod(self.period)

    @property
    def scratch(self) -> dict[str, int]:
        """Where things lie in a worker's scratch behind the planes, and how much it is, in bytes."""
        transformed = self.planes * self.plane_bytes(self.band)
        products = transformed + self.strip * self.block_bytes
        end = products + self.points * self.rows * self.vectors * self.vector_bytes
        return {"transformed": transformed, "products": products, "scratch_bytes": end}

    @property
    def held(self) -> int:
        """Output channels of a group in the packed weight: whole vectors, whole rows."""
        step = max(self.lanes, self.rows)
        return -(-self.outputs // step) * step

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.problem.groups * self.held * self.points * self.terms

    @property
    def filter_bytes(self) -> int:
        """Bytes of a vector of filters, not yet transformed, and of zeros; whole squares are transposed."""
        return (self.taps // self.lanes * self.lanes + self.lanes + 1) * self.vector_bytes

    @property
    def room(self) -> int:
        """Bytes of scratch for all workers, behind a line for what they met."""
        return LINE + self.workers * max(self.scratch["scratch_bytes"], self.filter_bytes)

    @property
    def pieces(self) -> float:
        """Pieces of the output that are written apart: a vector's tiles of a row, row by row."""
        runs = 1 + self.across / self.lanes
        return self.problem.n * self.problem.oc * self.height.out * runs

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        p, per_cycle = self.problem, self.simd.fma_per_cycle
        images = p.n * p.groups
        vectors = self.blocks * self.vectors
        enter = vectors * self.terms * self.points * _ENTER / per_cycle
        leave = self.all_vectors * self.outputs * (self.points * _LEAVE + self.m**2 * _TURN) / per_cycle
        fill = _MOVE * self.bands * self.plane_rows(self.band) * self.pitch * self.planes
        return images * (self._product_cycles(self.rows, self.vectors) + enter + leave + fill)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the input index of every padded row and column that planes hold, -1 for zero."""
        rows, cols = self.period
        last = (self.bands - 1) * self.band * self.vectors * self.lanes // self.pitch
        return _table(self.height, (last + self.plane_rows(self.band)) * rows), _table(self.width, self.pitch * cols)

    @property
    def inner(self) -> tuple[int, int]:
        """The columns of tiles of which all is inside the input, and is read."""
        first, last = inside(self.width)
        start = -(-first // self.period[1])
        return start, max(start, last // self.period[1])

    def places(self) -> np.ndarray:
        """Return where every element of a window lies from its tile on, in bytes: (phase, element)."""
        (rows, cols), plane = self.period, self.plane_bytes(self.band)
        ph, pw, i, j = np.indices((self.height.stride, self.width.stride, EXTENT, EXTENT))
        down, row = np.divmod(i * self.height.stride + ph, rows)
        right, col = np.divmod(j * self.width.stride + pw, cols)
        return np.ascontiguousarray((row * cols + col) * plane + (down * self.pitch + right) * self.size, np.int64)

    def filter_places(self) -> np.ndarray:
        """Return where every tap of a phase lies among the vectors of a filter, in bytes: (phase, tap)."""
        ph, pw, i, j = np.indices((self.height.stride, self.width.stride, self.kernel_taps, self.kernel_taps))
        row, col = i * self.height.stride + ph, j * self.width.stride + pw
        exists = (row < self.height.kernel) & (col < self.width.kernel)
        zeros = self.filter_bytes // self.vector_bytes - 1
        return np.ascontiguousarray(
            np.where(exists, row * self.width.kernel + col, zeros) * self.vector_bytes, np.int64
        )

    def runs(self, row_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the runs of tiles of one row of them that the vectors hold.

        Parameters
        ----------
        row_bytes : int
            From a row of the output to the next.

        Returns
        -------
        runs : array of int
            See `transforms.RUN_HEAD`.
        starts : array of int
            Of every vector, and of the end, the first run.
        """
        vector = np.arange(self.blocks * self.vectors)[:, None] * self.lanes
        row = vector // self.pitch + np.arange((self.lanes - 1) // self.pitch + 2)
        left = vector - row * self.pitch  # the column of tiles that the first lane would be
        low, high = np.maximum(-left, 0) * self.m, np.minimum(self.lanes * self.m, self.width.out - left * self.m)
        exists = (low < high) & (row < self.down)
        first = np.arange(self.m) * self.lanes
        start, stop = (np.clip(edge[exists][:, None] - first, 0, self.lanes) for edge in (low, high))
        masks = np.maximum((1 << stop) - (1 << start), 0)
        offsets = row * self.m * row_bytes + left * self.m * self.size
        heights = np.minimum(self.m, self.height.out - row * self.m)
        head = [part[exists] for part in (offsets, heights, low * self.size, high * self.size)]
        runs = np.column_stack([*head, masks])
        return np.ascontiguousarray(runs, np.int64), np.append(0, np.cumsum(exists.sum(axis=1))).astype(np.int64)


def _table(axis: Axis, length: int) -> np.ndarray:
    table = np.full(length, -1, np.int64)
    line = source_line(axis)
    table[: len(line)] = line
    return table
