"""Operands with channels side by side, in chunks of 16 bytes: as they lie, or packed by `kernels/pack.cu`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ELEMENTS
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, UINT, Struct, array, fastdiv, nested

Three: TypeAlias = tuple[int, int, int]

THREADS = 256
CHUNK_BYTES = 16
# Elements of a tile in shared memory, a line of which is a word longer than it must be: `MOST` of the kernel.
_MOST = 4608
_WORD_BYTES = 4
_TILE_BLOCKS = 64

# `Job` and `PackParameters` of kernels/pack.cu.
JOB = nested(
    {
        **dict.fromkeys(("outer", "group", "channel"), LONG),
        "axis": array(LONG, 4),
        **dict.fromkeys(("packed_outer", "packed_group", "packed_block"), LONG),
        **dict.fromkeys(("blocks", "channels", "tile_blocks", "tile_channels", "channels_fastest"), INT),
        "by_size": array(FASTDIV, 3),
        **dict.fromkeys(("by_groups", "by_block_tiles", "by_channel_tiles"), FASTDIV),
        **dict.fromkeys(("by_tile_fastest", "by_tile_chunks"), FASTDIV),
    }
)
PARAMETERS = Struct(("array0", "array1", "packed0", "packed1"), {"tiles": UINT, "job": array(JOB, 2)})


class Lines(NamedTuple):
    """Strides of an operand: group, line (an image, or a weight's row), channel, three axes."""

    group: int
    line: int
    channel: int
    axis: Three

    def in_chunks(self, channels: int, count: int, alignment: int) -> Lines | None:
        """Return these strides in chunks of ``count`` elements; None if channels do not come in whole chunks."""
        others = (self.group, self.line, *self.axis)
        if alignment < CHUNK_BYTES or self.channel != 1 or channels % count or any(s % count for s in others):
            return None
        depth, height, width = self.axis
        return Lines(self.group // count, self.line // count, 1, (depth // count, height // count, width // count))


@dataclass(frozen=True)
class Packing:
    """How an operand is packed: ``[outer][block][group][channel]``, with a group's channels in whole chunks.

    Attributes
    ----------
    outer, groups, channels : int
        Entries; of channels, in a group.
    sizes : tuple of int
        Of the four axes that make up ``block``.
    strides : Lines
        Of the array; its line is ``outer``.
    axis : tuple of int
        The array's strides along the four axes.
    itemsize : int
    """

    outer: int
    groups: int
    channels: int
    sizes: tuple[int, int, int, int]
    strides: Lines
    axis: tuple[int, int, int, int]
    itemsize: int

    @property
    def count(self) -> int:
        """Elements of a chunk."""
        return CHUNK_BYTES // self.itemsize

    @property
    def chunks(self) -> int:
        """Chunks of a group's channels."""
        return -(-self.channels // self.count)

    @property
    def blocks(self) -> int:
        return math.prod(self.sizes)

    @property
    def outer_elements(self) -> int:
        """Elements of one entry of ``outer``, packed."""
        return self.blocks * self.groups * self.chunks * self.count

    @property
    def packed_axis(self) -> Three:
        """Strides of the last three axes, in chunks."""
        step = self.groups * self.chunks
        _, _, height, width = self.sizes
        return step * height * width, step * width, step

    @cached_property
    def _tile(self) -> tuple[int, int]:
        """Blocks and channels that are transposed together."""
        blocks = min(self.blocks, _TILE_BLOCKS)
        longest = _MOST // blocks - _WORD_BYTES // self.itemsize
        return blocks, min(self.chunks * self.count, longest // self.count * self.count)

    @property
    def tiles(self) -> int:
        """Blocks of threads for an entry of ``outer``."""
        blocks, channels = self._tile
        return self.groups * -(-self.blocks // blocks) * -(-self.channels // channels)

    @property
    def job(self) -> Any:
        """The values of the kernel's struct."""
        tile_blocks, tile_channels = self._tile
        nearest = min((abs(s) for s, n in zip(self.axis, self.sizes, strict=True) if n > 1), default=None)
        channels_fastest = nearest is None or abs(self.strides.channel) < nearest
        return (
            self.strides.line,
            self.strides.group,
            self.strides.channel,
            self.axis,
            self.outer_elements,
            self.chunks * self.count,
            self.groups * self.chunks * self.count,
            self.blocks,
            self.channels,
            tile_blocks,
            tile_channels,
            channels_fastest,
            [fastdiv(size) for size in self.sizes[1:]],
            fastdiv(self.groups),
            fastdiv(-(-self.blocks // tile_blocks)),
            fastdiv(-(-self.channels // tile_channels)),
            fastdiv(tile_channels if channels_fastest else tile_blocks),
            fastdiv(tile_channels // self.count),
        )


class Packer:
    """Packs up to two arrays by one launch.

    Parameters
    ----------
    packings : sequence of (Packing or None)
    dtype : str
    """

    def __init__(self, packings: Sequence[Packing | None], dtype: str) -> None:
        self.packings = packings
        kernel = Kernel("pack.cu", "pack", (("ELEMENT", ELEMENTS[dtype]),))
        self._launch = launching.launcher().prepare(kernel, (THREADS, 1, 1))
        self._jobs = np.zeros(2, JOB)
        for i, packing in enumerate(packings):
            if packing is not None:
                self._jobs[i] = packing.job

    def parameters(self, outer: Sequence[int]) -> tuple[int, bytes]:
        """Return the grid and the parameters that pack the first entries of each array; none of one that has 0."""
        first, second = (n * p.tiles if p and n else 0 for n, p in zip(outer, self.packings, strict=True))
        return first + second, PARAMETERS.pack(tiles=first, job=self._jobs)

    def start(self, parameters: tuple[int, bytes], arrays: Sequence[Any], packed: Sequence[Any]) -> None:
        """Launch; an array that is not packed may be None."""
        self._launch((parameters[0],), parameters[1], (*arrays, *packed))


def three(sizes: Sequence[int], filler: int) -> Three:
    """Return values of one to three axes (or none) as those of three."""
    a, b, c = (*(filler,) * (3 - len(sizes)), *sizes)
    return a, b, c


def packed_map(
    images: int, size: Three, groups: int, channels: int, strides: Lines, itemsize: int
) -> tuple[Lines, Packing]:
    """Return the strides in chunks of a packed input or output, and how it is packed."""
    packing = Packing(images, groups, channels, (1, *size), strides, (0, *strides.axis), itemsize)
    line = packing.outer_elements // packing.count
    return Lines(packing.chunks, line, 1, packing.packed_axis), packing


def packed_weight(
    rows: int, taps: Three, groups: int, channels: int, strides: Lines, itemsize: int
) -> tuple[Lines, Packing]:
    """Return the strides in chunks of a packed weight, and how it is packed."""
    if strides.group == rows * strides.line:
        # Group after group of rows: one run of them.
        outer, inner, line = groups * rows, 1, strides.line
    else:
        outer, inner, line = groups, rows, strides.group
    packing = Packing(
        outer,
        1,
        channels,
        (inner, *taps),
        strides._replace(group=0, line=line),
        (strides.line if inner > 1 else 0, *strides.axis),
        itemsize,
    )
    line = math.prod(taps) * packing.chunks
    return Lines(rows * line, line, 1, packing.packed_axis), packing
