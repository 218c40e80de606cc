"""The axes of a problem, three of them whatever the problem has."""

from __future__ import annotations

from fastconv.geometry import Axis, axes_of
from fastconv.problem import AXES, ConvProblem, PoolProblem, Sizes


def lifted_axes(problem: ConvProblem | PoolProblem) -> tuple[Axis, ...]:
    """Return depth, rows and columns; axes that the problem lacks have size 1. No adaptive pool has such."""
    axes = axes_of(problem)
    missing = (Axis(1, 1, 1, 1, 1, 0, "zeros"),) * (len(AXES) - problem.ndim)
    return missing + tuple(axis for axis in axes if isinstance(axis, Axis))


def inside(axis: Axis) -> tuple[int, int]:
    """Return which of the padded positions that are read are the input itself."""
    end = axis.extent(axis.out)
    return min(axis.before, end), min(axis.before + axis.size, end)


def are_contiguous(strides: Sizes, shape: Sizes, size: int) -> bool:
    """Whether elements of a size lie in one piece; the stride of an axis of one position says nothing."""
    expected = size
    for stride, count in zip(reversed(strides), reversed(shape), strict=True):
        if count > 1 and stride != expected:
            return False
        expected *= count
    return True
