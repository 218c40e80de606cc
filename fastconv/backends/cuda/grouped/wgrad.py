"""The weight gradient of a grouped convolution: the tile of a block of `kernels/grouped_wgrad.cu`, and its launch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ELEMENTS, Arrays, Start, Strides
from fastconv.backends.cuda.device import Properties
from fastconv.backends.cuda.geometry import AXIS, Axis, phases
from fastconv.backends.cuda.grouped.work import EFFICIENCY, RESIDENT, SHARED, STAGING, THREADS, least_padding
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, fastdiv
from fastconv.backends.cuda.planes import MAP, Map, two
from fastconv.problem import DTYPES, ConvProblem

# Bytes of a thread's sums, and of those of one tap.
_SUMS, _OUTPUT_SUMS = 128, 32
# Tiles that a block has at least, of those that it shares with others.
_LEAST_TILES = 2

_WEIGHT = ("weight_output", "weight_input", "weight_row", "weight_column")
_COUNTS = ("groups", "inputs", "outputs", "block_groups", "rows", "columns", "chunk", "source_rows", "line", "plane")
_UNITS = ("units", "group_threads", "output_blocks", "tiles", "splits")
_DIVISORS = (
    *("fast", "middle", "chunk", "columns", "rows", "outputs"),
    *("group_threads", "inputs", "tap_blocks", "taps", "row_tiles", "column_tiles"),
)
PARAMETERS = Struct(
    ("source", "dy", "result", "partial"),
    {
        **dict.fromkeys(("source_map", "dy_map"), MAP),
        **dict.fromkeys(_WEIGHT, LONG),
        **dict.fromkeys((*_COUNTS, *_UNITS), INT),
        **{f"by_{name}": FASTDIV for name in _DIVISORS},
        **dict.fromkeys(("row", "column"), AXIS),
    },
)


class Tile(NamedTuple):
    """A block's part of dy: so many groups, rows and columns; and what it holds of a channel of x.

    Attributes
    ----------
    groups, rows, columns : int
    source_rows, line, plane : int
        Rows and columns of a channel of x in shared memory, and elements from one channel to the next.
    """

    groups: int
    rows: int
    columns: int
    source_rows: int
    line: int
    plane: int


@dataclass(frozen=True)
class WgradWork:
    """One problem, on some GPU."""

    problem: ConvProblem
    properties: Properties
    max_workspace: int

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        ((_, row, column),) = phases(self.problem)
        return row, column

    @property
    def inputs(self) -> int:
        """Channels of x in a group."""
        return self.problem.ic // self.problem.groups

    @property
    def outputs(self) -> int:
        """Channels of dy in a group."""
        return self.problem.oc // self.problem.groups

    @property
    def size(self) -> int:
        """Bytes of a sum."""
        return DTYPES[self.problem.accumulator]

    @cached_property
    def thread_outputs(self) -> int:
        """Channels of dy of a thread: as many as pad the group least."""
        options = [n for n in (8, 4, 2, 1) if n * self.size <= _OUTPUT_SUMS]
        return least_padding(self.outputs, options)

    @cached_property
    def thread_taps(self) -> int:
        """Neighbouring taps of a thread: as many as pad a row of the kernel least."""
        options = [n for n in (7, 5, 4, 3, 2, 1) if n * self.thread_outputs * self.size <= _SUMS]
        return least_padding(self.axes[1].taps, options)

    @property
    def output_blocks(self) -> int:
        return -(-self.outputs // self.thread_outputs)

    @property
    def tap_blocks(self) -> int:
        return -(-self.axes[1].taps // self.thread_taps)

    @property
    def taps(self) -> int:
        return self.axes[0].taps * self.axes[1].taps

    @property
    def units(self) -> int:
        """What the threads of a group share: each has the sums of a channel of x with some of dy and some taps."""
        return self.output_blocks * self.tap_blocks * self.axes[0].taps * self.inputs

    @property
    def unit_blocks(self) -> int:
        """Blocks that share the units of a group."""
        return -(-self.units // THREADS)

    @property
    def group_threads(self) -> int:
        return -(-self.units // self.unit_blocks)

    @property
    def fits(self) -> bool:
        return self._tile(1, True, 1, 1) is not None

    def tile(self, load: int, last: bool) -> Tile:
        """Return the tile that should take the least time, for copies of so many elements along columns or channels."""
        return min(self._tiles(load, last), key=self._cost)

    def _tiles(self, load: int, last: bool) -> Iterator[Tile]:
        positions = self.axes[1].positions
        for parts in sorted({1, 2, 3, 4, 8, -(-positions // 64), -(-positions // 16), positions}):
            for rows in (1, 2, 4, 8, 16, 32):
                if parts > positions or rows >= 2 * self.axes[0].positions:
                    continue
                tile = self._tile(load, last, rows, -(-positions // parts))
                if tile is not None:
                    yield tile

    def _tile(self, load: int, last: bool, rows: int, columns: int) -> Tile | None:
        source_rows, reached = _reached(self.axes[0], rows), _reached(self.axes[1], columns)
        # Copies may begin up to so many columns before, to be aligned.
        line = reached if last else -(-(reached + load - 1) // load) * load
        # In odd steps, so that neighbouring threads, which have neighbouring channels, read from other banks.
        step = 1 if last else load
        plane = (source_rows * line // step | 1) * step
        of_one = (self.inputs * plane + rows * columns * self.output_blocks * self.thread_outputs) * self.size
        groups = min(THREADS // self.group_threads, self.problem.groups, SHARED // of_one)
        return Tile(groups, rows, columns, source_rows, line, plane) if groups else None

    def shared(self, tile: Tile) -> int:
        """Bytes of shared memory of a block: dy begins at a multiple of 16."""
        dy = tile.rows * tile.columns * self.output_blocks * self.thread_outputs
        return tile.groups * (self.inputs * tile.plane + dy) * self.size + 16

    def tiles(self, tile: Tile) -> tuple[int, int, int]:
        """Return how many tiles there are of images, rows and columns."""
        row, column = self.axes
        return self.problem.n, -(-row.positions // tile.rows), -(-column.positions // tile.columns)

    def blocks(self, tile: Tile) -> int:
        """Return the blocks of one part of the images."""
        return -(-self.problem.groups // tile.groups) * self.unit_blocks

    def splits(self, tile: Tile) -> int:
        """Return into how many parts the tiles are divided: enough blocks for the GPU, as the workspace allows."""
        wanted = -(-2 * RESIDENT * self.properties.multiprocessors // self.blocks(tile))
        allowed = self.max_workspace // (self._weights * self.size)
        return max(1, min(wanted, math.prod(self.tiles(tile)) // _LEAST_TILES, allowed))

    @property
    def _weights(self) -> int:
        return math.prod(self.problem.w_shape)

    def _cost(self, tile: Tile) -> float:
        dy = tile.rows * tile.columns
        sums = THREADS * self.thread_taps * self.thread_outputs * dy
        staged = tile.groups * (self.inputs * tile.source_rows * tile.line + self.outputs * dy)
        return 2.0 * (sums + STAGING * staged) * math.prod(self.tiles(tile)) * self.blocks(tile)

    @cached_property
    def usual(self) -> Tile:
        """The tile for arrays as fastconv allocates them, but for wide copies."""
        return self.tile(1, self.problem.layout == "channels_last")

    @property
    def partial_bytes(self) -> int:
        return self.splits(self.usual) * self._weights * self.size

    @property
    def seconds(self) -> float:
        return self.properties.seconds(
            flops=self._cost(self.usual),
            moved=self.problem.bytes + 2 * self.partial_bytes,
            blocks=self.blocks(self.usual) * self.splits(self.usual),
            peak=EFFICIENCY * self.properties.peak(self.problem.accumulator),
            resident=RESIDENT,
            launches=2,
        )


def _reached(axis: Axis, positions: int) -> int:
    """Return the elements of x that neighbouring positions read."""
    return (positions - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1


def prepare(work: WgradWork, strides: Strides, alignment: int) -> Start:
    """Return what computes the weight gradient of a grouped convolution on arrays of some form."""
    problem, launcher = work.problem, launching.launcher()
    names = tuple(o.name for o in problem.inputs + problem.outputs)
    named = dict(zip(names, strides, strict=True))
    x, dy = Map.of(named["x"]), Map.of(named["dy"])
    last = x.channel == 1
    load = _load(work, x, last, alignment // problem.itemsize)
    tile = work.tile(load, last)
    # No more parts than the scratch memory that was announced has room for.
    splits = min(work.splits(tile), work.splits(work.usual))
    images, row_tiles, column_tiles = work.tiles(tile)
    divisors = {
        "fast": (tile.groups * work.inputs if last else tile.line) // load,
        "middle": tile.line if last else tile.source_rows,
        "chunk": work.inputs,
        "columns": tile.columns,
        "rows": tile.rows,
        "outputs": work.output_blocks * work.thread_outputs,
        "group_threads": work.group_threads,
        "inputs": work.inputs,
        "tap_blocks": work.tap_blocks,
        "taps": work.taps,
        "row_tiles": row_tiles,
        "column_tiles": column_tiles,
    }
    output, input_, *taps = named["dw"]
    parameters = PARAMETERS.pack(
        **{name: getattr(tile, name) for name in ("rows", "columns", "source_rows", "line", "plane")},
        **{name: getattr(work, name) for name in ("inputs", "outputs", "units", "group_threads", "output_blocks")},
        **{f"by_{name}": fastdiv(value) for name, value in divisors.items()},
        **dict(zip(_WEIGHT, (output, input_, *two(tuple(taps))), strict=True)),
        source_map=x,
        dy_map=dy,
        groups=problem.groups,
        block_groups=tile.groups,
        chunk=work.inputs,
        tiles=images * row_tiles * column_tiles,
        splits=splits,
        row=work.axes[0].packed(),
        column=work.axes[1].packed(),
    )
    defines = {
        "ELEMENT": ELEMENTS[problem.dtype],
        "THREADS": THREADS,
        "LAST": int(last),
        "LOAD": load,
        "OUTPUTS": work.thread_outputs,
        "TAPS": work.thread_taps,
    }
    macros = tuple((name, str(value)) for name, value in defines.items())
    block = (THREADS, 1, 1)
    compute = launcher.prepare(Kernel("grouped_wgrad.cu", "grouped_wgrad", macros), block, work.shared(tile))
    add = launcher.prepare(Kernel("grouped_wgrad.cu", "grouped_wgrad_sum", macros), block)
    grid = splits, -(-problem.groups // tile.groups), work.unit_blocks
    weights = math.prod(problem.w_shape)

    def start(inputs: Arrays, outputs: Arrays) -> None:
        arrays = dict(zip(names, inputs + outputs, strict=True))
        pointers = [arrays["x"], arrays["dy"], arrays["dw"], launcher.empty(splits * weights, problem.accumulator)]
        compute(grid, parameters, pointers)
        add((-(-weights // THREADS),), parameters, pointers)

    return start


def _load(work: WgradWork, x: Map, last: bool, wide: int) -> int:
    """Return how many elements of x are copied at once."""
    if last:
        whole = work.inputs % wide == 0 and not any(step % wide for step in (x.image, x.row, x.column))
    else:
        steps = x.image, x.channel, x.row
        whole = x.column == 1 and work.axes[1].size % wide == 0 and not any(step % wide for step in steps)
    return wide if whole else 1
