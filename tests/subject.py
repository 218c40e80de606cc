"""What tests of choice choose for: one small convolution, its data and its result."""

from __future__ import annotations

import numpy as np

import fastconv as fc
from fastconv import dispatch, testing
from fastconv.notation import format_problem, parse_problem

TEXT = "conv2d:fprop n2 ic3 ih8 iw8 oc4 kh3 kw3 p1 f32"
PROBLEM = parse_problem(TEXT)
FORMS = (TEXT, format_problem(PROBLEM.replace(prepacked=True)))
X, W = testing.integer_inputs(PROBLEM)
Y = fc.conv2d(X, W, padding=1, backend="reference")


def conv() -> np.ndarray:
    """Return the convolution by whatever is chosen now."""
    return fc.conv2d(X, W, padding=1)


def candidate(key: str, choice: dispatch.Choice | None = None) -> dispatch.Candidate:
    """Return what a choice, by default that for `PROBLEM`, says of an algorithm."""
    (found,) = (c for c in (choice or fc.explain(PROBLEM)).candidates if c.algorithm == key)
    return found
