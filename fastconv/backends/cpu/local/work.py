"""A locally connected layer made ready: its tile, how the work is cut, what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

_UNITS = 4  # units of work a thread, so that an uneven end costs little
_OVERHEAD = 8e-6
# Rows of the weight that are read side by side, images at once, vectors of a row: more is of no use.
_MOST_ROWS, _MOST_IMAGES, _MOST_VECTORS = 6, 6, 4
# The same where images are the lanes: rows, vectors of images, elements of a window.
_MOST_ROWS_BY_IMAGE, _MOST_LANES, _MOST_TERMS = 8, 2, 16
# Cycles: a tile's beginning and end, an element that is copied by itself, a piece of a window's line.
_TILE_CYCLES, _ELEMENT_CYCLES, _PIECE_CYCLES = 20, 2.0, 6.0
# Cycles of an element that is transposed with others.
_TURN_CYCLES = 0.5
# Cycles before a sum can be added to again.
_LATENCY = 4

# Elements of the vectors that windows are put together of, whose lines are short.
PIECE = 4


class Tile(NamedTuple):
    """Rows of a position's matrix, rows of its last tile, and images (vectors of a row in ``wgrad``).

    Where images are the lanes, ``across`` is vectors of them; in ``dgrad``, ``rows`` is elements of a window.
    """

    rows: int
    tail: int
    across: int


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    growth = 0.0

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        _, self.rows, self.cols = self.axes
        self.direction = problem.direction
        # Images are the lanes, in so many vectors, if they are enough for that; 0 if elements of a row are the lanes.
        enough = self.direction in ("fprop", "dgrad") and 2 * problem.n >= self.lanes
        self.vectors = min(_MOST_LANES, -(-problem.n // self.lanes)) if enough else 0
        self.images, self.channels = self._blocks()
        self.terms = self.channels * self.taps
        self.tile = min(self._tiles(), key=self._matrix_cycles)

    def _blocks(self) -> tuple[int, int]:
        """Return how many images and input channels are done together.

        Forward takes all channels of a group, and the images whose lines the cache holds. The weight's gradient takes
        all images. The input's gradient takes as few channels as feed all workers, and images only where there are
        too few channels: each block of images reads the weight again.
        """
        n, together = self.problem.n, self.vectors * self.lanes
        if self.direction == "fprop" and self.vectors:
            return together, self.inputs
        if self.direction == "fprop":
            return _even(n, max(1, self.cache // 2 // self._line_bytes(1, self.inputs))), self.inputs
        if self.direction == "wgrad":
            return n, _even(self.inputs, max(1, self.cache // 2 // self._line_bytes(n, 1)))
        if self.workers == 1:
            return together or n, self.inputs
        wanted = -(-_UNITS * self.workers // self.problem.groups)
        channels = _even(self.inputs, max(1, self.inputs // wanted))
        return together or _even(n, max(1, n * -(-self.inputs // channels) // wanted)), channels

    @property
    def pixel(self) -> int:
        """Bytes from a column of the slab to the next."""
        return self.vectors * self.lanes * self.size or self.size

    @property
    def line(self) -> int:
        """Bytes of a line of the slab."""
        return self.widths * self.pixel

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
        """Yield every tile that the registers hold, beside the vectors of a step and what is broadcast."""
        length, most_rows = self.outputs, _MOST_ROWS
        if self.vectors:
            counts = [self.vectors]
            length, most_rows = (
                (self.terms, _MOST_TERMS) if self.direction == "dgrad" else (length, _MOST_ROWS_BY_IMAGE)
            )
        elif self.direction == "wgrad":
            counts = [*range(1, min(_MOST_VECTORS, max(1, self.terms // self.lanes)) + 1)]
        else:
            counts = [*range(1, min(_MOST_IMAGES, self.images) + 1)]
        for rows in sorted({_even(length, most) for most in range(1, most_rows + 1)}):
            for across in counts:
                if rows * across + across + 2 <= self.simd.registers:
                    yield Tile(rows, length - (-(-length // rows) - 1) * rows, across)

    def _matrix_cycles(self, tile: Tile) -> float:
        """Return the cycles of a position's matrix and a block of images."""
        rate, held = self.simd.fma_per_cycle, tile.rows * tile.across
        if self.vectors:
            step = max(held / rate, (tile.rows + tile.across) / 2, _LATENCY)
            length, depth = (self.terms, self.outputs) if self.direction == "dgrad" else (self.outputs, self.terms)
            return -(-length // tile.rows) * (depth * step + 3 * held + _TILE_CYCLES)
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
            "slab": (1 if self.vectors else self.images) * self.channels * self.heights * self.line,
            "patches": 0 if self.vectors else self.images * self.patch,
            "matrix": self.images * self.outputs * columns * self.size,
            "sums": _MOST_ROWS * _MOST_IMAGES * self.size,
        }
        places, end = {}, 0
        for name, size in sizes.items():
            places[name] = end
            end += whole_lines(size) + 2 * LINE  # vectors may reach beyond
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
        # A position's matrix is new every time: what is waited for is not computed meanwhile.
        return _OVERHEAD + (computing + moving) / self.workers

    def _cycles(self) -> float:
        """Return the cycles of one core."""
        images, channels = self.blocks
        positions = self.rows.out * self.cols.out
        lines = self.images * self.channels * self.rows.kernel
        cycles = positions * self._matrix_cycles(self.tile)
        if not self.vectors:
            pieces = -(-self.cols.kernel // PIECE) if self.cols.dilation == 1 else self.cols.kernel
            cycles += positions * lines * pieces * _PIECE_CYCLES
        # What is brought into the matrix of outputs and images, or out of it; and into the slab, or out of it.
        aside = self.problem.layout == "channels_last"
        quick = _TURN_CYCLES if self.vectors else 2 / self.lanes
        cycles += positions * self.outputs * self.images * (_ELEMENT_CYCLES if aside or not self.vectors else quick)
        if self.direction == "dgrad":
            filled = self.images * self.channels * self.heights * self.widths
        else:
            filled = self.rows.out * lines * self.widths
        cycles += filled * (_ELEMENT_CYCLES if aside else quick)
        return self.problem.groups * channels * images * cycles


def _even(length: int, most: int) -> int:
    """Return the size of the fewest even pieces of at most a size."""
    return -(-length // -(-length // most))
