"""Input gradients of padding that repeats elements: summed over a padded map in scratch memory, then folded."""

from __future__ import annotations

import math
from typing import Any

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ACTIVATIONS, ELEMENTS, Arrays, Start, Strides, contiguous
from fastconv.backends.cuda.direct.run import Map, prepare
from fastconv.backends.cuda.direct.work import Work
from fastconv.backends.cuda.geometry import PADDING_MODES
from fastconv.backends.cuda.launching import Kernel
from fastconv.backends.cuda.parameters import INT, LONG, LONG_FASTDIV, Struct, array, fastdiv
from fastconv.problem import ConvProblem

_THREADS = 256
_MAPS = ("padded", "out", "residual")
_MAP = dict(zip(Map._fields, (LONG, LONG, array(LONG, 3)), strict=True))

# The struct of kernels/fold_padding.cu.
PARAMETERS = Struct(
    ("padded", "out", "bias", "residual"),
    {
        "count": LONG,
        **{
            f"{name}_{part}": kind
            for name in _MAPS
            for part, kind in zip(Map._fields, (LONG, LONG, array(LONG, 3)), strict=True)
        },
        "bias_channel": LONG,
        "by_channels": LONG_FASTDIV,
        "by_size": array(LONG_FASTDIV, 3),
        **{name: array(INT, 3) for name in ("size", "before", "padded_size")},
        **dict.fromkeys(("padding_mode", "activation", "channels_fastest"), INT),
    },
)


def padded(problem: ConvProblem) -> ConvProblem:
    """Return the input gradient over the padded map, which has no padding and no epilogue."""
    size = tuple(i + sum(p) for i, p in zip(problem.input_size, problem.padding, strict=True))
    none = ((0, 0),) * problem.ndim
    plain: ConvProblem = problem.replace(
        input_size=size, padding=none, padding_mode="zeros", bias="none", activation=None, residual=False
    )
    return plain


def prepare_folded(work: Work, problem: ConvProblem, strides: Strides) -> Start:
    """Return what solves a problem by way of ``work``, which is `padded`."""
    (operand,) = work.problem.outputs
    scratch = contiguous(operand.shape, problem.layout == "channels_last")
    gather = prepare(work, (*strides[:2], scratch), problem.accumulator, 16)
    named = dict(zip((o.name for o in problem.inputs + problem.outputs), strides, strict=True))
    none = Map(0, 0, (0, 0, 0))
    out = Map.of(named["dx"])
    maps = {
        "padded": Map.of(scratch),
        "out": out,
        "residual": Map.of(named["residual"]) if problem.residual else none,
    }
    count = math.prod(problem.x_shape)
    parameters = PARAMETERS.pack(
        count=count,
        **{f"{name}_{part}": getattr(maps[name], part) for name in _MAPS for part in Map._fields},
        bias_channel=named["bias"][0] if problem.bias != "none" else 0,
        by_channels=fastdiv(problem.ic, 64),
        by_size=[fastdiv(size, 64) for size in _three(problem.input_size, 1)],
        size=_three(problem.input_size, 1),
        before=_three([p[0] for p in problem.padding], 0),
        padded_size=_three(work.problem.input_size, 1),
        padding_mode=PADDING_MODES[problem.padding_mode],
        activation=ACTIVATIONS[problem.activation],
        channels_fastest=0 < abs(out.channel) < abs(out.axis[2]),
    )
    launcher = launching.launcher()
    fold = launcher.prepare(
        Kernel("fold_padding.cu", "fold_padding", (("ELEMENT", ELEMENTS[problem.dtype]),)), (_THREADS, 1, 1)
    )
    elements = math.prod(operand.shape)

    def start(inputs: Arrays, outputs: Arrays) -> None:
        dy, w, *extras = inputs
        sums = launcher.empty(elements, problem.accumulator)
        gather((dy, w), (sums,))
        bias = extras[0] if problem.bias != "none" else None
        residual = extras[-1] if problem.residual else None
        fold((-(-count // _THREADS),), parameters, (sums, outputs[0], bias, residual))

    return start


def _three(values: Any, missing: int) -> tuple[int, ...]:
    return (*(missing,) * (3 - len(values)), *values)
