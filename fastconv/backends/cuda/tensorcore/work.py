"""How a product is computed by `kernels/tensorcore.cu`: tile, parts of the reduction and of the batch, scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cuda.device import Properties
from fastconv.backends.cuda.tensorcore.packing import CHUNK_BYTES
from fastconv.backends.cuda.tensorcore.product import Product, Size

MOST_PHASES = 8
"""Of a launch."""

_REGISTERS = 65536
# A slice of the reduction, in chunks: 32 halves.
_SLICE_CHUNKS = 4
# Sums that a multiprocessor must have in hand to hide the latency of its instructions.
_FULL_SUMS = 128 * 128
# That a multiprocessor gets of the L2 cache. Not measured.
_L2_BYTES_PER_CYCLE = 32
_PARTS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Slices that a part of the reduction has at least.
_LEAST_SLICES = 4
_MOST_PORTIONS = 1024
# `WeightCopies::Position`.
_PLACE_BYTES = 16
# Of a result whose parts are added up.
_MOST_SUMS = 2**31


class Tile(NamedTuple):
    """Rows and columns of a block's tile and of a warp's part of it; slices of the reduction in shared memory."""

    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.rows * self.columns // (self.warp_rows * self.warp_columns)

    def across(self, size: Size) -> tuple[int, int]:
        """Return how many tiles cover the rows and the columns of a product."""
        return -(-size.rows // self.rows), -(-size.columns // self.columns)

    @property
    def bytes(self) -> int:
        """Shared memory of the slices."""
        return self.stages * (self.rows + self.columns) * _SLICE_CHUNKS * CHUNK_BYTES

    @property
    def efficiency(self) -> float:
        """The share of the peak that the kernel should reach: more products a load. Not measured."""
        products, loads = self.warp_rows * self.warp_columns, self.warp_rows + self.warp_columns
        return 0.85 * products / (products + 6 * loads)

    def busy(self, blocks: int) -> float:
        """Return the share of its rate that a multiprocessor reaches with some blocks. Not measured."""
        return math.sqrt(min(1.0, blocks * self.rows * self.columns / _FULL_SUMS))

    def resident(self, shared_bytes: int) -> int:
        """Return the blocks that fit a multiprocessor side by side, by registers and shared memory."""
        # Sums, operands of two steps, and addresses: what the compiler reports, within some.
        registers = self.warp_rows * self.warp_columns // 32 + (self.warp_rows + self.warp_columns) // 2 + 48
        return max(1, min(_REGISTERS // (self.threads * registers), shared_bytes // self.bytes))


TILES = (
    Tile(256, 128, 64, 64, 3),
    Tile(128, 128, 64, 64, 4),
    Tile(256, 64, 64, 64, 4),
    Tile(128, 64, 64, 32, 4),
    Tile(64, 64, 32, 32, 4),
)
# Of few columns: their slices are too narrow for a weight gradient.
NARROW_TILES = (Tile(128, 32, 32, 32, 4),)


class Choice(NamedTuple):
    """The seconds that a run should take, the tile, the parts of the reduction, and images at a time."""

    seconds: float
    tile: Tile
    splits: int
    images: int


@dataclass(frozen=True)
class Work:
    """How one problem is computed.

    Attributes
    ----------
    product : Product
    packs : tuple of bool
        Whether the gathered array is packed first, and whether the other operand is.
    properties : Properties
        Of the GPU.
    max_workspace : int
    """

    product: Product
    packs: tuple[bool, bool]
    properties: Properties
    max_workspace: int

    @property
    def depth(self) -> int:
        """Steps of the reduction in a slice."""
        return _SLICE_CHUNKS * self.product.count

    def shared_bytes(self, tile: Tile) -> int:
        """Return the shared memory of a block: slices, and the place of every tap; in wgrad of a slice's positions."""
        product = self.product
        if product.is_wgrad:
            return tile.bytes + tile.stages * self.depth * _PLACE_BYTES
        return tile.bytes + max(map(product.taps, product.phases)) * 4 * (product.axes + 2)

    def blocks(self, tile: Tile, images: int) -> int:
        """Return the blocks of all phases, before the reduction is split."""
        sizes = (self.product.size(phase, images) for phase in self.product.phases)
        return sum(self.product.problem.groups * math.prod(tile.across(size)) for size in sizes)

    @property
    def _gathered_bytes(self) -> int:
        """An image's, packed."""
        p = self.product.problem
        size = p.output_size if p.direction == "dgrad" else p.input_size
        return p.groups * self.product.chunks * CHUNK_BYTES * math.prod(size) if self.packs[0] else 0

    @property
    def _matrix_bytes(self) -> int:
        """Those of an image of dy, or of the whole weight, packed."""
        p, product = self.product.problem, self.product
        if not self.packs[1]:
            return 0
        if product.is_wgrad:
            return p.groups * -(-product.results // product.count) * CHUNK_BYTES * math.prod(p.output_size)
        return p.groups * product.results * math.prod(p.kernel_size) * product.chunks * CHUNK_BYTES

    def _packed_bytes(self, images: int) -> int:
        if self.product.is_wgrad:
            return images * (self._gathered_bytes + self._matrix_bytes)
        return images * self._gathered_bytes + self._matrix_bytes

    def portions(self, images: int) -> int:
        """Return how many times some images are computed."""
        return -(-self.product.problem.n // images)

    def parts(self, splits: int, images: int) -> int:
        """Return the parts of the reduction that are summed in the end; none if a block's sums are whole."""
        if self.product.is_wgrad:
            return splits * self.portions(images)
        return splits if splits > 1 else 0

    def partial_count(self, splits: int, images: int) -> int:
        """Return the sums of all parts."""
        rows = self.product.problem.groups * self.product.size(self.product.phases[0], images).rows
        return self.parts(splits, images) * rows * self.product.line

    def workspace(self, splits: int, images: int) -> int:
        """Return the bytes of scratch: packed operands, and parts of the reduction."""
        return self._packed_bytes(images) + 4 * self.partial_count(splits, images)

    @cached_property
    def images(self) -> int | None:
        """Images at a time, as many as scratch allows; None if it does not allow one."""
        n = self.product.problem.n
        some = (-(-n // launches) for launches in range(1, min(n, _MOST_PORTIONS) + 1))
        return next((images for images in some if self.workspace(1, images) <= self.max_workspace), None)

    @cached_property
    def choice(self) -> Choice:
        # One image if scratch does not allow it: arrays of unusual strides are packed, too, which none could foresee.
        images = self.images or 1
        options = [
            Choice(self.seconds(tile, splits, images), tile, splits, images)
            for tile in (TILES if self.product.is_wgrad else TILES + NARROW_TILES)
            if self.shared_bytes(tile) <= self.properties.shared_bytes
            for splits in self._splits(images)
        ]
        return min(options, key=lambda option: option.seconds)

    def _splits(self, images: int) -> list[int]:
        product = self.product
        if len(product.phases) > 1 or (self.portions(images) > 1 and not product.is_wgrad):
            return [1]
        size = product.size(product.phases[0], images)
        if product.problem.groups * size.rows * size.columns >= _MOST_SUMS:
            return [1]
        most = -(-size.steps // self.depth) // _LEAST_SLICES
        return [1, *(s for s in _PARTS if s <= most and self.workspace(s, images) <= self.max_workspace)]

    def _rate(self, tile: Tile) -> float:
        """Return the FLOP/s of a GPU that is full: products, and loads of a tile's operands from the L2 cache."""
        properties, problem = self.properties, self.product.problem
        multiplied = properties.tensor_peak(problem.dtype) * tile.efficiency
        intensity = 2 * tile.rows * tile.columns / ((tile.rows + tile.columns) * problem.itemsize)
        loaded = intensity * _L2_BYTES_PER_CYCLE * properties.multiprocessors * properties.hertz
        # Neither hides the other wholly.
        return 1 / math.hypot(1 / multiplied, 1 / loaded)

    def seconds(self, tile: Tile, splits: int, images: int) -> float:
        """Return what a run should take."""
        product, portions = self.product, self.portions(images)
        flops = 0
        for phase in product.phases:
            size = product.size(phase, images)
            slices = max(-(-size.steps // self.depth), 1)
            tiles = product.problem.groups * math.prod(tile.across(size))
            flops += 2 * tiles * tile.rows * tile.columns * slices * self.depth
        each = product.is_wgrad or self.packs[0]  # portion is packed
        packed = self._packed_bytes(images) * (portions if each else 1)
        launches = portions * -(-len(product.phases) // MOST_PHASES) + any(self.packs) * (portions if each else 1)
        blocks, properties = self.blocks(tile, images) * splits, self.properties
        resident = min(tile.resident(properties.shared_bytes), -(-blocks // properties.multiprocessors))
        partial = 4 * self.partial_count(splits, images)
        # Launches of their own: packing reads and writes, adding up reads.
        before_and_after = (2 * packed + partial) / properties.bandwidth
        return before_and_after + properties.seconds(
            flops=flops * portions,
            moved=product.problem.bytes + partial,
            blocks=blocks * portions,
            peak=self._rate(tile) * tile.busy(resident),
            resident=resident,
            launches=launches + (self.parts(splits, images) > 0),
        )
