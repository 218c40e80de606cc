"""One depthwise convolution with planes in the lanes made ready: which planes, which band, what it costs.

Where rows are short, or what they read lies apart by strides and dilation, columns leave lanes idle. Then planes are
turned: ``lanes`` of them become one whose pixels are vectors, for the micro-kernel that otherwise takes channels-last
maps, and its results are turned back. Planes are the channels of an image, or those of all images, where few channels
fill no vectors.
"""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.depthwise import work as forward
from fastconv.backends.cpu.registers import Simd, whole_lines
from fastconv.backends.cpu.work import ConvWork
from fastconv.problem import ConvProblem, Sizes

# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
# Of the second-level cache, what a unit's turned planes take.
_SHARE = 4
# Cycles of a unit of work, of turning a vector beside its log2(lanes) shuffles, and of packing one.
_UNIT, _VECTOR, _PACK = 60.0, 2.5, 8.0
# Bytes of turned planes that stay in the first-level cache, and bytes a cycle from the second.
_NEAR, _L2_RATE = 24 << 10, 32


class _Turned(forward.Work):
    """The convolution of turned planes, as channels that are neighbours."""

    @property
    def widths(self) -> tuple[int, ...]:
        # Turning takes whole squares.
        return super().widths[-1:] if self.problem.ic <= self.lanes // 2 else super().widths[:1]


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`.

    Attributes
    ----------
    folded : bool
        Whether the planes of all images follow one another.
    images, planes : int
        Images, and planes of each; of one image that holds them all, if folded.
    turned : Work
        The convolution of an image's turned planes.
    """

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int, folded: bool = False) -> None:
        super().__init__(problem, vectors, workers, cache)
        self.multiplier = problem.oc // problem.groups
        self.folded = folded
        self.images, self.planes = (1, problem.n * problem.ic) if folded else (problem.n, problem.ic)
        channels = dict.fromkeys(("ic", "oc", "groups"), self.planes)
        plain = problem.replace(n=1, layout="channels_last", bias="none", residual=False, activation=None, **channels)
        self.turned = _Turned(plain, vectors, 1, cache, slab=False)
        self.lanes = self.turned.tile.lanes
        # Bands are of depths, if there are several, be they padding, of rows otherwise: what one reads of a plane is in
        # one piece.
        depth = self.axes[0]
        self.deep = max(depth.size, depth.extent(depth.out)) > 1 or not depth.is_inside((0, depth.out))
        self.outer, self.inner = (self.axes[0], self.axes[1:]) if self.deep else (self.axes[1], self.axes[2:])

    @property
    def item(self) -> int:
        """Bytes of a pixel of turned planes."""
        return self.lanes * self.size

    @property
    def blocks(self) -> int:
        """Vectors of planes of an image."""
        return -(-self.planes // self.lanes)

    @property
    def patterns(self) -> int:
        """Vectors of channels after which those of the planes come again."""
        channels = self.problem.ic
        return min(self.blocks, channels // math.gcd(channels, self.lanes))

    @property
    def terms(self) -> int:
        """Elements of an input channel's weights."""
        return self.multiplier * self.taps

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.patterns * self.lanes * self.terms

    @property
    def inner_size(self) -> int:
        """Pixels of a row of the input, or of one of its depths."""
        return math.prod(axis.size for axis in self.inner)

    @property
    def padded(self) -> Sizes:
        """Rows and columns of turned planes, those included that no output reads."""
        return tuple(max(axis.before + axis.size, axis.extent(axis.out)) for axis in self.axes[1:])

    @property
    def piece(self) -> int:
        """Pixels of a row of turned planes, or of one of their depths."""
        return math.prod(self.padded[-len(self.inner) :])

    @property
    def inner_out(self) -> int:
        """The same of the output."""
        return math.prod(axis.out for axis in self.inner)

    def _pixels(self, band: int) -> int:
        """Return how many pixels of a plane a band reads, padding included."""
        return self.outer.extent(band) * self.piece

    @cached_property
    def band(self) -> int:
        """Output rows, or depths, of a unit: few enough for the cache, and for every worker to get some."""
        units = max(1, self.images * self.blocks)  # a batch may be empty
        wanted = -(-_UNITS * self.workers // units) if self.workers > 1 else 1
        least = 1 if self.deep else self.turned.tile.rows
        band = max(least, -(-self.outer.out // wanted))
        while band > least and (self._pixels(band) + band * self.inner_out) * self.item > self.cache // _SHARE:
            band -= 1
        # Even bands: as few rows as may be are done twice.
        return max(least, -(-self.outer.out // -(-self.outer.out // band)))

    @property
    def bands(self) -> int:
        return -(-self.outer.out // self.band)

    @property
    def units(self) -> int:
        return self.images * self.blocks * self.bands

    @property
    def input_bytes(self) -> int:
        """Bytes of the turned planes that a unit reads."""
        return self._pixels(self.band) * self.item

    @property
    def slab_bytes(self) -> int:
        """Bytes of a worker's scratch memory: turned planes, a vector of biases, sums and what is read behind them."""
        sums = (self.band * self.inner_out + self.lanes) * self.item
        return whole_lines(self.input_bytes + self.item + sums)

    @property
    def cycles(self) -> float:
        """Cycles on one core."""
        squares = -(-min(self.outer.size, self.outer.extent(self.band)) * self.inner_size // self.lanes)
        squares += self.multiplier * -(-self.band * self.inner_out // self.lanes)
        # Of the widest vectors, one is shuffled in a cycle.
        shuffles = math.log2(self.lanes) / (1 if self.simd.vector_bytes > 32 else 2)
        turning = squares * self.lanes * (shuffles + _VECTOR)
        summing = self.turned.cycles + (self._far_cycles if self.input_bytes > _NEAR else 0.0)
        return self.units * (_UNIT + turning) + self.images * self.multiplier * summing

    @property
    def _far_cycles(self) -> float:
        """Cycles until the pixels that an image's tiles read have come from the second-level cache."""
        (depth, height, width), tile = self.axes, self.turned.tile
        # Of a tile's columns, those that the one before it has read are near.
        columns = min(width.stride * tile.vectors, width.extent(tile.vectors))
        read = depth.kernel * height.extent(tile.rows) * columns
        tiles = self.blocks * depth.out * -(-height.out // tile.rows) * -(-width.out // tile.vectors)
        return tiles * read * self.item / _L2_RATE

    @property
    def pack_cycles(self) -> float:
        """Cycles of packing the weight."""
        return self.patterns * self.terms * _PACK
