"""From a form of arrays to launches of `kernels/depthwise_*.cu`: which kernel, which variant, and its parameters."""

from __future__ import annotations

import math
from typing import Any

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ACTIVATIONS, ELEMENTS, Arrays, Start, Strides
from fastconv.backends.cuda.depthwise.work import THREADS, ChannelTile, PlaneTile, Work
from fastconv.backends.cuda.launching import Grid, Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, fastdiv, nested
from fastconv.backends.cuda.planes import MAP, Map, two

# The structs of kernels/depthwise.cuh.
AXIS = nested(dict.fromkeys(("results", "sources", "taps", "stride", "dilation", "before", "period", "advance"), INT))
_TILE = ("planes", "groups", "columns", "lanes", "source_rows", "line", "staged_lines", "staged_planes", "staged_rows")
_DIVISORS = ("channels", "repeats", "columns", "groups", "lanes", "taps", "chunks", "source_rows")
PARAMETERS = Struct(
    ("source", "weight", "result", "bias", "residual", "partial"),
    {
        **dict.fromkeys(("source_map", "result_map", "residual_map", "weight_map"), MAP),
        "bias_step": LONG,
        "row": AXIS,
        "column": AXIS,
        **dict.fromkeys(("images", "channels", "repeats", "sources", "activation", "splits", *_TILE, "passes"), INT),
        **{f"by_{name}": FASTDIV for name in (*_DIVISORS, "row_tiles", "column_tiles")},
    },
)
# What the kernels' pointers are, in each direction.
_ORDER = {
    "fprop": ("x", "w", "y", "bias", "residual"),
    "dgrad": ("dy", "w", "dx", "bias", "residual"),
    "wgrad": ("x", "dy", "dw", "bias", "residual"),
}
# Position tiles of a thread that has its block's weights at hand.
_MOST_PASSES = 8


def _of_weight(strides: tuple[int, ...]) -> Map:
    return Map(0, strides[0], *two(strides[2:]))


class Form:
    """The strides of a problem's arrays, and what follows from them: the tile."""

    def __init__(self, work: Work, strides: Strides, alignment: int) -> None:
        problem = work.problem
        named = dict(zip((o.name for o in problem.inputs + problem.outputs), strides, strict=True))
        self.source = Map.of(named["dy" if work.is_gradient else "x"])
        self.result = Map.of(named[{"fprop": "y", "dgrad": "dx", "wgrad": "dy"}[problem.direction]])
        self.residual = Map.of(named["residual"]) if "residual" in named else Map()
        self.weight = _of_weight(named["dw" if work.is_wgrad else "w"])
        self.bias_step = named["bias"][0] if "bias" in named else 0
        self.work = work
        self.alignment = alignment
        maps = [self.source, self.result] + [self.residual] * problem.residual
        wide = alignment // problem.itemsize
        if all(m.channel == 1 for m in maps):
            whole = work.repeats == work.sources == 1 and work.channels % max(wide, 1) == 0
            fits = whole and wide > 1 and all(not (step % wide) for m in maps for step in (m.image, m.row, m.column))
            self.tile: PlaneTile | ChannelTile = work.channel_tile(wide if fits else 1)
            self.load = 1
        else:
            whole = wide > 1 and self.source.column == 1 and work.axes[1].sources % wide == 0
            steps = (self.source.image, self.source.channel, self.source.row)
            self.load = wide if whole and not any(step % wide for step in steps) else 1
            self.tile = work.plane_tile(self.load)

    def pack(self, splits: int) -> bytes:
        work, tile, problem = self.work, self.tile, self.work.problem
        values: dict[str, Any] = dict.fromkeys(_TILE, 0)
        divisors = dict.fromkeys(_DIVISORS, 1)
        divisors |= {"channels": work.channels, "repeats": work.repeats, "taps": work.axes[1].taps}
        if isinstance(tile, PlaneTile):
            values |= tile._asdict()
            del values["rows"]
            chunks = tile.line // self.load
            lines = THREADS // chunks
            values["staged_lines"] = lines
            values["staged_planes"], values["staged_rows"] = divmod(lines, tile.source_rows)
            divisors |= {"columns": tile.columns, "groups": tile.groups}
            divisors |= {"chunks": chunks, "source_rows": tile.source_rows}
            _, row_tiles, column_tiles = work.plane_tiles(tile)
            values["passes"] = math.prod(work.plane_tiles(tile))
        else:
            values["lanes"] = divisors["lanes"] = tile.lanes
            _, row_tiles, column_tiles = work.channel_tiles(tile)
            values["passes"] = math.prod(work.channel_tiles(tile)) if work.is_wgrad else self.passes
        return PARAMETERS.pack(
            **values,
            **{f"by_{name}": fastdiv(value) for name, value in divisors.items()},
            by_row_tiles=fastdiv(row_tiles),
            by_column_tiles=fastdiv(column_tiles),
            source_map=self.source,
            result_map=self.result,
            residual_map=self.residual,
            weight_map=self.weight,
            bias_step=self.bias_step,
            row=work.axes[0].packed(),
            column=work.axes[1].packed(),
            images=problem.n,
            channels=work.channels,
            repeats=work.repeats,
            sources=work.sources,
            activation=ACTIVATIONS[problem.activation],
            splits=splits,
        )

    @property
    def channel_blocks(self) -> int:
        """Blocks side by side that have all channels."""
        assert isinstance(self.tile, ChannelTile)
        return -(-self.work.channels // (self.tile.lanes * self.tile.width))

    @property
    def passes(self) -> int:
        """Tiles of positions that a thread has, one after another."""
        assert isinstance(self.tile, ChannelTile)
        tiles = -(-math.prod(self.work.channel_tiles(self.tile)) // self.tile.walkers) * self.channel_blocks
        return max(1, min(_MOST_PASSES, tiles // (16 * self.work.properties.multiprocessors)))

    def grid(self, splits: int) -> Grid:
        work, tile = self.work, self.tile
        chunks = -(-work.taps // work.tap_sums(tile))
        if isinstance(tile, PlaneTile):
            return (work.channels, splits, chunks) if work.is_wgrad else (math.prod(work.plane_tiles(tile)),)
        if work.is_wgrad:
            return splits, self.channel_blocks, chunks
        tiles = math.prod(work.channel_tiles(tile))
        return -(-tiles // (tile.walkers * self.passes)), self.channel_blocks

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory: a tile of the source, or weights."""
        work, tile = self.work, self.tile
        if isinstance(tile, PlaneTile):
            return tile.planes * tile.source_rows * tile.line * work.size
        return 0 if work.is_wgrad else (tile.lanes * tile.width * work.size + 16) * work.taps

    def kernel(self) -> Kernel:
        work, tile = self.work, self.tile
        common = (
            ("ELEMENT", ELEMENTS[work.problem.dtype]),
            ("THREADS", str(THREADS)),
            ("GRADIENT", str(int(work.is_gradient))),
            ("KERNEL_HEIGHT", str(work.unrolled)),
            ("KERNEL_WIDTH", str(work.unrolled)),
            ("STEP", str(work.axes[0].stride if work.unrolled else 1)),
        )
        if isinstance(tile, PlaneTile):
            name, own = "depthwise_planes", {"LOAD": self.load, "ROWS": tile.rows}
        else:
            name, own = "depthwise_channels", {"WIDTH": tile.width, "COLUMNS": tile.columns}
        if work.is_wgrad:
            name += "_wgrad"
            own["TAPS"] = work.tap_sums(tile)
        return Kernel(f"{name}.cu", name, (*common, *((macro, str(value)) for macro, value in own.items())))


def prepare(work: Work, strides: Strides, alignment: int) -> Start:
    """Return what computes a depthwise convolution on arrays of some form."""
    problem, form = work.problem, Form(work, strides, alignment)
    splits = min(work.splits(form.tile), work.splits(work.usual)) if work.is_wgrad else 1
    launcher = launching.launcher()
    kernel = form.kernel()
    compute = launcher.prepare(kernel, (THREADS, 1, 1), form.shared)
    grid, parameters = form.grid(splits), form.pack(splits)
    names = tuple(o.name for o in problem.inputs + problem.outputs)
    order = _ORDER[problem.direction]

    if not work.is_wgrad:

        def start(inputs: Arrays, outputs: Arrays) -> None:
            named = dict(zip(names, inputs + outputs, strict=True))
            compute(grid, parameters, [*(named.get(name) for name in order), None])

        return start

    common = kernel.defines[: [name for name, _ in kernel.defines].index("STEP") + 1]
    add = launcher.prepare(Kernel("depthwise_sum.cu", "depthwise_sum", common), (THREADS, 1, 1))
    sums = work.channels * work.taps

    def start_wgrad(inputs: Arrays, outputs: Arrays) -> None:
        named = dict(zip(names, inputs + outputs, strict=True))
        partial = launcher.empty(splits * sums, problem.accumulator)
        pointers = [*(named.get(name) for name in order), partial]
        compute(grid, parameters, pointers)
        add((-(-sums // THREADS),), parameters, pointers)

    return start_wgrad
