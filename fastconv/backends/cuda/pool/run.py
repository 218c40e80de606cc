"""From a form of arrays to launches of `kernels/pool.cu` and `kernels/pool_gradient.cu`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ELEMENTS, Arrays, Start, Strides
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import DOUBLE, INT, Struct, array
from fastconv.backends.cuda.pool.reduction import flattened, reduction
from fastconv.backends.cuda.pool.windows import (
    MAP_STRIDES,
    THREADS,
    UNITS,
    WINDOW_AXIS,
    Units,
    Windows,
    channels_fastest,
    has_vectors,
    map_strides,
    several_rows,
    three,
    windows,
)
from fastconv.problem import PoolProblem

# Neighbouring results along the middle axis that a thread has at most, of one channel and of a vector of them.
MOST_ROWS, MOST_VECTOR_ROWS = 4, 2
# Norms without a power.
_USUAL_NORMS = (1.0, 2.0)
# What is compiled together.
_FAMILIES = {"average": 0, "maximum": 1, "indexed_maximum": 1, "usual_norm": 2, "any_norm": 2}

_WINDOW_FIELDS = {"axis": array(WINDOW_AXIS, 3), **dict.fromkeys(("divisor", "norm", "window"), DOUBLE)}
POOL = Struct(
    ("x", "y", "indices"),
    {
        "units": UNITS,
        **dict.fromkeys(("x_strides", "y_strides", "index_strides"), MAP_STRIDES),
        **_WINDOW_FIELDS,
        **dict.fromkeys(("counts_padding", "part_bits", "parts_fastest"), INT),
    },
)
GRADIENT = Struct(
    ("dy", "indices", "x", "y", "dx"),
    {
        "units": UNITS,
        **dict.fromkeys(("dy_strides", "index_strides", "x_strides", "y_strides", "dx_strides"), MAP_STRIDES),
        **_WINDOW_FIELDS,
        "counts_padding": INT,
    },
)


def operation(problem: PoolProblem) -> str:
    """Return what a problem's kernels are called."""
    if problem.is_max:
        return "indexed_maximum" if problem.return_indices and problem.direction == "fprop" else "maximum"
    if problem.kind == "lp_pool":
        return "usual_norm" if problem.norm_type in _USUAL_NORMS else "any_norm"
    return "average"


def divisor(problem: PoolProblem, axes: Sequence[Windows]) -> int:
    """Return what all windows of an average are divided by; 0 if that differs."""
    if problem.divisor_override is not None:
        return problem.divisor_override
    full = all(axis.is_full(problem.count_include_pad) for axis in axes)
    return math.prod(axis.kernel for axis in axes) if full else 0


def prepare_pool(problem: PoolProblem, strides: Strides, alignment: int) -> Start:
    """Return what computes a pool for arrays of some form."""
    launcher = launching.launcher()
    multiprocessors = launcher.properties().multiprocessors
    axes, by_name = windows(problem), _by_name(problem, strides)
    x_strides = by_name["x"]
    by = divisor(problem, axes)
    suffix, lanes = _vectors(problem, strides, alignment)
    units = Units(problem.n, problem.c, three(problem.output_size, 1), lanes, 1, channels_fastest(x_strides))
    shared = reduction(axes, units.total, units.channels_fastest, problem.itemsize, multiprocessors)
    if shared is None:
        units = _shared_rows(units, lanes, axes, multiprocessors)
        grid = units.grid()
    else:
        suffix += "_reduced"
        grid = units.grid(shared.units)
        if flat := flattened(axes, three(x_strides[2:], 0)):
            axes, x_strides = flat[0], (*x_strides[:2], *flat[1])
    parameters = POOL.pack(
        units=units.packed(),
        x_strides=map_strides(x_strides),
        y_strides=map_strides(by_name["y"]),
        index_strides=map_strides(by_name.get("indices", by_name["y"])),
        **_window_values(problem, axes, by),
        part_bits=shared.bits if shared else 0,
        parts_fastest=shared.parts_fastest if shared else False,
    )
    launch = launcher.prepare(_kernel("pool.cu", problem, suffix), (THREADS, 1, 1))

    def start(inputs: Arrays, outputs: Arrays) -> None:
        launch(grid, parameters, (inputs[0], outputs[0], outputs[1] if len(outputs) > 1 else None))

    return start


def prepare_gradient(problem: PoolProblem, strides: Strides, alignment: int) -> Start:
    """Return what computes a pool's gradient for arrays of some form."""
    launcher = launching.launcher()
    axes, by_name = windows(problem), _by_name(problem, strides)
    suffix, lanes = _vectors(problem, strides, alignment)
    units = Units(problem.n, problem.c, three(problem.input_size, 1), lanes, 1, channels_fastest(by_name["dx"]))
    units = _shared_rows(units, lanes, axes, launcher.properties().multiprocessors)
    names = tuple(operand.name for operand in problem.inputs + problem.outputs)
    parameters = GRADIENT.pack(
        units=units.packed(),
        **{
            f"{'index' if name == 'indices' else name}_strides": map_strides(by_name.get(name, by_name["dx"]))
            for name in GRADIENT.pointers
        },
        **_window_values(problem, axes, divisor(problem, axes)),
    )
    launch = launcher.prepare(_kernel("pool_gradient.cu", problem, suffix), (THREADS, 1, 1))

    grid = units.grid()
    order = [names.index(name) if name in names else len(names) for name in GRADIENT.pointers]

    def start(inputs: Arrays, outputs: Arrays) -> None:
        arrays = *inputs, *outputs, None
        launch(grid, parameters, [arrays[i] for i in order])

    return start


def _by_name(problem: PoolProblem, strides: Strides) -> dict[str, tuple[int, ...]]:
    return {operand.name: s for operand, s in zip(problem.inputs + problem.outputs, strides, strict=True)}


def _vectors(problem: PoolProblem, strides: Strides, alignment: int) -> tuple[str, int]:
    """Return the suffix of the kernels, and the channels that a thread has."""
    lanes = 16 // problem.itemsize
    if operation(problem) == "any_norm" or not has_vectors(strides, problem.c, lanes, alignment):
        return "", 1
    return "_vectors", lanes


def _shared_rows(units: Units, lanes: int, axes: Sequence[Windows], multiprocessors: int) -> Units:
    # Windows of dilated rows share none with their neighbours.
    most = 1 if axes[1].dilation > 1 else MOST_ROWS if lanes == 1 else MOST_VECTOR_ROWS
    return several_rows(units, most, multiprocessors)


def _window_values(problem: PoolProblem, axes: Sequence[Windows], by: int) -> dict[str, Any]:
    return {
        "axis": [axis.packed() for axis in axes],
        "divisor": by,
        "norm": problem.norm_type,
        "window": math.prod(problem.kernel_size),
        "counts_padding": problem.count_include_pad,
    }


def _kernel(source: str, problem: PoolProblem, suffix: str) -> Kernel:
    name = operation(problem)
    defines = ("ELEMENT", ELEMENTS[problem.dtype]), ("FAMILY", str(_FAMILIES[name]))
    return Kernel(source, name + suffix, defines)
