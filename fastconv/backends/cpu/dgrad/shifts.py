"""An input gradient along one axis, all phases of the stride together: which taps each sums, and what of ``dy``.

The elements of the gradient from ``stride * i`` on, one a phase, read neighbouring elements of ``dy``: a window that
begins ``first`` behind the ``i``-th and steps by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastconv.algorithm import AnyProblem
from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.dgrad.phases import contributions
from fastconv.backends.cpu.phases import MOST_WAYS
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.geometry import Axis
from fastconv.problem import ConvProblem


class Shifts(NamedTuple):
    """What the phases sum.

    Attributes
    ----------
    first : int
        How far behind the window's number its first element of ``dy`` is.
    elements : int
        Elements of the window.
    terms : tuple of list
        For every phase the taps, and which of the elements each multiplies.
    """

    first: int
    elements: int
    terms: tuple[list[tuple[int, int]], ...]

    @property
    def read(self) -> list[int]:
        """Which of the window's elements a phase multiplies: few of them, where a dilation takes the taps far apart."""
        return sorted({place for terms in self.terms for _, place in terms})


def shifts_of(axis: Axis) -> Shifts:
    """Return what the phases along an axis of a convolution sum."""
    phases: list[list[tuple[int, int]]] = [[] for _ in range(axis.stride)]
    for tap in range(axis.kernel):
        reach = tap * axis.dilation - axis.before
        phases[reach % axis.stride].append((tap, -(reach // axis.stride)))
    places = [place for terms in phases for _, place in terms]
    first = min(places)
    counted = tuple([(tap, place - first) for tap, place in terms] for terms in phases)
    return Shifts(first, max(places) - first + 1, counted)


_LAYOUTS = {
    "channels_first": "takes columns that are neighbours, not channels",
    "channels_last": "takes channels that are neighbours, not columns",
}


def refuses_all_but_plain(problem: AnyProblem, layout: str = "channels_first") -> str | None:
    """Return why a problem is refused that is no plain gradient of a map that lies like this."""
    common = refuses_all_but("dgrad", problem)
    if common is not None:
        return common
    assert isinstance(problem, ConvProblem)
    if problem.ndim == 0:
        return "slides over spatial axes, of which a linear layer has none"
    if problem.padding_mode != "zeros":
        return f"adds up no border that the padding mode {problem.padding_mode!r} read twice"
    if problem.bias != "none" or problem.residual or problem.activation is not None:
        return "computes the plain gradient, with no bias, residual or activation"
    if problem.layout != layout:
        return _LAYOUTS[layout]
    if not contributions(problem)[0]:
        return "nothing contributes to the gradient"
    return refuses_halves(problem)


def refuses_all_but_woven(problem: AnyProblem) -> str | None:
    """Return why a problem is refused that is no plain gradient, or at a stride that registers do not weave."""
    common = refuses_all_but_plain(problem)
    if common is not None:
        return common
    assert isinstance(problem, ConvProblem)
    if max(problem.stride) > MOST_WAYS:
        return f"steps by at most {MOST_WAYS} elements, not by {problem.stride}"
    return None


def paddings(problem: ConvProblem) -> list[tuple[int, int]]:
    """Return the zeros before and after ``dy`` that all windows read; negative where some is not read."""
    found = []
    for axis, stride in zip(_axes(problem), problem.stride, strict=True):
        window, count = shifts_of(axis), -(-axis.size // stride)
        found.append((-window.first, count + window.first + window.elements - 1 - axis.out))
    return found


def window_problem(problem: ConvProblem, phases: int = 1) -> ConvProblem:
    """Return the convolution of ``dy`` with all windows of a gradient, which has so many ``phases`` as channels."""
    return ConvProblem(
        op=problem.op,
        direction="fprop",
        n=problem.n,
        ic=problem.oc,
        oc=problem.ic * phases,
        input_size=problem.output_size,
        kernel_size=tuple(shifts_of(axis).elements for axis in _axes(problem)),
        padding=tuple(paddings(problem)),
        groups=problem.groups,
        bias=problem.bias,
        activation=problem.activation,
        prepacked=True,
        dtype=problem.dtype,
        layout=problem.layout,
        device=problem.device,
    )


def stacked_problem(problem: ConvProblem) -> ConvProblem:
    """Return the convolution of ``dy`` that has all phases of a gradient as channels."""
    return window_problem(problem, math.prod(problem.stride))


def _axes(problem: ConvProblem) -> tuple[Axis, ...]:
    """Return the axes that a problem has."""
    return lifted_axes(problem)[-problem.ndim :]
