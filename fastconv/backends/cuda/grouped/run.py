"""From a form of arrays to launches of `kernels/grouped.cu`: which variant of it, and its parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ACTIVATIONS, ELEMENTS, Arrays, Start, Strides
from fastconv.backends.cuda.geometry import AXIS
from fastconv.backends.cuda.geometry import Phase as Axes
from fastconv.backends.cuda.grouped.work import MAX_PHASES, ROWS, THREADS, Work
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, array, fastdiv, nested
from fastconv.backends.cuda.planes import MAP, Map, two

# The structs of kernels/grouped.cu.
PHASE = nested({"row": AXIS, "column": AXIS, "weight_origin": LONG, "result_origin": LONG, "residual_origin": LONG})
_WEIGHT = ("weight_group", "weight_output", "weight_input", "weight_row", "weight_column")
_TILE = ("block_groups", "passes", "columns", "row_groups", "chunk", "output_blocks", "source_rows", "line", "plane")
_DIVISORS = (
    *("columns", "row_groups", "output_blocks", "fast", "middle", "chunk", "outputs"),
    *("row_tiles", "column_tiles"),
)
PARAMETERS = Struct(
    ("source", "weight", "result", "bias", "residual"),
    {
        **dict.fromkeys(("source_map", "result_map", "residual_map"), MAP),
        **dict.fromkeys((*_WEIGHT, "bias_step"), LONG),
        **dict.fromkeys(("images", "groups", "inputs", "outputs", "activation", *_TILE), INT),
        **{f"by_{name}": FASTDIV for name in _DIVISORS},
        "phase": array(PHASE, MAX_PHASES),
    },
)


def _stepped(map_: Map, axes: Axes) -> Map:
    """Return the strides from one result of a phase to the next."""
    return map_._replace(row=map_.row * axes[1].out_step, column=map_.column * axes[2].out_step)


def _origin(map_: Map, axes: Axes) -> int:
    """Return where a phase's first result is."""
    return map_.row * axes[1].first_out + map_.column * axes[2].first_out


class Form:
    """The strides of a problem's arrays, in the kernel's terms."""

    def __init__(self, work: Work, strides: Strides, alignment: int) -> None:
        problem = work.problem
        named = dict(zip((o.name for o in problem.inputs + problem.outputs), strides, strict=True))
        self.work = work
        self.source = Map.of(named["dy" if work.is_gradient else "x"])
        self.result = Map.of(named["dx" if work.is_gradient else "y"])
        self.residual = Map.of(named["residual"]) if problem.residual else None
        self.bias_step = named["bias"][0] if "bias" in named else 0
        output, inner, *rest = named["w"]
        self.taps = two(tuple(rest))
        self.group = output * (problem.oc // problem.groups)
        self.across = (inner, output) if work.is_gradient else (output, inner)
        wide = alignment // problem.itemsize
        self.last = self.source.channel == 1
        self.load = wide if self._loads(wide) else 1
        self.store = self._stored(wide)
        self.tile = work.tile(self.load, self.last)

    def _loads(self, wide: int) -> bool:
        """Whether copies may take so many elements."""
        source = self.source
        if self.last:
            return (
                wide > 1
                and self.work.inputs % wide == 0
                and not any(step % wide for step in (source.image, source.row, source.column))
            )
        columns = self.work.phases[0][2].size
        steps = (source.image, source.channel, source.row)
        return wide > 1 and source.column == 1 and columns % wide == 0 and not any(step % wide for step in steps)

    def _stored(self, wide: int) -> int:
        """Return how many channels are stored at once."""
        maps = [m for m in (self.result, self.residual) if m is not None]
        count = min(wide, self.work.thread_outputs)
        fits = self.work.outputs % max(count, 1) == 0 and all(
            m.channel == 1 and not any(step % count for step in (m.image, m.row, m.column)) for m in maps
        )
        return count if fits else 1

    def weight_origin(self, axes: Axes) -> int:
        return sum(a.first_tap * step for a, step in zip(axes[1:], self.taps, strict=True))

    def pack(self, some: list[Axes]) -> bytes:
        work, tile, axes = self.work, self.tile, some[0]
        row_tiles, column_tiles = work.tiles(tile)
        phase = np.zeros(MAX_PHASES, PHASE)
        residual = self.residual or Map()
        for i, one in enumerate(some):
            origins = self.weight_origin(one), _origin(self.result, one), _origin(residual, one)
            phase[i] = (one[1].packed(), one[2].packed(), *origins)
        steps = [step * a.tap_step for a, step in zip(axes[1:], self.taps, strict=True)]
        fast = tile.groups * tile.chunk if self.last else tile.line
        divisors = {
            "columns": tile.columns,
            "row_groups": tile.row_groups,
            "output_blocks": work.output_blocks,
            "fast": fast // self.load,
            "middle": tile.line if self.last else tile.source_rows,
            "chunk": tile.chunk,
            "outputs": work.output_blocks * work.thread_outputs,
            "row_tiles": row_tiles,
            "column_tiles": column_tiles,
        }
        values: dict[str, Any] = {**tile._asdict(), "block_groups": tile.groups, "groups": work.problem.groups}
        return PARAMETERS.pack(
            **values,
            **{f"by_{name}": fastdiv(value) for name, value in divisors.items()},
            **dict(zip(_WEIGHT, (self.group, *self.across, *steps), strict=True)),
            source_map=self.source,
            result_map=_stepped(self.result, axes),
            residual_map=_stepped(residual, axes),
            bias_step=self.bias_step,
            images=work.problem.n,
            inputs=work.inputs,
            outputs=work.outputs,
            activation=ACTIVATIONS[work.problem.activation],
            passes=work.passes(tile),
            output_blocks=work.output_blocks,
            phase=phase,
        )

    def kernel(self) -> Kernel:
        work = self.work
        defines = {
            "ELEMENT": ELEMENTS[work.problem.dtype],
            "OUTPUTS": work.thread_outputs,
            "ROWS": ROWS,
            "THREADS": THREADS,
            "LAST": int(self.last),
            "LOAD": self.load,
            "STORE": self.store,
            "GRADIENT": int(work.is_gradient),
        }
        return Kernel("grouped.cu", "grouped", tuple((name, str(value)) for name, value in defines.items()))


def prepare(work: Work, strides: Strides, alignment: int) -> Start:
    """Return what computes a grouped convolution on arrays of some form."""
    problem, form = work.problem, Form(work, strides, alignment)
    tile = form.tile
    compute = launching.launcher().prepare(form.kernel(), (THREADS, 1, 1), work.shared(tile))
    images = -(-problem.n // work.passes(tile))
    grid = math.prod(work.tiles(tile)) * images, -(-problem.groups // tile.groups)
    some = [work.phases[i : i + MAX_PHASES] for i in range(0, len(work.phases), MAX_PHASES)]
    launches = [((*grid, len(phases)), form.pack(phases)) for phases in some]
    names = tuple(o.name for o in problem.inputs + problem.outputs)
    order = ("dy", "w", "dx", "bias", "residual") if work.is_gradient else ("x", "w", "y", "bias", "residual")

    def start(inputs: Arrays, outputs: Arrays) -> None:
        named = dict(zip(names, inputs + outputs, strict=True))
        pointers = [named.get(name) for name in order]
        for size, parameters in launches:
            compute(size, parameters, pointers)

    return start
