"""One weight gradient made ready: its tile, its chunks, and the memory that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.direct.borders import Borders
from fastconv.backends.cpu.direct.work import Tile, choose_tile
from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.phases import shuffles
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.geometry import Axis
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Packed x and dy together: what streams from the second-level cache, or from the third without harm.
_CHUNK_CACHES = 4
# Sums of a unit should stay in half of a first-level cache. What tiles read again and again streams from the second
# level, of which it may take a share: the longer it is, the less often sums are loaded and stored.
_NEAR_BYTES, _NEAR_SHARE = 16 << 10, 16
# Where nothing is transposed, the choice of a tile counts so many cycles for a piece of a row of dw, and so many terms
# of a sum, beside which there is nothing else.
_PIECE_CYCLES, _MANY = 0.1, 1 << 30
# A row of dw is written in pieces of at least as many elements.
_RUN = 96
# Cycles: of an element that is transposed, woven, copied, or stored in short pieces; of starting a tile; of a
# multiply-add's result.
_TURN_CYCLES, _WEAVE_CYCLES, _COPY_CYCLES, _STORE_CYCLES, _TILE_CYCLES, _LATENCY = 0.8, 0.4, 0.2, 0.35, 40, 4
# Cycles of starting a line of x, most of which its last elements take that fill no vector.
_LINE_START = 100
# Seconds of a call, and of a chunk's launches.
_OVERHEAD, _LAUNCH = 2.5e-6, 1e-6
# Channels so many bytes apart share a set of a first-level cache, which has so many places; cycles to fetch a line
# from the second level.
_WAY, _PLACES, _LINE_CYCLES = 4096, 8, 2.0
# Cycles for a vector that another core has packed.
_SHARED_CYCLES = 20.0
# Of the shorter of packing and moving, what is not hidden behind the other.
_EXPOSED = 0.5
# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
# Units that many threads could share: where blocks of dw are fewer, the reduction is cut into slices. Pieces that are
# summed at once in one of these, at least.
_SHARES, _PIECES = 16, 4


class Line(NamedTuple):
    """An axis of packed x: only positions that are read where a kernel of one position leaves some out."""

    axis: Axis

    @property
    def step(self) -> int:
        """Positions from one output to the next."""
        return 1 if self.axis.kernel == 1 else self.axis.stride

    @property
    def gap(self) -> int:
        """Positions of the input from one position of packed x to the next."""
        return self.axis.stride if self.axis.kernel == 1 else 1

    def extent(self, outputs: int) -> int:
        return outputs if self.axis.kernel == 1 else self.axis.extent(outputs)


class Chunk(NamedTuple):
    """A part of the reduction: images, output depths and output rows, each a first one and how many."""

    image: int
    images: int
    depth: int
    depths: int
    row: int
    rows: int


def room_for(ways: int) -> int:
    """Return how many lines are woven in place of so many, the last of them zeros, because that takes less work."""
    return min(range(ways, 2 * ways + 1), key=lambda count: count * shuffles(count))


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        # Without a kernel x and dy play the same part: one is packed, the other read where it is. Inputs in the
        # lanes need no transposition of dw; otherwise that of the larger one of x and dy is saved.
        pixels = problem.n * math.prod(problem.output_size)
        inputs, outputs = problem.ic // problem.groups, problem.oc // problem.groups
        is_product = all(axis.is_point for axis in lifted_axes(problem))
        self.turned = is_product and (inputs - outputs) * pixels < inputs * outputs
        if self.turned:
            problem = problem.replace(ic=problem.oc, oc=problem.ic)
        super().__init__(problem, vectors, workers, cache)
        self.lines = tuple(map(Line, self.axes))
        self.kernel_cols = self.axes[2].kernel
        self.groups = problem.groups
        #: Which rows and columns of the kernel meet the input.
        self.borders = Borders(self.axes[1]), Borders(self.axes[2])
        self.spread = self._spread()
        if self.spread:
            self.turned = False  # in either role there are as many channels; rows of dw are not told apart by group
            self.groups = problem.oc // self.lanes
            self.inputs = self.outputs = self.lanes
        self.tile, self.channels, self.along = self._choose()
        # Whether tiles can read x where it is.
        is_half = self.format != computed(self.format)
        self.direct = (
            not is_half
            and self.taps == 1
            and not self.spread
            and all(axis.is_inside((0, axis.out)) for axis in self.axes)
        )
        self.item = (self.channels if self.along else room_for(self.channels)) * self.size
        # Whether tiles can store sums in rows of dw.
        self.straight = self.turned and self.direct and self.slices == 1

    def _spread(self) -> int:
        """Return the channels of a group where a vector takes several groups, else 0."""
        few = self.inputs if self.inputs == self.outputs else self.lanes
        return few if 1 < few < self.lanes and self.lanes % few == 0 and self.problem.oc % self.lanes == 0 else 0

    def _choose(self) -> tuple[Tile, int, bool]:
        """Return the tile, the inputs of a block, and whether a tile's inputs run along kernel columns."""
        registers, width = self.simd.registers, self.kernel_cols
        if self.spread:
            together = self.spread * width <= registers - 3
            return Tile(1, self.spread * (width if together else 1), 1, 1), self.lanes, together
        if self.turned:
            # Nothing is transposed. The longer the pieces of dw's rows, the faster they are written; up to a square.
            tile, _ = choose_tile(
                (1, self.inputs), self.outputs, self.lanes, registers,
                terms=_MANY, fetching=_PIECE_CYCLES, widths=range(1, math.isqrt(registers)),
            )  # fmt: skip
            return tile, tile.cols, False
        plain, cost = choose_tile((1, self.inputs), self.outputs, self.lanes, registers)
        if width > 1 and self.axes[2].dilation == 1 and self.inputs < self.lanes:
            run, run_cost = choose_tile((1, self.inputs * width), self.outputs, self.lanes, registers)
            if run_cost < cost * width:
                return run, self.inputs, True
        return plain, plain.cols, False

    @property
    def block(self) -> int:
        """Output channels of a block."""
        return self.tile.vectors * self.lanes

    @property
    def kblocks(self) -> int:
        return -(-self.outputs // self.block)

    @property
    def cblocks(self) -> int:
        return -(-self.inputs // self.channels)

    @property
    def tiles_of_row(self) -> int:
        """Tiles that cover the columns of a kernel's row, for one block of inputs."""
        if not self.along:
            return self.kernel_cols
        return 1 if self.spread else -(-self.inputs * self.kernel_cols // self.tile.cols)

    @property
    def tiles(self) -> int:
        """Tiles of a block of inputs by a block of output channels."""
        return self.taps // self.kernel_cols * self.tiles_of_row

    def slab_block(self, chunk: Chunk) -> int:
        """Bytes of a block of packed x; tiles may read a little beyond it."""
        depth, rows, cols = self.lines
        pixels = chunk.images * depth.extent(chunk.depths) * rows.extent(chunk.rows) * cols.extent(cols.axis.out)
        slack = self.simd.vector_bytes + self.tile.cols * self.size
        return whole_lines(pixels * self.item + slack)

    def panel_block(self, chunk: Chunk) -> int:
        """Bytes of a block of packed dy."""
        return chunk.images * chunk.depths * chunk.rows * self.axes[2].out * self.block * self.size

    def chunk_bytes(self, chunk: Chunk) -> int:
        blocks = self.cblocks * self.slab_block(chunk) + self.kblocks * self.panel_block(chunk)
        return self.groups * blocks

    @cached_property
    def chunk(self) -> Chunk:
        """The first chunk; none is larger. How the reduction is cut does not depend on the number of threads."""
        n, depths, rows = self.problem.n, self.axes[0].out, self.axes[1].out
        most = _CHUNK_CACHES * self.cache
        image = self.chunk_bytes(Chunk(0, 1, 0, depths, 0, rows))
        if image <= most:
            chunks = -(-n // max(1, most // image))
            return Chunk(0, -(-n // chunks), 0, depths, 0, rows)
        for chunks in range(1, rows + 1):
            band = Chunk(0, 1, 0, 1, 0, -(-rows // chunks))
            if self.chunk_bytes(band) <= most:
                break
        return band

    def chunks(self) -> Iterator[Chunk]:
        first = self.chunk
        for image in range(0, self.problem.n, first.images):
            for depth in range(0, self.axes[0].out, first.depths):
                for row in range(0, self.axes[1].out, first.rows):
                    images, rows = self.problem.n - image, self.axes[1].out - row
                    yield Chunk(image, min(first.images, images), depth, first.depths, row, min(first.rows, rows))

    @cached_property
    def count(self) -> int:
        """How many chunks there are."""
        first = self.chunk
        return (
            -(-self.problem.n // first.images)
            * -(-self.axes[0].out // first.depths)
            * -(-self.axes[1].out // first.rows)
        )

    @cached_property
    def slices(self) -> int:
        """Parts of a chunk whose sums are added up at the end; they do not depend on the number of threads."""
        chunk = self.chunk
        pixels = chunk.images * chunk.depths * chunk.rows * self.axes[2].out
        wanted = -(-_SHARES // (self.groups * self.kblocks * self.cblocks))
        return max(1, min(wanted, pixels // (_PIECES * self.pixels_at_once)))

    @cached_property
    def csuper(self) -> int:
        """Blocks of inputs in a unit of work."""
        block_sums = self.tiles * self.tile.cols * self.block * self.size
        wanted = min(-(-_RUN // (self.channels * self.taps)), max(1, _NEAR_BYTES // block_sums), self.cblocks)
        if self.turned and self.problem.n * math.prod(self.problem.output_size) <= self.pixels_at_once:
            wanted = 1  # nothing is read twice, and dw is written along its rows
        if self.workers > 1:
            others = self.groups * self.kblocks * self.slices
            wanted = min(wanted, max(1, self.cblocks * others // (_UNITS * self.workers)))
        return wanted

    @property
    def csupers(self) -> int:
        return -(-self.cblocks // self.csuper)

    @property
    def units(self) -> int:
        return self.groups * self.kblocks * self.csupers * self.slices

    @property
    def unit_sums(self) -> int:
        """Bytes of the sums of a unit."""
        return self.csuper * self.tiles * self.tile.cols * self.block * self.size

    @property
    def own(self) -> bool:
        """Whether a worker needs room for the sums of one unit only."""
        return self.count == 1 and self.slices == 1

    @property
    def sums_bytes(self) -> int:
        return (self.workers if self.own else self.units) * self.unit_sums

    @property
    def pixels_at_once(self) -> int:
        return max(16, max(_NEAR_BYTES, self.cache // _NEAR_SHARE) // (self.block * self.size))

    def at_once(self, planes: int, rows: int, cols: int) -> tuple[int, int, int]:
        """Return planes, rows and columns that are summed before the next block of inputs gets its turn."""
        pixels = self.pixels_at_once
        if cols > pixels:
            return 1, 1, -(-cols // -(-cols // pixels))
        if rows * cols > pixels:
            return 1, -(-rows // -(-rows * cols // pixels)), cols
        return max(1, min(planes, pixels // (rows * cols))), rows, cols

    @cached_property
    def scratch_bytes(self) -> int:
        return self.chunk_bytes(self.chunk) + self.sums_bytes + 3 * 64

    def seconds(self, machine: Machine) -> float:
        """Return what a run should take."""
        uneven = -(-self.units // self.workers) * self.workers / self.units
        dw = math.prod(self.problem.w_shape) * self.problem.itemsize
        # x and dy are packed, but for an x that is read where it is.
        moved = self.bytes - dw - (math.prod(self.problem.x_shape) * self.problem.itemsize if self.direct else 0)
        turning, moving = self._move_cycles() / machine.hertz, machine.moving(max(0, moved - self.cache))
        packing = max(turning, moving) + _EXPOSED * min(turning, moving)
        computing = self._sum_cycles() * uneven / machine.hertz
        if self.direct:
            computing = max(computing, machine.moving(self.bytes - dw - moved))
        # Who sums is not who packed, unless it sums a slice of all.
        if self.units > self.slices:
            shared = sum(self._packed_elements) / self.lanes * (1 - 1 / self.workers)
            packing += shared * _SHARED_CYCLES / machine.hertz
        # What of dw the cache does not hold is waited for.
        waiting = max(0, dw - self.cache) / machine.bandwidth
        return _OVERHEAD + _LAUNCH * self.count + (computing + packing) / self.workers + waiting

    def _sum_cycles(self) -> float:
        """Return the cycles of the micro-kernel on one core."""
        tile, fma = self.tile, self.simd.fma_per_cycle
        pixels = self.problem.n * math.prod(self.problem.output_size)
        # Pieces that are summed at once, each of which loads and stores the sums.
        cols, rows = self.axes[2].out, self.axes[1].out
        near = self.pixels_at_once
        line = cols * rows if self.direct or cols * rows < near else cols * max(1, near // cols)
        pieces = max(pixels / near, self.count, self.problem.n / max(1, near // min(line, near)))
        # Channels that are read where they are, and push one another out before the next pixel.
        plane = math.prod(self.problem.input_size) * self.size
        apart = self.direct and self.problem.layout == "channels_first" and plane % _WAY == 0
        far = tile.cols * _LINE_CYCLES if apart and tile.cols > _PLACES else 0.0
        cycles = 0.0
        for count, vectors in ((self.kblocks - 1, tile.vectors), (1, tile.tail)):
            held = tile.cols * vectors
            loads = 2 * tile.cols if self.spread else tile.cols + vectors
            step = max(held / fma, loads / 2, far, _LATENCY) + 1
            cycles += count * (pixels * step + pieces * (2 * held + _TILE_CYCLES))
        return self.groups * self.cblocks * self.tiles * cycles * self._met

    @property
    def _met(self) -> float:
        """The part of the products that are not by padding."""
        rows, columns = self.borders
        met = rows.met(1) / self.axes[1].out
        return met if self.along else met * columns.met(1) / self.axes[2].out

    @property
    def _packed_elements(self) -> tuple[int, int]:
        """Elements of packed x and of packed dy."""
        dy = self.problem.n * math.prod(self.problem.output_size) * self.groups * self.kblocks * self.block
        x = 0 if self.direct else self.groups * self.cblocks * self.slab_block(self.chunk) * self.count // self.size
        return x, dy

    def _move_cycles(self) -> float:
        """Return the cycles of packing x and dy and of storing dw on one core."""
        x, dy = self._packed_elements
        dw = math.prod(self.problem.w_shape)
        storing = _TURN_CYCLES if not self.turned else _STORE_CYCLES if self.straight else _COPY_CYCLES
        cols = self.lines[2]
        lines = x * self.size / (cols.extent(cols.axis.out) * self.item)
        return _WEAVE_CYCLES * x + _LINE_START * lines + _TURN_CYCLES * dy + storing * dw
