"""One direct convolution made ready: its tile, its slab, how the work is cut, and the record that says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from typing import ClassVar, NamedTuple

from fastconv.backends.cpu.cuts import Cut, even
from fastconv.backends.cpu.direct.borders import Borders
from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.geometry import Axis
from fastconv.problem import ConvProblem, Sizes

# Units of work a thread, so that an uneven end costs little.
_UNITS = 4

# Tiles of a stretch of a row, at least.
_FEWEST_TILES = 4
# Images that are a row of pixels, at least; vectors of a block of output channels, as most are.
_SHORTEST, _USUAL_WIDTH = 8, 2

# Pixels so many bytes apart contend for the same two sets of a first-level cache.
_CROWDED = 2048

# Cycles that a vector of a slab takes, a line of it, and a unit of work.
_FILL, _FILL_LINE, UNIT = 10.0, 35.0, 200.0
# Cycles of storing a part of a vector: where rows are short, tiles are of several.
_APART = 6.0
# Cycles of a vector that is packed, beside its shuffles.
_PACK = 6.0

# Cycles before a sum is added to again: the four of a multiply-add, and a little, since none starts just in time.
_LATENCY = 4.5

# The weights of a stage take this part of the second-level cache.
_STAGE = 4
# Tiles of two sizes in place of one that overlap: what they should save at least.
_TWO_SIZES = 0.97
# Rows of the input that tiles of two sizes read in turns take this part.
_TURN = 8
# Bytes a cycle that come from there, and terms of a stage whose weights and pixels the first level holds.
_FETCHED, _NEAR_TERMS = 16, 128
# Bytes a cycle that come from memory, where a weight is of more than so many second-level caches.
_FAR, _NEAR_CACHES = 5, 8
# Vectors of output channels that a tile may have.
_WIDTHS = (1, 2, 3, 4)
# An axis that a problem lacks.
_POINT = Axis(1, 1, 1, 1, 1, 0, "zeros")


class Tile(NamedTuple):
    """What is held in registers: output rows and columns, vectors of output channels; vectors of the last block."""

    rows: int
    cols: int
    vectors: int
    tail: int


def choose_tile(
    output: Sizes,
    channels: int,
    lanes: int,
    registers: int,
    rate: float = 2.0,
    terms: int = 1024,
    fetching: float = 0.0,
    waiting: float = 0.0,
    evenly: bool = False,
    widths: Sequence[int] = _WIDTHS,
    met: Callable[[int], float] | None = None,
) -> tuple[Tile, float]:
    """Return the tile that takes the fewest cycles, and these cycles a term, stores included.

    Parameters
    ----------
    output : (rows, columns)
    channels : int
        Output channels of a group.
    lanes, registers : int
        Of the vector unit.
    rate : float
        Multiply-adds that it starts in a cycle.
    terms : int
        Products that are summed for an output element.
    fetching : float
        Cycles a term until a pixel is in the first-level cache. They count for the choice only.
    waiting : float
        Cycles until a vector of the weight has come from memory, for the first tile. They count for the choice only.
    evenly : bool
        Columns are cut as `even` does it, the tile being the largest; otherwise all tiles are of one size.
    widths : sequence of int
        Vectors of output channels that a tile may have.
    met : callable, optional
        How many tiles of so many rows one behind the other take as long, if all taps met the input: `Borders.met`.
    """
    rows_out, cols_out = output
    needed = -(-channels // lanes)
    best, best_cost, least = Tile(1, 1, 1, 1), math.inf, math.inf
    for vectors in widths:
        if vectors > needed:
            break
        blocks = -(-needed // vectors)
        tail = needed - (blocks - 1) * vectors
        # Beside the sums: the weights of a step, and one value that is broadcast.
        pixels = (registers - 1 - vectors) // vectors
        for cols in range(1, min(cols_out, pixels) + 1):
            cut = even(cols_out, cols)
            if evenly and cut.size < cols:
                continue
            rows = min(rows_out, pixels // cols) if cols == cols_out else 1
            cost = 0.0
            for pieces, width in cut.spans if evenly else ((cut.pieces, cols),):
                step = (blocks - 1) * _step_cycles(rows * width, vectors, rate) + _step_cycles(rows * width, tail, rate)
                # Storing a tile takes as long whether the vectors that are turned are all needed or not.
                squares = ((blocks - 1) * vectors + tail) * -(-rows * width // lanes)
                cost += pieces * (step + squares * _square_cycles(lanes) / terms)
            cost *= met(rows) if met else -(-rows_out // rows)
            # Each block of output channels reads the input again.
            together = cost + fetching * rows_out * cols_out * blocks
            together += blocks * max(0.0, vectors * waiting - _step_cycles(rows * cols, vectors, rate))
            if together < least:
                best, best_cost, least = Tile(rows, cols, vectors, tail), cost, together
    return best, best_cost


def _step_cycles(pixels: int, vectors: int, rate: float) -> float:
    """Multiply-adds, or two loads a cycle, or six instructions; sums wait for their predecessors."""
    sums, loads = pixels * vectors, pixels + vectors
    # What is prefetched takes the place of a load.
    return max(sums / rate, (loads + 1) / 2, (sums + (loads if vectors > 1 else 1) + 5) / 6, _LATENCY)


def _square_cycles(lanes: int) -> float:
    """Turning a square of vectors and storing it, in pieces that cross cache lines."""
    return lanes * (math.log2(lanes) + 1.5)


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    #: Vectors of output channels that a tile may have.
    widths: Sequence[int] = _WIDTHS
    cut: Cut
    #: Pieces that output rows are cut into, which workers share.
    stretches = 1
    #: Whether a tile may take pixels of several images, and workers pieces of a row.
    regroups: ClassVar[bool] = True

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.is_half = self.format != computed(self.format)
        padded = any(not axis.is_inside((0, axis.out)) for axis in self.axes)
        first = problem.layout == "channels_first"
        pixels = math.prod(problem.output_size)
        # Where an image has one output position (a fully connected layer), a tile takes one pixel of several images.
        alone = self.regroups and problem.n > 1 and pixels == 1
        self.across = alone and not padded and (self.taps == 1 or not self.is_half)
        shape = self._map_of_images() if self.across else None
        if shape and self.taps == 1:
            self.axes = (_POINT, *(Axis(size, size, 1, 1, 1, 0, "zeros") for size in shape))
        self._arrange(self._needs_slab(padded) or self.is_half)  # widened on the way
        self.images = 1 if self.across else problem.n
        _, rows, cols = self.axes
        self.output = shape or (rows.out, cols.out)
        #: What depths and rows of the kernel meet. Those of rows follow one another within a depth only.
        self.borders = Borders(self.axes[0]), Borders(self.axes[1] if self.axes[0].kernel == 1 else _POINT)
        self._choose_tile()
        # A line of the cache is read for each term, and for few products, where pixels are in the order of the input.
        if not self.staged and first and pixels > 1 and self.taps == 1 and self._is_waiting:
            if self._is_read_often:
                self._arrange(staged=True)
            else:
                self._choose_tile(self.size / _FETCHED)
                self._split_channels()
        #: Whole rows and their outputs, while ``axes`` and ``output`` are those of a stretch.
        self.line, self.columns = self.axes[2], self.output[1]
        if self.regroups:
            self._cut_rows()

    def _map_of_images(self) -> tuple[int, int]:
        """Return the rows and columns of images that are taken for pixels of one.

        One row, unless workers have too few blocks of output channels to share; rows that are no whole number are none,
        and are cut into stretches where they are too few.
        """
        images = self.problem.n
        blocks = max(1, self.outputs // (_USUAL_WIDTH * self.lanes))
        wanted = -(-_UNITS * self.workers // blocks) if self.workers > 1 else 1
        whole = [rows for rows in range(1, images // _SHORTEST + 1) if images % rows == 0] or [1]
        rows = next((rows for rows in whole if rows >= wanted), whole[-1])
        return rows, images // rows

    def _cut_rows(self) -> None:
        """Cut rows of the output into stretches of whole tiles, where there is little else to share out.

        The last overlaps the one before. Neither the tile nor the order of the terms may depend on it, or sums would on
        the number of threads.
        """
        rows, cols = self.output
        units = self.images * self.problem.groups * self.axes[0].out * rows * (1 if self.staged else self.blocks)
        wanted = min(-(-_UNITS * self.workers // units), cols // (_FEWEST_TILES * self.cut.size))
        if self.workers == 1 or wanted < 2:
            return
        tiles = -(-cols // (wanted * self.cut.size))
        self.cut = Cut(tiles, self.cut.size, tiles)
        stretch = tiles * self.cut.size
        self.stretches, self.output = -(-cols // stretch), (rows, stretch)
        if self.taps == 1 or not self.across:  # else axes are those of an image
            self.axes = (*self.axes[:2], self.line._replace(out=stretch))

    def _arrange(self, staged: bool) -> None:
        """Take the pixels from a slab or from where they are, and the terms in the order that follows."""
        self.staged = staged
        # A pixel's chunk of channels is a cache line of the slab, or less.
        self.chunks = -(-self.inputs * self.size // LINE) if staged else 1
        self.item = -(-self.inputs // self.chunks)
        self.terms = self.chunks * self.item * self.taps

    def _needs_slab(self, padded: bool) -> bool:
        """Whether what tiles read is put together: unless it lies together already, or would be read only once."""
        first = self.problem.layout == "channels_first"
        pixels = math.prod(self.problem.output_size)
        if self.taps > 1:
            return padded or (first and pixels > 1)
        step = self.problem.ic * self.size * (1 if self.across else self.axes[2].stride)
        crowded = step % _CROWDED == 0 and not (first and pixels > 1) and pixels * self.problem.n > 1
        return padded or crowded

    def _choose_tile(self, fetching: float = 0.0) -> None:
        registers = self.simd.registers, self.simd.fma_per_cycle
        choose = partial(choose_tile, self.output, self.outputs, self.lanes, *registers, self.terms, fetching)
        weight = self.inputs * self.outputs * self.taps * self.size
        waiting = self.lanes * self.size / _FAR if weight > _NEAR_CACHES * self.cache else 0.0
        rows = self.borders[1]
        choose = partial(choose, waiting=waiting, widths=self._widths, met=None if rows.are_plain else cache(rows.met))
        self.tile, self.step_cycles = choose()
        pieces = -(-self.output[1] // self.tile.cols)
        # Tiles of one size overlap: what is computed twice comes out the same.
        self.cut = Cut(pieces, self.tile.cols, pieces)
        tile, cycles = choose(evenly=True)
        if cycles < _TWO_SIZES * self.step_cycles:
            self.tile, self.step_cycles, self.cut = tile, cycles, even(self.output[1], tile.cols)

    @property
    def _widths(self) -> Sequence[int]:
        """Vectors of output channels that a tile may have: few where workers could not share out the blocks else."""
        if self.workers == 1 or not self._is_one_map:
            return self.widths
        needed = -(-self.outputs // self.lanes)
        most = max(1, needed // (_UNITS // 2 * self.workers))
        return [width for width in self.widths if width <= most]

    @property
    def _is_waiting(self) -> bool:
        """Whether a tile that reads a line of the cache for each term waits for the second level."""
        cycles = self.tile.rows * self.tile.cols * self.tile.vectors / self.simd.fma_per_cycle
        return LINE + self.tile.vectors * self.simd.vector_bytes > _FETCHED * cycles

    @property
    def _is_read_often(self) -> bool:
        """Whether all blocks of output channels together wait longer for pixels than it takes to put these together."""
        whole = self.problem.input_size == self.problem.output_size
        return whole and self.blocks * self.size / _FETCHED > _FILL / self.lanes

    def _split_channels(self) -> None:
        """Cut the channels into stages whose weights and pixels stay in the first-level cache."""
        item = max(count for count in range(1, _NEAR_TERMS + 1) if self.inputs % count == 0)
        if 2 * item > _NEAR_TERMS:
            self.chunks, self.item = self.inputs // item, item

    @property
    def block(self) -> int:
        """Output channels of a block."""
        return self.tile.vectors * self.lanes

    @property
    def blocks(self) -> int:
        return -(-self.outputs // self.block)

    @property
    def cuts(self) -> bool:
        """Whether tiles leave out taps that meet nothing but zeros, where the weight is finite."""
        depths, rows = self.borders
        pieces = -(-self.output[0] // self.tile.rows)
        return not depths.are_plain or (not rows.are_plain and rows.met(self.tile.rows) < pieces)

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        channels = (self.blocks - 1) * self.block + self.tile.tail * self.lanes
        return self.problem.groups * channels * self.terms

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight, and of words that say which blocks of it are not finite."""
        return self.packed_size * self.size + (8 * self.problem.groups * self.blocks if self.cuts else 0)

    @cached_property
    def band(self) -> int:
        """Output rows done together: for half of the cache what all blocks read, and for every worker some."""
        rows = self.output[0]
        outer = self.images * self.problem.groups * self.axes[0].out
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 and not self._by_blocks else 1
        band = max(self.tile.rows, -(-rows // wanted))
        if self._is_one_map and self._by_blocks:
            return rows
        again = self.blocks > 1 and self.packed_size // self.problem.groups * self.size <= self.cache // 2
        while (self.staged or again) and band > self.tile.rows and self._read_bytes(band) > self.cache // 2:
            band -= 1
        band = max(self.tile.rows, -(-rows // -(-rows // band)))  # even bands
        # Of whole tiles, since the last of a band overlaps the one before.
        return band if band >= rows else -(-band // self.tile.rows) * self.tile.rows

    @property
    def packs_blocks(self) -> bool:
        """Whether a block of the weight is packed when its turn comes, since that is once: it is still near then."""
        return not self.problem.prepacked and self._is_one_map and self.bands == 1

    @property
    def _is_one_map(self) -> bool:
        """Whether there is but one map to be computed, and no need to cut it."""
        maps = self.images * self.axes[0].out * self.stretches
        weight, read = self._bytes_of_all
        near = read <= self.cache // 2 or read <= min(weight, _NEAR_CACHES * self.cache // 2)
        return self.regroups and maps == 1 and near

    @property
    def _bytes_of_all(self) -> tuple[int, int]:
        """Bytes of a group's weight, and of all that it meets in a map."""
        return self.inputs * self.outputs * self.taps * self.size, self._read_bytes(self.output[0])

    @cached_property
    def deep(self) -> int:
        """Output depths that read one slab, in which planes that several of them read are put together once."""
        depth = self.axes[0]
        if not self.staged or self.bands * self.stretches > 1 or depth.extent(1) <= depth.stride:
            return 1
        most = 1
        while most < depth.out and self._read_bytes(self.band, most + 1) <= self.cache // 2:
            most += 1
        wanted = -(-_UNITS * self.workers // (self.images * self.problem.groups)) if self.workers > 1 else 1
        return max(1, min(even(depth.out, most).size, depth.out // wanted))

    @property
    def turn(self) -> int:
        """Output rows that tiles of full size do before the others: what both read of the input should stay near."""
        if self.staged or self.cut.full == self.cut.pieces:
            return self.band
        _, rows, cols = self.axes
        row = self.inputs * rows.stride * cols.extent(cols.out) * self.size
        return min(self.band, max(1, self.cache // _TURN // row))

    @property
    def _by_blocks(self) -> bool:
        """Whether output channels are shared out, and not rows: where the weight is the larger."""
        if self.blocks < (1 if self._is_one_map else _UNITS) * self.workers:
            return False
        weight, read = self._bytes_of_all
        if self.staged and not self._is_one_map:  # a slab would be filled by every worker
            return weight > 2 * read
        return weight > read or read <= self.cache // 2

    @property
    def bands(self) -> int:
        return -(-self.output[0] // self.band)

    @property
    def parts(self) -> int:
        """Pieces that the blocks of output channels are cut into, where bands alone do not feed all workers."""
        units = self._bands_of_all
        if self.workers == 1 or (self.staged and units >= 2 * self.workers):  # each part would fill the slab again
            return 1
        wanted = _UNITS // 2 if self._is_one_map and self.staged else _UNITS
        return min(self.blocks, -(-wanted * self.workers // units))

    @property
    def units(self) -> int:
        return self._bands_of_all * self.parts

    @property
    def busy(self) -> float:
        """Workers that have something to do, on average."""
        return self.units / -(-self.units // self.workers)

    @property
    def _bands_of_all(self) -> int:
        return self.images * self.problem.groups * self.axes[0].out * self.stretches * self.bands

    def slab_bytes(self, band: int) -> int:
        """Bytes of the input, padding included, that a band of output rows reads; 0 if it is read where it is."""
        return self._read_bytes(band, self.deep) if self.staged else 0

    def _read_bytes(self, band: int, deep: int = 1) -> int:
        """Bytes of the input, padding included, that a band of output rows reads, of so many output depths."""
        depth, rows, cols = self.axes
        pixels = depth.extent(deep) * rows.extent(band) * cols.extent(cols.out)
        return whole_lines(self.chunks * self.item * pixels * self.size)

    def stage(self, run: int) -> int:
        """Return how many runs of terms are summed before the next tile's turn comes."""
        runs = self.terms // run
        if self._tiles == 1:
            return runs
        if not self.staged and self.chunks > 1:
            return 1
        weights = run * self.block * self.size
        stages = -(-runs // max(1, self.cache // _STAGE // weights))
        return -(-runs // stages)

    @property
    def _tiles(self) -> int:
        """Tiles of a band."""
        return -(-self.band // self.tile.rows) * self.cut.pieces

    @property
    def sums_bytes(self) -> int:
        """Bytes of sums that wait for the next stage."""
        if self.stage(self.item) == self.terms // self.item:
            return 0
        return whole_lines(self._tiles * self.tile.rows * self.tile.cols * self.block * self.size)

    @property
    def room_bytes(self) -> int:
        """Bytes of a block of the weight that is packed when its turn comes."""
        return whole_lines(self.block * self.terms * self.size) if self.packs_blocks else 0

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a worker's slab, of sums that wait, and of a block of the weight."""
        return self.slab_bytes(self.band) + self.sums_bytes + self.room_bytes

    @property
    def filling_cycles(self) -> float:
        """Cycles of filling a slab, for each of the output depths that read it."""
        if not self.staged:
            return 0.0
        depth, rows, cols = self.axes
        lines = self.chunks * _read_places(depth, self.deep) * _read_places(rows, self.band)
        return lines * (_FILL_LINE + self.item * cols.extent(cols.out) * _FILL / self.lanes) / self.deep

    @property
    def summing_cycles(self) -> float:
        """Cycles of all tiles of a group of an image."""
        summing = self.borders[0].met(1) * (self.terms * self.step_cycles - self._unstored_cycles)
        return summing + self.axes[0].out * self._apart_cycles

    @property
    def cycles(self) -> float:
        """Cycles on one core: all tiles, and the filling of slabs."""
        filling = self.axes[0].out * self.stretches * self.bands * self.parts * (UNIT + self.filling_cycles)
        return self.images * self.problem.groups * (self.summing_cycles + filling)

    @property
    def pack_cycles(self) -> float:
        """Cycles of packing the weight: squares are turned, whole or not."""
        squares = -(-self.inputs * self.taps // self.lanes) * -(-self.outputs // self.lanes)
        return self.problem.groups * squares * self.lanes * (math.log2(self.lanes) + _PACK)

    @property
    def spans_rows(self) -> bool:
        """Whether tiles are of several whole rows, which are stored as one where each begins behind the last."""
        return self.tile.rows > 1 and self.cut.pieces == 1 and self.stretches == 1

    @property
    def _apart_cycles(self) -> float:
        """Cycles of storing the rows of tiles one by one, of which `choose_tile` counts none but the first."""
        if self.across or self.spans_rows or self.problem.layout == "channels_last":
            return 0.0
        tiles = -(-self.output[0] // self.tile.rows) * self.cut.pieces
        vectors = (self.blocks - 1) * self.tile.vectors + self.tile.tail
        return self.stretches * tiles * (self.tile.rows - 1) * vectors * self.lanes * _APART

    @property
    def _unstored_cycles(self) -> float:
        """Cycles that `choose_tile` counts for storing channels of the last vector that do not exist."""
        # As often as it counts them: a tile that meets nothing but padding is none.
        met = self.borders[1]
        rows = -(-self.output[0] // self.tile.rows) if met.are_plain else met.met(self.tile.rows)
        squares = rows * sum(count * -(-self.tile.rows * cols // self.lanes) for count, cols in self.cut.spans)
        last = self.outputs % self.lanes or self.lanes
        # What of the turning leads to the channels that there are.
        needed = sum(min(self.lanes, last << level) for level in range(self.lanes.bit_length() - 1))
        return self.stretches * squares * (_square_cycles(self.lanes) - needed - 1.5 * last)


def _read_places(axis: Axis, outputs: int) -> int:
    """Return how many padded positions so many neighbouring windows read."""
    return min(axis.extent(outputs), outputs * axis.kernel)
