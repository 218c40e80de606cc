"""An input gradient as forward convolutions of stride 1: one for every phase of the stride.

The gradient ``dx[i]`` sums ``dy[o] * w[r]`` over all ``o * stride + r * dilation == i + padding``. Of a phase, that is
of all ``i`` with one remainder modulo the stride, every element sees the same taps ``r``, a step of ``stride /
gcd(stride, dilation)`` apart, and neighbours see neighbours of ``dy``: a convolution of stride 1 with these taps in
reverse order. So nothing is multiplied by inserted zeros.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fastconv.geometry import Axis, axes_of
from fastconv.problem import ConvProblem, Sizes


class Line(NamedTuple):
    """What the elements of one remainder are along one axis: a forward convolution, its own index apart.

    Attributes
    ----------
    length : int
        Elements of the gradient.
    kernel, dilation : int
        Taps, and how far apart they read; no taps where nothing contributes.
    start, size : int
        The part of ``dy`` that is read.
    before, after : int
        Zero padding around it.
    """

    length: int
    kernel: int = 0
    dilation: int = 1
    start: int = 0
    size: int = 0
    before: int = 0
    after: int = 0


class Member(NamedTuple):
    """A remainder along every axis, and the taps of the weight that it sees, in the forward kernel's order."""

    remainder: Sizes
    taps: tuple[range, ...]


class Group(NamedTuple):
    """Phases that read alike, so that one convolution does them all, their channels side by side."""

    lines: tuple[Line, ...]
    members: tuple[Member, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing contributes to these elements."""
        return any(line.kernel == 0 for line in self.lines)

    @property
    def is_padded(self) -> bool:
        return any(line.before or line.after for line in self.lines)

    @property
    def taps(self) -> int:
        """Taps of one member."""
        return math.prod(line.kernel for line in self.lines)


def line_of(
    remainder: int, size: int, out: int, kernel: int, stride: int, dilation: int, padding: int
) -> tuple[Line, range]:
    """Return what the elements of a remainder are along one axis, and their taps in the forward kernel's order."""
    count = -(-(size - remainder) // stride)
    common = math.gcd(stride, dilation)
    step, spread = stride // common, dilation // common
    first = next((r for r in range(min(step, kernel)) if (remainder + padding - r * dilation) % stride == 0), None)
    if first is None:
        return Line(count), range(0)
    taps = range(first, kernel, step)
    reach = spread * (len(taps) - 1)
    shift = (remainder + padding - first * dilation) // stride
    before, after = reach - shift, count + shift - out
    # Padding below zero: the ends of dy are not read.
    start, read = max(0, -before), out - max(0, -before) - max(0, -after)
    if read <= 0:
        return Line(count), range(0)
    spread = spread if len(taps) > 1 else 1
    return Line(count, len(taps), spread, start, read, max(0, before), max(0, after)), taps[::-1]


def groups_of(problem: ConvProblem, together: bool) -> list[Group]:
    """Return the phases of an input gradient, those that read alike ``together`` or each on its own."""
    return [_group(choice) for choice in itertools.product(*(_alike(lines, together) for lines in _lines_of(problem)))]


def contributions(problem: ConvProblem) -> tuple[bool, bool]:
    """Return whether anything contributes to some phase of an input gradient, and whether to every one.

    Axis by axis, which takes no time where strides are long: phases are as many as their product.
    """
    axes = [[line.kernel > 0 for _, line, _ in lines] for lines in _lines_of(problem)]
    return all(map(any, axes)), all(map(all, axes))


def _lines_of(problem: ConvProblem) -> list[list[tuple[int, Line, range]]]:
    """Return for every axis its remainders, and what `line_of` says of each."""
    axes = []
    for axis in axes_of(problem):
        assert isinstance(axis, Axis)
        size, out, kernel, stride, dilation, before, _ = axis
        axes.append([(a, *line_of(a, size, out, kernel, stride, dilation, before)) for a in range(min(stride, size))])
    return axes


def _alike(lines: Iterable[tuple[int, Line, range]], together: bool) -> list[tuple[Line, list[tuple[int, range]]]]:
    found: dict[tuple[int, Line], tuple[Line, list[tuple[int, range]]]] = {}
    for remainder, line, taps in lines:
        key = (0 if together else remainder, line)
        found.setdefault(key, (line, []))[1].append((remainder, taps))
    return list(found.values())


def _group(choice: Sequence[tuple[Line, list[tuple[int, range]]]]) -> Group:
    members = itertools.product(*(seen for _, seen in choice))
    return Group(
        tuple(line for line, _ in choice),
        tuple(Member(tuple(a for a, _ in member), tuple(taps for _, taps in member)) for member in members),
    )


def forward_problem(
    problem: ConvProblem, group: Group, images: int, prepacked: bool, whole_epilogue: bool
) -> ConvProblem:
    """Return the convolution of ``dy`` that computes the phases of a group, for so many images.

    With the ``whole_epilogue`` it adds the residual, too; else that is added at the end, and the activation after it.
    """
    lines = group.lines
    fields: dict[str, Any] = {} if problem.op == "linear" else {
        "kernel_size": tuple(line.kernel for line in lines),
        "dilation": tuple(line.dilation for line in lines),
        "padding": tuple((line.before, line.after) for line in lines),
    }  # fmt: skip
    return ConvProblem(
        op=problem.op,
        direction="fprop",
        n=images,
        ic=problem.oc,
        oc=problem.ic * len(group.members),
        input_size=tuple(line.size for line in lines),
        groups=problem.groups,
        bias=problem.bias,
        residual=problem.residual and whole_epilogue,
        activation=problem.activation if whole_epilogue or not problem.residual else None,
        prepacked=prepacked,
        dtype=problem.dtype,
        layout=problem.layout,
        device=problem.device,
        **fields,
    )
