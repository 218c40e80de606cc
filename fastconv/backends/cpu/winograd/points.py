"""The matrices of Winograd's minimal filtering: ``y = A^T [(G g) * (B^T d)]`` for m outputs of a few taps.

Toom and Cook's construction: two polynomials are multiplied by their values at points (infinity among them).
Which points matters for rounding alone. Errors in float32 over 64 channels, the root of their mean square as a share
of max|y|, where both axes are filtered: F(2,3) 0.7e-7; F(4,3) 4.1e-7 with the usual points 1 and 2, 2.7e-7 with 1, -1,
1/2 and -2, and 1.8e-7 with those below, the best among fractions of few bits; F(6,3) 8e-7, the best that points of
either sign give. Where one axis is, more points can be afforded.

Tiles of ten inputs and more have imaginary points, too, r i and -r i: the values at both follow from one complex
product, which is three real ones, one more than two real points take. With these, all points stay near 1.

Sources: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016); Barabasz et al., "Error Analysis
and Improving the Accuracy of Winograd Convolution for Deep Neural Networks" (2020); Barabasz and Gregg, "Winograd
Convolution for DNNs: Beyond Linear Polynomials" (2019).
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache
from typing import NamedTuple, TypeAlias

Matrix: TypeAlias = tuple[tuple[float, ...], ...]
_Polynomial: TypeAlias = list[Fraction]  # the constant first

# Of a tile of so many inputs, the points beside infinity, and 0 where inputs are even in number, with either sign, so
# that two transformed values share even and odd parts: the real ones, and the imaginary ones.
_POINTS: dict[int, tuple[tuple[Fraction, ...], tuple[Fraction, ...]]] = {
    3: ((Fraction(1),), ()),
    4: ((Fraction(1),), ()),
    5: ((Fraction(3, 8), Fraction(5, 4)), ()),
    6: ((Fraction(5, 8), Fraction(3, 2)), ()),
    8: ((Fraction(1, 2), Fraction(1), Fraction(2)), ()),
    10: ((Fraction(5, 8), Fraction(1), Fraction(13, 8)), (Fraction(1),)),
    12: ((Fraction(5, 8), Fraction(1), Fraction(13, 8)), (Fraction(3, 4), Fraction(5, 4))),
}


class Matrices(NamedTuple):
    """The transforms of input, filter and output; rows are results."""

    data: Matrix
    filter: Matrix
    output: Matrix


@cache
def matrices(m: int, taps: int) -> Matrices:
    """Return B^T, G and A^T of F(m, taps)."""
    if m == taps == 1:
        return Matrices(*(((1.0,),),) * 3)
    real, imaginary = _POINTS[m + taps - 1]
    points = [Fraction(0)] * ((m + taps) % 2) + [sign * p for p in real for sign in (1, -1)]
    # What the points are the roots of: x - p, and x^2 + r^2 of those that are r i and -r i.
    linear = [[-point, Fraction(1)] for point in points]
    quadratic = [[r * r, Fraction(0), Fraction(1)] for r in imaginary]
    data, filters, outputs = [], [], []
    for place, point in enumerate(points):
        others = _product([*linear[:place], *linear[place + 1 :], *quadratic])
        data.append([*others, Fraction(0)])
        scale = _value(others, point)
        filters.append([point**k / scale for k in range(taps)])
        outputs.append([point**k for k in range(m)])
    for place, r in enumerate(imaginary):
        # It is odd, so at r i it is a real number times r i.
        others = _product([*linear, *quadratic[:place], *quadratic[place + 1 :]])
        scale = _value(others[1::2], -r * r) * r * r
        # What the products of real parts, of imaginary parts and of their sums have to do with the result.
        shares = ((r, Fraction(1), -1), (-r, Fraction(1), 1), (r, Fraction(0), 1))
        for (constant, slope, sign), g, y in zip(shares, _powers(r, taps), _powers(r, m), strict=True):
            data.append([*_product([others, [constant, slope]]), Fraction(0)])
            filters.append([sign * part / scale for part in g])
            outputs.append(y)
    data.append(_product([*linear, *quadratic]))
    filters.append([Fraction(k == taps - 1) for k in range(taps)])
    outputs.append([Fraction(k == m - 1) for k in range(m)])
    results = (data, filters, zip(*outputs, strict=True))
    return Matrices(*(tuple(tuple(map(float, row)) for row in matrix) for matrix in results))


def products_of(m: int, taps: int) -> int:
    """Return how many multiplications F(m, taps) takes."""
    return len(matrices(m, taps).data)


def _powers(r: Fraction, count: int) -> list[_Polynomial]:
    """Return the real and the imaginary parts of the first powers of r i, and their sums."""
    real, imaginary = ([r**k * (1, 0, -1, 0)[(k + turn) % 4] for k in range(count)] for turn in (0, 3))
    return [real, imaginary, [a + b for a, b in zip(real, imaginary, strict=True)]]


def _product(factors: list[_Polynomial]) -> _Polynomial:
    result = [Fraction(1)]
    for factor in factors:
        so_far, result = result, [Fraction(0)] * (len(result) + len(factor) - 1)
        for (i, a), (j, b) in itertools.product(enumerate(so_far), enumerate(factor)):
            result[i + j] += a * b
    return result


def _value(polynomial: _Polynomial, x: Fraction) -> Fraction:
    return sum((c * x**k for k, c in enumerate(polynomial)), Fraction(0))
