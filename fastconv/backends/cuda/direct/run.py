"""From a form of arrays to launches of `kernels/direct.cu`: which variant of it, and its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ACTIVATIONS, ELEMENTS, Arrays, Start, Strides
from fastconv.backends.cuda.direct.work import Tile, Work
from fastconv.backends.cuda.geometry import AXIS, PADDING_MODES, Phase
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, array, fastdiv, nested
from fastconv.problem import DTYPES

MAX_PHASES = 8
_SCATTERED, _COLUMNS, _ROWS = range(3)
_THREADS = 256
# Arrays that span so many elements take offsets of 64 bits: with padding, offsets reach a little beyond their ends.
_LARGE = 2**30

# The structs of kernels/convolution.cuh and kernels/direct.cu.
STRIDES = nested({"group": LONG, "row": LONG, "outer": LONG, "axis": array(LONG, 3), "position": array(LONG, 3)})
PHASE = nested({"axis": array(AXIS, 3), "a_origin": LONG, "out_origin": LONG, "residual_origin": LONG})
PARAMETERS = Struct(
    ("a", "b", "out", "bias", "residual", "partial"),
    {
        **dict.fromkeys(("a_strides", "out_strides", "bias_strides", "residual_strides"), STRIDES),
        "b_group": LONG,
        "b_channel": LONG,
        "b_image": LONG,
        "b_axis": array(LONG, 3),
        **dict.fromkeys(("images", "channels", "rows", "groups", "local", "skips_outside", "channels_fastest"), INT),
        **dict.fromkeys(("rows_fastest", "padding_mode", "activation", "splits", "row_tiles", "packed"), INT),
        **dict.fromkeys(("by_channels", "by_row_tiles", "by_column_tiles", "by_groups", "by_split_columns"), FASTDIV),
        "phase": array(PHASE, MAX_PHASES),
    },
)


class Map(NamedTuple):
    """The strides of an input or output: image, channel, and three spatial axes."""

    image: int
    channel: int
    axis: tuple[int, int, int]

    @classmethod
    def of(cls, strides: tuple[int, ...]) -> Map:
        return cls(strides[0], strides[1], _three(strides[2:]))


class Weight(NamedTuple):
    """The strides of a weight: output position (locally connected), output and input channel, kernel position."""

    position: tuple[int, int, int]
    output: int
    input: int
    axis: tuple[int, int, int]

    @classmethod
    def of(cls, strides: tuple[int, ...], work: Work) -> Weight:
        lead = work.problem.ndim if work.is_local else 0
        return cls(_three(strides[:lead]), strides[lead], strides[lead + 1], _three(strides[lead + 2 :]))


def _three(strides: Sequence[int]) -> tuple[int, int, int]:
    a, b, c = (*(0,) * (3 - len(strides)), *strides)
    return a, b, c


class Form:
    """The strides of a problem's arrays, in the kernel's terms."""

    def __init__(self, work: Work, strides: Strides) -> None:
        problem = work.problem
        self.work = work
        self.named = dict(zip((o.name for o in problem.inputs + problem.outputs), strides, strict=True))
        source = {"fprop": "x", "dgrad": "dy", "wgrad": "x"}[problem.direction]
        self.source = Map.of(self.named[source])
        self.result = Map.of(self.named[{"fprop": "y", "dgrad": "dx", "wgrad": "dy"}[problem.direction]])
        self.weight = Weight.of(self.named["dw" if work.is_wgrad else "w"], work)

    def a(self) -> tuple[Any, ...]:
        work, w = self.work, self.weight
        if work.is_wgrad:
            y = self.result
            return _strides(y.channel * work.rows, y.channel, y.image, y.axis, y.axis)
        row, outer = (w.input, w.output) if work.problem.direction == "dgrad" else (w.output, w.input)
        phase = work.phases[0]
        axis = [tap * a.tap_step for tap, a in zip(w.axis, phase, strict=True)]
        if work.is_local and work.problem.direction == "dgrad":  # the weight's position moves with the tap
            axis = [s + a.dilation * o for s, a, o in zip(axis, phase, w.position, strict=True)]
        group = w.output * (work.problem.oc // work.problem.groups)
        return _strides(group, row, outer, axis, w.position)

    def out(self) -> tuple[Any, ...]:
        work, w = self.work, self.weight
        if work.is_wgrad:
            return _strides(w.output * work.rows, w.output, w.input, w.axis, w.position)
        return self._like_result(self.result)

    def residual(self) -> tuple[Any, ...]:
        return self._like_result(Map.of(self.named["residual"])) if "residual" in self.named else _strides(0, 0, 0)

    def _like_result(self, result: Map) -> tuple[Any, ...]:
        steps = [s * a.out_step for s, a in zip(result.axis, self.work.phases[0], strict=True)]
        return _strides(result.channel * self.work.rows, result.channel, result.image, steps, steps)

    def bias(self) -> tuple[Any, ...]:
        if "bias" not in self.named:
            return _strides(0, 0, 0)
        *position, row = self.named["bias"]
        return _strides(row * self.work.rows, row, 0, position=_three(position))

    def phase(self, phase: Phase) -> tuple[Any, ...]:
        a_origin = sum(a.first_tap * tap for a, tap in zip(phase, self.weight.axis, strict=True))
        if self.work.is_wgrad:
            a_origin = 0
        elif self.work.is_local and self.work.problem.direction == "dgrad":
            a_origin += sum(a.origin * o for a, o in zip(phase, self.weight.position, strict=True))
        residual = Map.of(self.named["residual"]).axis if "residual" in self.named else (0, 0, 0)
        out_origin, residual_origin = (
            0 if self.work.is_wgrad else sum(a.first_out * s for a, s in zip(phase, axes, strict=True))
            for axes in (self.result.axis, residual)
        )
        return [axis.packed() for axis in phase], a_origin, out_origin, residual_origin

    @property
    def channels_fastest(self) -> bool:
        """Whether the gathered array's channels lie closer together than its elements along the last axis."""
        channel = abs(self.source.channel)
        return channel != 0 and (self.source.axis[2] == 0 or channel < abs(self.source.axis[2]))

    @property
    def a_along(self) -> bool:
        """Whether the first operand's elements lie closer together along the reduction than across it."""
        _, row, outer, axis, _ = self.a()
        work = self.work
        if work.is_wgrad:
            step = outer if work.is_local else axis[2]
        else:
            one_tap = work.taps(work.phases[0]) == work.channels
            step = outer if self.channels_fastest or one_tap else axis[2]
        return bool(row == 0 or 0 < abs(step) <= abs(row))

    @property
    def b_along(self) -> bool:
        return self.channels_fastest != self.work.is_wgrad

    @property
    def rows_fastest(self) -> bool:
        """Whether the result's rows lie closer together than its columns."""
        row = abs(self.out()[1])
        column = abs(self.weight.axis[2] or self.weight.input) if self.work.is_wgrad else abs(self.result.axis[2])
        return row != 0 and (column == 0 or row < column)


def _strides(group: int, row: int, outer: int, axis: Any = (0, 0, 0), position: Any = (0, 0, 0)) -> tuple[Any, ...]:
    return group, row, outer, tuple(axis), tuple(position)


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return 1 + sum((size - 1) * abs(step) for size, step in zip(shape, strides, strict=True))


def prepare(work: Work, strides: Strides, result_dtype: str, alignment: int) -> Start:
    """Return what computes a product for arrays of some strides. The last of the arrays is the result."""
    problem, form = work.problem, Form(work, strides)
    _, tile, splits = work.choice
    operands = problem.inputs + problem.outputs
    wide = any(_extent(o.shape, s) >= _LARGE for o, s in zip(operands, strides, strict=True))
    defines = (
        ("ELEMENT", ELEMENTS[problem.dtype]),
        ("RESULT", ELEMENTS[result_dtype]),
        ("TILE", ", ".join(map(str, tile))),
        ("WGRAD", str(int(work.is_wgrad))),
        ("FOLDED", str(int(problem.padding_mode != "zeros"))),
        ("AXES", "3" if problem.ndim == 3 else "2"),
        ("A_ALONG", str(int(form.a_along))),
        ("B_ALONG", str(int(form.b_along))),
        ("OFFSET", "long long" if wide else "int"),
    )
    launcher = launching.launcher()
    multiply = launcher.prepare(Kernel("direct.cu", "direct", defines), (tile.threads, 1, 1))
    add = launcher.prepare(Kernel("direct.cu", "direct_sum", defines), (_THREADS, 1, 1)) if splits > 1 else None
    packed = _packing(work, form, alignment) if splits == 1 else _SCATTERED
    launches = list(_launches(work, form, tile, splits, packed))
    names = tuple(o.name for o in operands)
    order = _order(problem.direction)
    count = work.partial_bytes(splits) // (8 if problem.accumulator == "float64" else 4)

    def start(inputs: Arrays, outputs: Arrays) -> None:
        named = dict(zip(names, inputs + outputs, strict=True))
        partial = launcher.empty(count, problem.accumulator) if splits > 1 else None
        pointers = [*(named.get(name) for name in order), partial]
        for grid, parameters in launches:
            multiply(grid, parameters, pointers)
        if add is not None:
            add((-(-count // splits // _THREADS),), launches[0][1], pointers)

    return start


def _packing(work: Work, form: Form, alignment: int) -> int:
    """Return whether pieces of columns, or of rows, are whole and aligned in the result: a `Packing` of the kernel."""
    piece = 16 // DTYPES[work.problem.accumulator]
    if len(work.phases) > 1 or work.is_local or alignment < 16:
        return _SCATTERED
    group, row, outer, axis, _ = form.out()
    (phase,) = work.phases
    axes = [(a.taps if work.is_wgrad else a.positions, step) for a, step in zip(phase, axis, strict=True)]
    first = (work.channels if work.is_wgrad else work.problem.n, outer)
    digits = [*axes, first] if work.is_wgrad and form.channels_fastest else [first, *axes]
    run, beyond = 1, [group] if work.problem.groups > 1 else []  # columns side by side; steps that are not theirs
    steps = [*beyond, *(step for size, step in digits if size > 1)]
    for size, step in reversed(digits):
        if size > 1 and (step != run or len(beyond) > (work.problem.groups > 1)):
            beyond.append(step)
        else:
            run *= size
    if run % piece == 0 and all(step % piece == 0 for step in (row, *beyond)):
        return _COLUMNS
    if row == 1 and work.rows % piece == 0 and all(step % piece == 0 for step in steps):
        return _ROWS
    return _SCATTERED


def _order(direction: str) -> tuple[str, ...]:
    """Return which arrays the kernel's pointers are."""
    return {
        "fprop": ("w", "x", "y", "bias", "residual"),
        "dgrad": ("w", "dy", "dx", "bias", "residual"),
        "wgrad": ("dy", "x", "dw", "bias", "residual"),
    }[direction]


def _launches(
    work: Work, form: Form, tile: Tile, splits: int, packed: int
) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    problem = work.problem
    row_tiles = -(-work.rows // tile.rows)
    for start in range(0, len(work.phases), MAX_PHASES):
        some = work.phases[start : start + MAX_PHASES]
        column_tiles = max(-(-work.columns(phase) // tile.columns) for phase in some)
        products = max(math.prod(a.positions for a in f) for f in some) if work.is_local else 1
        phase = np.zeros(MAX_PHASES, PHASE)
        for i, one in enumerate(some):
            phase[i] = form.phase(one)
        parameters = PARAMETERS.pack(
            a_strides=form.a(),
            out_strides=form.out(),
            bias_strides=form.bias(),
            residual_strides=form.residual(),
            b_group=form.source.channel * work.channels,
            b_channel=form.source.channel,
            b_image=form.source.image,
            b_axis=form.source.axis,
            images=problem.n,
            channels=work.channels,
            rows=work.rows,
            groups=problem.groups,
            local=work.is_local,
            skips_outside=problem.direction == "dgrad",
            channels_fastest=form.channels_fastest,
            rows_fastest=form.rows_fastest,
            padding_mode=PADDING_MODES[problem.padding_mode],
            activation=ACTIVATIONS[problem.activation],
            splits=splits,
            row_tiles=row_tiles,
            packed=packed,
            by_channels=fastdiv(work.channels),
            by_row_tiles=fastdiv(row_tiles),
            by_column_tiles=fastdiv(column_tiles),
            by_groups=fastdiv(problem.groups),
            by_split_columns=fastdiv(work.columns(some[0])),
            phase=phase,
        )
        yield (row_tiles * column_tiles * problem.groups * products, splits, len(some)), parameters
