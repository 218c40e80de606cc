"""A convolution's axes as the kernels see them: gathers, in every direction.

A gather's window at position ``t`` reads element ``t * stride + origin + j * dilation`` of a line through tap ``j``.
In ``fprop`` and ``wgrad`` that is the convolution itself. In ``dgrad`` position and element change places, and elements
that are ``stride`` apart form a *phase*: each phase is a gather of stride 1 of its own, with every so-manieth tap.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, TypeAlias

from fastconv import geometry
from fastconv.backends.cuda.parameters import FASTDIV, INT, fastdiv, nested
from fastconv.problem import ConvProblem

# ``Axis`` of kernels/convolution.cuh.
AXIS = nested(
    {
        **dict.fromkeys(("positions", "taps", "stride", "origin", "dilation", "size"), INT),
        "by_positions": FASTDIV,
        "by_taps": FASTDIV,
    }
)

PADDING_MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}


class Axis(NamedTuple):
    """One axis of one phase.

    Tap ``j`` is the kernel's ``first_tap + j * tap_step``; the result of position ``t`` is at ``first_out + t *
    out_step`` of its line.
    """

    positions: int
    taps: int
    stride: int
    origin: int
    dilation: int
    size: int
    first_tap: int = 0
    tap_step: int = 1
    first_out: int = 0
    out_step: int = 1

    def packed(self) -> tuple[object, ...]:
        """Return the values of the kernels' struct."""
        return (*self[:6], fastdiv(max(self.positions, 1)), fastdiv(max(self.taps, 1)))


Phase: TypeAlias = tuple[Axis, Axis, Axis]

_POINT = Axis(1, 1, 1, 0, 1, 1)


def phases(problem: ConvProblem) -> list[Phase]:
    """Return the gathers that make up a problem: one, or for an input gradient one a phase. Axes are always three."""
    lines = [axis[:6] for axis in geometry.axes_of(problem) if isinstance(axis, geometry.Axis)]
    if problem.direction == "dgrad":
        axes = [_phases(*line) for line in lines]
    else:
        axes = [[Axis(o, k, s, -before, d, i)] for i, o, k, s, d, before in lines]
    axes = [[_POINT]] * (3 - problem.ndim) + axes
    return [(a, b, c) for a, b, c in itertools.product(*axes)]


def _phases(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> list[Axis]:
    # x[i] meets dy[o] through k where i + before = o * stride + k * dilation.
    common = math.gcd(stride, dilation)
    found = []
    for first in range(min(stride, size)):
        start = first + before
        tap = next((k for k in range(stride // common) if (start - k * dilation) % stride == 0), kernel)
        taps = max(0, -(-(kernel - tap) // (stride // common)))
        found.append(
            Axis(
                positions=-(-(size - first) // stride),
                taps=taps,
                stride=1,
                origin=(start - tap * dilation) // stride if taps else 0,
                dilation=-(dilation // common),
                size=out,
                first_tap=tap,
                tap_step=stride // common,
                first_out=first,
                out_step=stride,
            )
        )
    return found
