"""One depthwise convolution made ready: which lanes, which tile, whether through a slab, how the work is cut."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.phases import MOST_WAYS, dealing_cycles
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.machine import machine
from fastconv.problem import ConvProblem

# Bytes of a slab that stays in the first-level cache beside what is stored.
_SLAB = 24 << 10
# Units of work a thread, so that an uneven end costs little.
_UNITS = 4

# Kernel rows that are done together, and the output rows and vectors that a tile may have: not all, so that the
# number of compiled functions stays small.
_HEIGHTS = (7, 5, 3, 2, 1)
_ROWS = (14, 10, 7, 5, 4, 2, 1)
_VECTORS = (5, 4, 3, 2, 1)
# Rows of tiles that do not span a row of the output, at most.
_TALLEST = 10
# Cycles from a multiply-add to the next that needs its result.
_LATENCY = 4
# Output rows of a round of the weight gradient.
WGRAD_ROWS = 4
# Bytes a cycle from the second-level cache; of it, what masks of planes that are taken as lines may take.
_L2_RATE, _MASKS = 32, 8
# Second-level caches' worth of input and output that stay near.
NEAR = 8
# Seconds for a line of a piece of a row that lies below another: from near, and from memory. Measured on Zen 4.
_NEAR_WAIT, _FAR_WAIT = 2e-9, 8e-9
# Cycles of a tile beside its multiply-adds, measured on Zen 4: addresses, masks, and the last sums and their stores.
_START = 60
# The same, where it is not to rank tiles: what tiles overlap of it.
_BEGIN = 45
# Cycles of a row of a slab, and of an item of it that is copied on its own.
_ROW, _ITEM = 15.0, 4.0


class Tile(NamedTuple):
    """What is held in registers: output rows, vectors of a row, lanes of a vector; cycles that all tiles take."""

    rows: int
    vectors: int
    lanes: int
    cycles: float


class Work(ConvWork):
    """A problem as the loops take it: of `ConvWork`'s parameters, and ``slab``.

    Parameters
    ----------
    slab : bool, optional
        Whether rows are copied with their padding; by default if the micro-kernel does not read them in place.
    """

    growth = 0.0

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int, slab: bool | None = None) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.depth, self.height, self.width = self.axes
        self.multiplier = problem.oc // problem.groups
        self.last = problem.layout == "channels_last" and self.multiplier == 1
        self.item = self.size * problem.ic if self.last else self.size
        self.slab = self._needs_slab() if slab is None else slab
        # Input columns from one output to the next, where lanes are columns that are read in place.
        self.phases = self._step if not self.last and not self.slab else 1
        self.slab_phases = 1 if self.last else self.width.stride

    @property
    def _step(self) -> int:
        return self.width.stride if self.width.out > 1 else 1

    @property
    def positions(self) -> int:
        """Output positions of an image."""
        return math.prod(self.problem.output_size)

    @property
    def is_copied(self) -> bool:
        """Whether channels that are neighbours in memory are copied apart, since lanes are columns."""
        return self.problem.layout == "channels_last" and not self.last

    @property
    def padded(self) -> bool:
        return any(not axis.is_inside((0, axis.out)) for axis in self.axes)

    def _needs_slab(self) -> bool:
        """Whether the micro-kernel does not read the input in place."""
        if self.padded and self.problem.padding_mode != "zeros":
            return True
        # Where loads are not masked in hardware, padding is better copied. Maps of three axes have no slab.
        masked = self.simd.name.startswith("avx") or self.depth.kernel > 1
        return (not self.last and self._step > 2) or (self.padded and not masked)

    @cached_property
    def kernel_rows(self) -> int:
        """Kernel rows that are done together, so that an input row is loaded once for all of them."""
        if self.height.dilation > 1 or self.height.stride > 2:
            return 1
        return next(rows for rows in _HEIGHTS if self.height.kernel % rows == 0)

    @property
    def widths(self) -> tuple[int, ...]:
        """Lanes that vectors may have: all, or half of those of the widest."""
        return (self.lanes, self.lanes // 2) if self.simd.vector_bytes > 32 else (self.lanes,)

    @cached_property
    def tile(self) -> Tile:
        """The tile that takes the fewest cycles, and what it waits for."""
        tiles = [
            Tile(rows, vectors, width, self._cycles(rows, vectors, width))
            for width in self.widths
            for rows in _ROWS
            for vectors in _VECTORS
            if rows <= self._tallest(vectors == self._across(width)) and vectors <= self._across(width)
            if self._fits(rows, vectors)
        ]
        # Whatever takes no longer than memory does is as good, but for waiting.
        here = machine()
        least = here.moving(self.problem.bytes) * here.hertz
        return min(tiles, key=lambda t: (max(t.cycles, least) + self._waiting(t) * here.hertz, t.cycles))

    def _tallest(self, spans: bool) -> int:
        """Return how many rows a tile may have: pieces of many rows, unless they are whole, wait for as many lines."""
        return self.height.out if spans else min(self.height.out, _TALLEST)

    def _across(self, lanes: int) -> int:
        """Return of how many vectors an output row is: of columns, or, where lanes are channels, columns."""
        return self.width.out if self.last else -(-self.width.out // lanes)

    def _fits(self, rows: int, vectors: int) -> bool:
        """Whether the sums stay in registers, beside the weights of a kernel column and what is loaded."""
        return rows == vectors == 1 or rows * vectors + self.kernel_rows + vectors < self.simd.registers

    def rows_read(self, rows: int) -> int:
        """Input rows that output rows read for one group of kernel rows."""
        return rows if self.kernel_rows == 1 else (rows - 1) * self.height.stride + self.kernel_rows

    def _cycles(self, rows: int, vectors: int, lanes: int) -> float:
        """Return the cycles on one core of all tiles of this form."""
        p = self.problem
        whole = lanes * self.size == self.simd.vector_bytes
        rate = self.simd.fma_per_cycle if whole else 2.0
        loads = self.rows_read(rows) * vectors * self.phases
        # Vectors of columns begin anywhere: most of them, as wide as a cache line, lie in two.
        crossing = 1.0 if self.last else lanes * self.size / LINE
        column = max(
            rows * vectors * self.kernel_rows / rate,
            (loads * (1 + crossing) / 2 + self.kernel_rows + loads * (1 - 1 / self.phases) / 2) / rate,
            _LATENCY * self.kernel_rows,
        )
        groups = self.taps // self.width.kernel // self.kernel_rows
        tile = _START + groups * (2 * self.rows_read(rows) + self.width.kernel * (column + 1))
        outer = p.n * self.depth.out * (-(-p.ic // lanes) if self.last else p.oc)
        return outer * -(-self.height.out // rows) * -(-self._across(lanes) // vectors) * tile

    @property
    def cycles(self) -> float:
        """Cycles on one core of all tiles and slabs; `_cycles` only ranks tiles."""
        p, (rows, vectors, lanes, _) = self.problem, self.tile
        rate = self.simd.fma_per_cycle if lanes * self.size == self.simd.vector_bytes else 2.0
        loads = self.rows_read(rows) * vectors * self.phases
        # Loads that cross lines take two turns; of every second column, vectors are picked from two.
        crossing = 0.0 if self.last else lanes * self.size / LINE
        column = max(
            rows * vectors * self.kernel_rows / rate,
            (loads * (1 + crossing) + self.kernel_rows / 2 + loads * (1 - 1 / self.phases)) / rate,
            _LATENCY * self.kernel_rows,
        )
        groups = self.taps // self.width.kernel // self.kernel_rows
        tile = _BEGIN + groups * (2 * self.rows_read(rows) + self.width.kernel * (column + 1))
        outer = p.n * self.depth.out * (-(-p.ic // lanes) if self.last else p.oc)
        return outer * -(-self.height.out // rows) * self.tiles_across * tile + self._filling_cycles

    @property
    def tiles_across(self) -> int:
        """Tiles that a row of outputs is cut into."""
        return self._tiles_across(self.tile)

    def _tiles_across(self, tile: Tile) -> int:
        return -(-self._across(tile.lanes) // tile.vectors)

    @property
    def waiting(self) -> float:
        """Seconds that one core waits for lines of the output."""
        return self._waiting(self.tile)

    def _waiting(self, tile: Tile) -> float:
        """Return how long lines are waited for where tiles write piece below piece, and not whole rows.

        Nothing but what is below a tile's first row: that continues what the tile before has written.
        """
        across = self._tiles_across(tile)
        if self.last or across == 1:
            return 0.0
        lines = 1 + tile.vectors * tile.lanes * self.size / LINE
        below = self.problem.n * self.problem.oc * self.depth.out * self.height.out * (1 - 1 / tile.rows)
        kept = NEAR * self.cache / self.problem.bytes
        wait = _NEAR_WAIT / kept if kept > 1 else _FAR_WAIT + (_NEAR_WAIT - _FAR_WAIT) * kept
        return below * across * lines * wait

    @property
    def far(self) -> bool:
        """Whether tiles fetch the lines that they write, and the rows that the next ones read, ahead."""
        return not self.last and self.tiles_across > 1 and self.problem.bytes > NEAR * self.cache

    @property
    def kernel_cols(self) -> int:
        """Kernel columns that the weight gradient sums together, so that the output's gradient is loaded once."""
        fits = 3 * self.kernel_rows + WGRAD_ROWS + 2 <= self.simd.registers
        return 3 if self.width.kernel % 3 == 0 and fits else 1

    @property
    def wgrad_cycles(self) -> float:
        """Cycles on one core of the weight gradient."""
        return self._flat_cycles if self.flat else self._column_cycles

    @property
    def _flat_cycles(self) -> float:
        """Cycles of planes that are taken as lines: most vectors lie in two cache lines."""
        p, rows, cols = self.problem, self.height.kernel, self.width.kernel
        vectors = -(-self.height.out * self.width.out // self.flat_lanes)
        loads = (rows + cols) * (1 + self.flat_lanes * self.size / LINE)
        step = max(rows * cols, loads) / self.simd.fma_per_cycle + 1
        return p.n * p.oc * (vectors * step + _START)

    @property
    def _column_cycles(self) -> float:
        """Cycles of columns of vectors, one beside the other."""
        p, lanes, rows = self.problem, self.tile.lanes, WGRAD_ROWS
        whole = lanes * self.size == self.simd.vector_bytes
        rate = self.simd.fma_per_cycle if whole else 2.0
        # Vectors that cross lines load twice; of every second column, they are picked from two.
        lines = lanes * self.size / LINE
        loads = self.kernel_cols * self.rows_read(rows) * self.phases + rows
        picks = self.kernel_cols * self.rows_read(rows) * (self.phases - 1)
        cells = self.kernel_cols * self.kernel_rows
        cycles = max(rows * cells, loads * (1 + lines) + picks) / rate
        # Planes that the first-level cache does not hold are walked down line by line: each time, or only once
        # where it holds a column of vectors.
        columns, passes = self.depth.out * -(-self.width.out // lanes), self.taps / cells
        touched = LINE * (self.rows_read(rows) * (self.phases * lines + 1) + rows * (lines + 1))
        rounds = self.height.out / rows
        far = 0.0 if self._plane_bytes <= _SLAB else 1.0 if rounds * touched <= _SLAB else passes
        summing = far * max(cycles, touched / _L2_RATE) + (passes - far) * cycles
        return p.oc * (p.n * columns * (rounds * summing + passes * _START) + 12 * self.taps)

    @property
    def flat_lanes(self) -> int:
        """Lanes of the weight gradient's vectors that run over the ends of rows."""
        return self.simd.lanes(self.size)

    @property
    def flat(self) -> bool:
        """Whether the weight gradient takes planes as lines: as wide as their gradients, with masked multiply-adds."""
        width = self.width
        same = self.height.stride == width.stride == 1 and width.out == width.size
        # One kernel column reads no padding, so that whatever is not finite is noticed.
        plain = width.before in range(0, width.kernel * width.dilation, width.dilation)
        # All sums stay in registers, beside the gradients of a kernel row and what is loaded.
        held = (self.height.kernel + 1) * width.kernel < self.simd.registers
        fits = self.problem.ndim < 3 and held and self.mask_bytes <= self.cache // _MASKS
        return self.simd.name == "avx512" and same and plain and fits

    @property
    def mask_bytes(self) -> int:
        """Bytes of the masks of planes that are taken as lines."""
        return (self.height.kernel + self.width.kernel) * self.height.out * self.width.out // 8

    @property
    def _plane_bytes(self) -> int:
        """Bytes of the planes of input and output that belong together."""
        return self.size * (self.height.size * self.width.size + self.height.out * self.width.out)

    @property
    def sums_bytes(self) -> int:
        """Bytes of a vector for each kernel position, which the weight gradient keeps."""
        return whole_lines(self.taps * self.tile.lanes * self.size)

    @property
    def blocks(self) -> int:
        """Vectors of channels, where lanes are channels; channels, where they are not."""
        return -(-self.problem.ic // self.tile.lanes) if self.last else self.problem.oc

    @cached_property
    def band(self) -> int:
        """Output rows done together: few enough for the slab's cache, and for every worker to get some."""
        least = self.tile.rows
        outer = self.problem.n * self.depth.out * (1 if self.last else self.problem.oc)
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 else 1
        band = max(least, -(-self.height.out // wanted))
        limit = self.cache // 2 if self.last else _SLAB
        while self.slab and band > least and self.height.extent(band) * self.row_bytes > limit:
            band = max(least, band - least)
        # Even bands of whole tiles: as few rows as may be are done twice.
        band = -(-self.height.out // -(-self.height.out // band))
        return min(self.height.out, -(-band // least) * least)

    @property
    def bands(self) -> int:
        return -(-self.height.out // self.band)

    @property
    def parts(self) -> int:
        """Pieces that the channels are cut into where lanes are channels, if bands alone do not feed all workers."""
        units = self.problem.n * self.depth.out * self.bands
        if self.workers == 1 or units >= 2 * self.workers:
            return 1
        return min(self.blocks, -(-_UNITS * self.workers // units))

    @property
    def units(self) -> int:
        outer = self.problem.n * self.depth.out * self.bands
        return outer * (self.parts if self.last else self.problem.oc)

    @property
    def dealt(self) -> bool:
        """Whether rows are dealt to the phases of a slab, or copied to one; otherwise they go item by item."""
        return self.slab_phases <= MOST_WAYS

    @property
    def clean(self) -> bool:
        """Whether a slab's columns outside the input are zeros that nothing is written over."""
        return self.dealt and not self.last and self.problem.padding_mode == "zeros"

    @property
    def _filling_cycles(self) -> float:
        """Cycles of all slabs."""
        if not self.slab:
            return 0.0
        height, extent, (first, last) = self.height, self.width.extent(self.width.out), inside(self.width)
        item = self.item / self.simd.vector_bytes
        row, alone = _ROW, extent
        if self.dealt:
            turns = -(-(last - first) // (self.lanes * self.slab_phases))
            row += turns * dealing_cycles(self.slab_phases) if self.slab_phases > 1 else 2 * item * (last - first)
            alone = 0 if self.clean else extent - last + first
        row += alone * (_ITEM + item)
        rows = height.extent(self.band) * min(1.0, height.kernel / height.stride)
        return self.problem.n * (self.parts if self.last else self.problem.ic) * self.bands * rows * row

    @property
    def _skipped(self) -> int:
        """Columns that stand before a slab's first, so that the input begins with the first phase."""
        return -inside(self.width)[0] % self.slab_phases

    @property
    def phase_bytes(self) -> int:
        """Bytes of a phase of a slab's row."""
        size = -(-(self._skipped + self.width.extent(self.width.out)) // self.slab_phases) * self.item
        # Vectors of the first columns then lie in one line of the cache each.
        return size if self.slab_phases == 1 else whole_lines(size)

    @property
    def row_bytes(self) -> int:
        """Bytes of a slab's row."""
        return self.phase_bytes * self.slab_phases

    @property
    def slab_bytes(self) -> int:
        """Bytes of what a band reads, and what lies behind, which lanes that are not stored read; 0 for no slab."""
        if not self.slab:
            return 0
        beyond = self.tile.vectors * self.tile.lanes * self.size
        return whole_lines(self.height.extent(self.band) * self.row_bytes + beyond)

    @property
    def zero_bytes(self) -> int:
        """Bytes of the zeros that stand for a row of padding."""
        if self.last:
            return max(self.item, self.tile.lanes * self.size)
        reach = (self.width.kernel - 1) * self.width.dilation + self.phases * self.tile.vectors * self.tile.lanes
        return reach * self.size

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight; 0 where it is read as it is."""
        return self.taps * self.blocks * self.tile.lanes if self.last else 0

    def slab_offset(self, col: int) -> int:
        """Return where in a slab's row a padded column lies, in bytes."""
        turn, phase = divmod(self._skipped + col, self.slab_phases)
        return phase * self.phase_bytes + turn * self.item
