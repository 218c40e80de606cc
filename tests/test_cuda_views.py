"""Views that no vector of 16 bytes fits, in emulation, where misaligned accesses are errors."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import emulated
from test_cuda_far import CASES

from fastconv import registry, testing
from fastconv.notation import parse_problem

# Maps whose columns come in whole vectors, where memory does not forbid it.
EVEN = [
    ("cuda/direct", "conv2d n2 c4 i8 oc8 k3 p1 bias residual"),
    ("cuda/depthwise", "conv2d n2 c8 i8 oc8 k3 p1 g8 bias residual"),
    ("cuda/depthwise", "conv2d:wgrad n2 c8 i8 oc8 k3 p1 g8"),
    ("cuda/grouped", "conv2d n2 c8 i8 oc8 k3 p1 g2 bias residual"),
    ("cuda/grouped_wgrad", "conv2d:wgrad n2 c8 i8 oc8 k3 p1 g2"),
]


def shifted(array):
    """Return the same values and strides, one element behind an aligned address."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = np.zeros((high - low) // array.itemsize + 1, array.dtype)
    view = np.ndarray(array.shape, array.dtype, memory, array.itemsize, array.strides)
    view[...] = array
    return view


def gapped(array):
    """Return the same values in the same memory order, at an aligned address, with a gap behind every axis."""
    strides, step = [0] * array.ndim, array.itemsize
    for axis in sorted(range(array.ndim), key=lambda axis: array.strides[axis]):
        strides[axis] = step
        step *= array.shape[axis] + 1
    view = np.ndarray(array.shape, array.dtype, np.zeros(step, np.uint8), 0, tuple(strides))
    view[...] = array
    return view


@pytest.mark.parametrize("seen", [shifted, gapped])
@pytest.mark.parametrize(("key", "text"), CASES + EVEN)
def test_views(key, text, seen):
    problem, algorithm = parse_problem(f"{text} cuda"), registry.find(key)
    inputs = testing.random_inputs(problem)
    outputs = tuple(seen(testing.laid_out(operand, problem.layout, 0)) for operand in problem.outputs)
    with emulated():
        algorithm.plan(problem).run(tuple(map(seen, inputs)), outputs)
    testing.compare(problem, outputs, testing.exact(problem, inputs), algorithm.error_bound(problem))
