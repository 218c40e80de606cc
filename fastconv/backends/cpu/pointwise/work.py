"""A 1x1 convolution made ready: its tile, how the work is cut, what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from typing import NamedTuple

from fastconv.backends.cpu.cuts import Cut, even
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# How a tile is stored: the rows are output channels; the lanes are, and a pixel's lie together; the lanes are, and
# a channel's pixels lie together.
ROWS_ARE_CHANNELS, LANES_ARE_CHANNELS, TURNED = range(3)

_LATENCY = 4  # cycles before a sum can be added to again
_CALL = 60  # cycles of a tile's beginning and end
_IMAGE = 50  # cycles of finding the place of an image and a group
_APART = 1.02  # how much slower scalars of a weight come that lie apart
_LEAST_CHUNK, _MOST_CHUNK = 128, 256  # input channels of a transposed weight that are done together
# Cycles to bring the sum of a row's lanes to its place, and to copy a channel of a pixel that is done on its own.
_LEFT_ROW, _GATHER = 6.0, 2.0
_EVEN = 0.95  # which share of their time all workers should have something to do
# Cycles to copy a piece of a row of pixels of a channel, of which not all are read.
_ROW = 18.0
# Pixels further apart are copied one by one: cycles of such a pixel, and of a channel of it.
_TOGETHER, _PIXEL, _ELEMENT = 2, 40.0, 2.5
# Of the shorter of computing and moving, what is not hidden behind the other: panels are made before they are used.
_EXPOSED = 0.5
_OVERHEAD, _PACKING = 3e-6, 4e-6
_EFFICIENCY = 0.965
# Cycles of finding the place of a tile, and of a piece of a row that it takes, in all channels.
_BEGIN, _PIECE = 55.0, 100.0
# Cycles until the first line of a row of pixels comes from beyond the second level, where nothing foresees it.
_FAR = 12.0
TABLE_BYTES = 64 * 8  # room for the addresses of a tile's pixels
_UNITS = 4  # units of work a thread, so that an uneven end costs little


class Tile(NamedTuple):
    """A way to tile a problem.

    Pixels are cut evenly, in vectors or one by one (``unit``), but for the ``left`` last of an image, which are done
    on their own. Output channels come in blocks of ``block`` rows or vectors, the last block of ``tail``.
    """

    form: int
    cut: Cut
    unit: int
    blocks: int
    block: int
    tail: int
    left: int = 0


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    #: Whether the weight is read where it is, not packed before.
    in_place = False

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        super().__init__(problem, vectors, workers, cache)
        pixels = math.prod(problem.output_size)
        # Where a pixel's channels lie together and none is left out, all images are one.
        self.merged = problem.layout == "channels_last" and problem.input_size == problem.output_size
        self.images, self.pixels = (1, problem.n * pixels) if self.merged else (problem.n, pixels)
        self.tile = min(self._tiles(), key=self.tile_cycles)

    def _tiles(self) -> Iterator[Tile]:
        """Yield every tiling worth a thought."""
        registers = self.simd.registers
        if self.problem.layout == "channels_last":
            forms = [LANES_ARE_CHANNELS]
        else:
            forms = [] if self.in_place else [TURNED]
            for (rows, vectors), left in product(self._shapes(), self._lefts()):
                blocks = -(-self.outputs // rows)
                tail = self.outputs - (blocks - 1) * rows
                cut = even(-(-(self.pixels - left) // self.lanes), vectors)
                yield Tile(ROWS_ARE_CHANNELS, cut, self.lanes, blocks, rows, tail, left)
        needed = -(-self.outputs // self.lanes)
        for form in forms:
            for vectors in range(1, min(needed, 3) + 1):
                blocks = -(-needed // vectors)
                # Beside the sums: a step's vectors, and one value that is broadcast.
                most = min((registers - 1 - vectors) // vectors, 28)
                yield Tile(form, even(self.pixels, most), 1, blocks, vectors, needed - (blocks - 1) * vectors)

    def _shapes(self) -> Iterator[tuple[int, int]]:
        """Yield (output channels, vectors of pixels) of a tile: the fewer channels, the longer are rows of pixels."""
        few = self.simd.registers // 4
        yield from ((few, 3), (few, 2), (few, 1), (2 * few, 1))
        rows = few // 2
        while rows > 1:
            # Beside the sums: a step's vectors, and one value that is broadcast.
            yield rows, (self.simd.registers - 1) // (rows + 1)
            rows //= 2
            if self.outputs > rows:
                return
        yield 1, 3 * few  # vectors that are read once need no register

    def _lefts(self) -> Iterator[int]:
        """Yield how many pixels of an image may be done on their own."""
        yield 0
        left = self.pixels % self.lanes
        if self.size == self.problem.itemsize and 0 < left < self.pixels:
            yield left

    def _shape(self, tile: Tile, pixels: int, channels: int) -> tuple[int, int]:
        """Return (rows, vectors) of a tile."""
        return (channels, pixels) if tile.form == ROWS_ARE_CHANNELS else (pixels, channels)

    def _cycles(self, form: int, rows: int, vectors: int) -> float:
        """Cycles of one tile."""
        rate = self.simd.fma_per_cycle
        # Broadcasts come two a cycle; whole vectors as fast as they are multiplied.
        step = max(rows * vectors / rate, rows / 2 + vectors / rate, _LATENCY)
        end: float = rows * vectors
        if form == TURNED:
            squares = vectors * -(-rows // self.lanes)
            end = squares * self.lanes * (math.log2(self.lanes) + 2)
        return self.inputs * step + 2 * end + _CALL

    def _left_cycles(self, rows: int) -> float:
        """Cycles of so many output channels of a pixel on its own."""
        step = max(rows / self.simd.fma_per_cycle, rows / 2, _LATENCY)
        return -(-self.inputs // self.lanes) * step + _LEFT_ROW * rows + _CALL

    def _packing(self, tile: Tile) -> float:
        """Cycles of copying the pixels of a tile of full size."""
        if self.problem.layout == "channels_last":
            return self.inputs * (math.log2(self.lanes) + 2) * -(-tile.cut.size // self.lanes)
        vectors = -(-tile.cut.size * tile.unit // self.lanes)
        if self.axes[2].stride > _TOGETHER:
            return tile.cut.size * tile.unit * (_PIXEL + _ELEMENT * self.inputs)
        if self.problem.input_size != self.problem.output_size:
            rows = tile.cut.size * tile.unit / self.axes[2].out + 1
            return self.inputs * (2 * vectors + _ROW * rows)
        if tile.blocks == 1 and self.size == self.problem.itemsize:
            return 0.0
        # Where they lie together, the first block copies them on its way.
        return self.inputs * vectors * (0.5 if self.size == self.problem.itemsize else 2)

    @property
    def _waiting(self) -> float:
        """Cycles that tiles wait for the rows of pixels that they read and write, of all channels."""
        far = self.problem.layout == "channels_first" and self.problem.bytes > self.cache
        return _FAR * (self.inputs + self.outputs) if far else 0.0

    def tile_cycles(self, tile: Tile) -> float:
        """Cycles of the whole problem."""
        total = 0.0
        for pieces, pixels in tile.cut.spans:
            if not pieces:
                continue
            block, tail = (
                self._cycles(tile.form, *self._shape(tile, pixels, channels)) for channels in (tile.block, tile.tail)
            )
            begin = tile.blocks * _BEGIN + self._packing(tile) + self._waiting
            total += pieces * ((tile.blocks - 1) * block + tail + begin)
        total += tile.left * (tile.blocks * self._left_cycles(tile.block) + _GATHER * self.inputs)
        return self.images * self.problem.groups * (total + _IMAGE)

    @property
    def width(self) -> int:
        """Output channels of a block."""
        return self.tile.block * (1 if self.tile.form == ROWS_ARE_CHANNELS else self.lanes)

    @property
    def group_size(self) -> int:
        """Elements of the packed weight of a group."""
        if self.tile.form == ROWS_ARE_CHANNELS:
            channels = self.tile.blocks * self.width
        else:
            channels = (self.tile.blocks - 1) * self.width + self.tile.tail * self.lanes
        return channels * self.places

    @property
    def places(self) -> int:
        """Input channels that a block has room for: a line more, lest lines of many blocks share a cache's set."""
        return self.inputs + max(1, LINE // (self.width * self.size))

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.problem.groups * self.group_size

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight, which begins on a cache line."""
        return self.packed_size * self.size + 64

    @property
    def stride(self) -> int:
        """Elements from one channel of a panel to the next."""
        if self.tile.form == ROWS_ARE_CHANNELS:
            return self.tile.cut.size * self.lanes
        rows = self.tile.cut.size
        return rows if rows <= self.lanes else -(-rows // self.lanes) * self.lanes

    @property
    def panel_bytes(self) -> int:
        """Bytes from one panel to the next."""
        return whole_lines(self.stride * self.inputs * self.size)

    @cached_property
    def band(self) -> int:
        """Tiles whose panels are made together: few if the weight stays in the cache, else as many as fit there."""
        total = most = self.images * self.tile.cut.pieces
        if self.is_small:
            room = self.cache // 16
            if self.tile.blocks == 1:  # pixels are read once, where they are, each worker's apart from the others'
                room = self.cache // 2
            elif self.workers == 1 and self.outputs > self.inputs:  # workers share bands
                # The more tiles follow one another, the longer is what they write of a channel. The next channel of an
                # image comes right behind, the same one of the next image far away.
                room, most = self.cache // 4, self.tile.cut.pieces
            share = -(-total * self.problem.groups // (_UNITS * self.workers))
        else:
            room, share = self.cache // 2, total
        return even(total, max(1, min(room // self.panel_bytes, share, most))).size

    @property
    def is_small(self) -> bool:
        """Whether a group's weight stays in the cache."""
        return self.group_size * self.size <= self.cache // 2

    @property
    def bands(self) -> int:
        return -(-self.images * self.tile.cut.pieces // self.band)

    @cached_property
    def parts(self) -> int:
        """Pieces that the blocks of output channels are cut into, where bands alone do not feed all workers evenly."""
        if self.workers == 1:
            return 1
        # Every part makes the panels again.
        least = (_UNITS // 2 if self.is_small or self.pieces else _UNITS) * self.workers
        units = self.bands * self.problem.groups
        most = min(self.tile.blocks, 4 * self.workers)
        choices = range(min(most, -(-least // units)), most)
        return next((parts for parts in choices if self._balance(parts) >= _EVEN), most)

    def _balance(self, parts: int) -> float:
        """Return which share of their time the workers have something to do."""
        units = self.bands * self.problem.groups * parts
        rounds = -(-units // self.workers) * -(-self.tile.blocks // parts)
        return self.bands * self.problem.groups * self.tile.blocks / (rounds * self.workers)

    @property
    def units(self) -> int:
        return self.bands * self.problem.groups * self.parts

    @property
    def slab_bytes(self) -> int:
        """Bytes of a worker's panels, of the table before them and of what comes behind them."""
        images = -(-self.band // self.tile.cut.pieces) + 1
        left = images * self.tile.left * self.left_bytes
        taken = self.left_at + left + 4 * self.simd.vector_bytes
        return whole_lines(taken)

    @property
    def block_at(self) -> int:
        """Where in a worker's memory the panels end."""
        return TABLE_BYTES + self.band * self.panel_bytes

    @property
    def left_at(self) -> int:
        """Where in a worker's memory the channels of pixels go that are done on their own."""
        return whole_lines(self.block_at)

    @property
    def left_bytes(self) -> int:
        """Bytes of the channels of a pixel that is done on its own."""
        return whole_lines(self.inputs * self.size)

    @property
    def cycles(self) -> float:
        """Cycles of the whole problem: what `tile_cycles` ranks tiles by, and what no choice of them changes."""
        tiles = self.images * self.problem.groups * self.tile.cut.pieces
        begin = _PIECE * (self.tile.cut.size * self.tile.unit / self.axes[2].out + 1) if self.pieces else 0.0
        again = (self.parts - 1) * self._packing(self.tile) if self.pieces else 0.0
        return self.tile_cycles(self.tile) + tiles * (begin + again)

    @property
    def pieces(self) -> float:
        """Rows of channels that lie apart."""
        if self.problem.layout == "channels_last" or self.problem.input_size == self.problem.output_size:
            return 0.0
        return float(self.problem.n * self.problem.ic * math.prod(axis.out for axis in self.axes[:-1]))

    def seconds(self, machine: Machine) -> float:
        """Return what a run should take."""
        packing = 0.0
        if not (self.problem.prepacked or self.in_place):
            packing = _PACKING + machine.moving(2 * self.packed_size * self.size)
        moving = machine.moving(self.bytes, self.pieces)
        computing = self.cycles / machine.hertz / _EFFICIENCY
        together = max(computing, moving) + _EXPOSED * min(computing, moving)
        packing += self.handing_over(machine)
        return _OVERHEAD + packing + together / (self.workers * self._balance(self.parts))


class InPlaceWork(Work):
    """A problem whose weight is read where it is."""

    in_place = True
    growth = 0.0

    @property
    def is_small(self) -> bool:
        """False: every band of pixels reads or copies the weight again."""
        return False

    @property
    def copies(self) -> int:
        """Blocks of a transposed weight that are copied at once: whole vectors."""
        return max(1, self.lanes // self.width)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block that was copied."""
        return self.chunk * self.width * self.size

    @property
    def left_at(self) -> int:
        """See `Work.left_at`; blocks that were copied come before."""
        return whole_lines(self.block_at + self.copies * self.block_bytes)

    @property
    def chunk(self) -> int:
        """Input channels at once of a transposed weight: their rows stay in the cache while blocks are copied."""
        row = self.problem.oc * self.size
        return even(self.inputs, max(_LEAST_CHUNK, min(_MOST_CHUNK, self.cache // 2 // row))).size

    def seconds(self, machine: Machine) -> float:
        """Return what a run should take: no less than of a weight that was packed once, which lies nearer together."""
        return super().seconds(machine) * (_APART if self.problem.prepacked else 1.0)
