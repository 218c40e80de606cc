"""A locally connected layer made ready: its tile, how the work is cut, what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.formats import computed, format_of, size_of
from fastconv.backends.cpu.registers import Simd
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_LINE = 64  # bytes of a cache line
_UNITS = 4  # units of work a thread, so that an uneven end costs little
_OVERHEAD = 8e-6
# Rows of the weight that are read side by side, images at once, vectors of a row: more is of no use.
_MOST_ROWS, _MOST_IMAGES, _MOST_VECTORS = 6, 6, 4
# Cycles: a tile's beginning and end, an element that is copied by itself, a piece of a window's line.
_TILE_CYCLES, _ELEMENT_CYCLES, _PIECE_CYCLES = 20, 2.0, 1.5

# Elements of the vectors that windows are put together of, whose lines are short.
PIECE = 4


class Tile(NamedTuple):
    """Rows of a position's matrix, rows of its last tile, and images (vectors of a row in ``wgrad``)."""

    rows: int
    tail: int
    across: int


class Work:
    """A problem as the loops take it.

    Parameters
    ----------
    problem : ConvProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.
    """

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        self.problem, self.simd, self.workers, self.cache = problem, vectors, workers, cache
        # Of what is computed; arrays may hold less.
        self.format = format_of(problem)
        self.size = size_of(computed(self.format))
        self.lanes = vectors.lanes(self.size)
        _, self.rows, self.cols = lifted_axes(problem)
        self.inputs, self.outputs = problem.ic // problem.groups, problem.oc // problem.groups
        self.taps = math.prod(problem.kernel_size)
        self.direction = problem.direction
        self.images, self.channels = self._blocks()
        self.terms = self.channels * self.taps
        self.tile = min(self._tiles(), key=self._matrix_cycles)

    def _blocks(self) -> tuple[int, int]:
        """Return how many images and input channels are done together.

        Forward takes all channels of a group, and the images whose lines the cache holds. The weight's gradient takes
        all images. The input's gradient takes as few channels as feed all workers, and images only where there are
        too few channels: each block of images reads the weight again.
        """
        n = self.problem.n
        if self.direction == "fprop":
            return _even(n, max(1, self.cache // 2 // self._line_bytes(1, self.inputs))), self.inputs
        if self.direction == "wgrad":
            return n, _even(self.inputs, max(1, self.cache // 2 // self._line_bytes(n, 1)))
        if self.workers == 1:
            return n, self.inputs
        wanted = -(-_UNITS * self.workers // self.problem.groups)
        channels = _even(self.inputs, max(1, self.inputs // wanted))
        return _even(n, max(1, n * -(-self.inputs // channels) // wanted)), channels

    @property
    def line(self) -> int:
        """Bytes of a line of the slab."""
        return self.widths * self.size

    @property
    def widths(self) -> int:
        """Columns of a line: what is read; in the input's gradient what is written, too."""
        read = self.cols.extent(self.cols.out)
        return max(read, self.cols.before + self.cols.size) if self.direction == "dgrad" else read

    @property
    def heights(self) -> int:
        """Rows of the slab that belong to a channel."""
        if self.direction != "dgrad":
            return self.rows.kernel
        return max(self.rows.extent(self.rows.out), self.rows.before + self.rows.size)

    def _line_bytes(self, images: int, channels: int) -> int:
        return images * channels * self.rows.kernel * self.line

    # ------------------------------------------------------------------------------------------------- the tile

    def _tiles(self) -> Iterator[Tile]:
        registers = self.simd.registers
        if self.direction == "wgrad":
            most = min(_MOST_VECTORS, max(1, self.terms // self.lanes))
        else:
            most = min(_MOST_IMAGES, self.images)
        for rows in {_even(self.outputs, most_rows) for most_rows in range(1, _MOST_ROWS + 1)}:
            for across in range(1, most + 1):
                if rows * across + across + 2 <= registers:
                    yield Tile(rows, self.outputs - (-(-self.outputs // rows) - 1) * rows, across)

    def _matrix_cycles(self, tile: Tile) -> float:
        """Return the cycles of a position's matrix and a block of images."""
        rate, held = self.simd.fma_per_cycle, tile.rows * tile.across
        vectors = -(-self.terms // self.lanes)
        tiles = -(-self.outputs // tile.rows)
        loads = (tile.rows + tile.across) / 2
        if self.direction == "wgrad":
            tiles *= -(-vectors // tile.across)
            return tiles * (self.problem.n * max(held / rate, loads) + 2 * held + _TILE_CYCLES)
        tiles *= -(-self.images // tile.across)
        if self.direction == "dgrad":
            return tiles * (vectors * max(held / rate, loads + tile.across) + _TILE_CYCLES)
        return tiles * (vectors * max(held / rate, loads) + 4 * held + _TILE_CYCLES)

    # ------------------------------------------------------------------------------------------------- the cutting

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks of images and of channels."""
        return -(-self.problem.n // self.images), -(-self.inputs // self.channels)

    @property
    def parts(self) -> int:
        """Pieces that a row of outputs is cut into, where rows alone do not feed all workers."""
        if self.workers == 1 or self.direction == "dgrad":
            return 1
        units = self.problem.groups * self.rows.out * self.blocks[1]
        return min(self.cols.out, -(-_UNITS * self.workers // units))

    @property
    def units(self) -> int:
        images, channels = self.blocks
        if self.direction == "dgrad":
            return self.problem.groups * channels * images
        return self.problem.groups * channels * self.rows.out * self.parts

    # ------------------------------------------------------------------------------------------------- the memory

    @property
    def patch(self) -> int:
        """Bytes of a window, in whole vectors and one more."""
        return (-(-self.terms // self.lanes) + 1) * self.lanes * self.size

    @cached_property
    def places(self) -> dict[str, int]:
        """Return where in a worker's scratch everything begins, and how large that is (``scratch_bytes``)."""
        columns = -(-self.cols.out // self.parts)
        sizes = {
            "slab": self.images * self.channels * self.heights * self.line,
            "patches": self.images * self.patch,
            "matrix": self.images * self.outputs * columns * self.size,
            "sums": _MOST_ROWS * _MOST_IMAGES * self.size,
        }
        places, end = {}, 0
        for name, size in sizes.items():
            places[name] = end
            end += -(-size // _LINE) * _LINE + 2 * _LINE  # vectors may reach beyond
        return places | {"scratch_bytes": end}

    @property
    def scratch_bytes(self) -> int:
        return self.places["scratch_bytes"]

    # --------------------------------------------------------------------------------------------------- the cost

    def seconds(self, machine: Machine) -> float:
        """Return what a run should take."""
        images, _ = self.blocks
        uneven = -(-self.units // self.workers) * self.workers / self.units
        computing = self._cycles() / machine.hertz * uneven
        weight = math.prod(self.problem.w_shape) * self.problem.itemsize
        # Forward and the input's gradient read the weight for every block of images.
        again = (images - 1) * weight if self.direction != "wgrad" else 0
        moving = (self.problem.bytes + again) / machine.bandwidth
        return _OVERHEAD + max(computing, moving) / self.workers

    def _cycles(self) -> float:
        """Return the cycles of one core."""
        images, channels = self.blocks
        groups, positions = self.problem.groups, self.rows.out * self.cols.out
        blocks = groups * channels * images
        lines = self.images * self.channels * self.rows.kernel
        pieces = lines * (-(-self.cols.kernel // PIECE) if self.cols.dilation == 1 else self.cols.kernel)
        cycles = positions * (self._matrix_cycles(self.tile) + pieces * _PIECE_CYCLES)
        # What is brought into the matrix of outputs and images, or out of it.
        cycles += positions * self.outputs * self.images * _ELEMENT_CYCLES
        if self.direction == "dgrad":
            filled = self.images * self.channels * self.heights * self.widths
        else:
            filled = self.rows.out * lines * self.widths
        aside = self.problem.layout == "channels_last"
        return blocks * (cycles + filled * (_ELEMENT_CYCLES if aside else 2 / self.lanes))


def _even(length: int, most: int) -> int:
    """Return the size of the fewest even pieces of at most a size."""
    return -(-length // -(-length // most))
