"""Weights of any memory order: every algorithm of the CPU engine reads them as those in C order."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from fastconv import registry, testing
from fastconv.backends.cpu import ordering
from fastconv.notation import parse_problem

ORDERS = list(itertools.permutations(range(4)))

# Sizes that whole vectors fill, and that they do not; kernels of one element; long runs.
SHAPES = [(64, 48, 3, 3), (33, 17, 3, 3), (5, 300, 2, 2), (100, 3, 7, 5), (40, 56, 1, 1), (17, 9, 1, 11)]

PROBLEMS = """
    conv2d n1 ic40 i8 oc48 k3 p1
    conv2d n1 ic40 i8 oc48 k3 p1 channels_last
    conv2d:dgrad n1 ic48 i8 oc40 k3 p1
    conv2d:dgrad n1 ic48 i8 oc40 k3 p1 channels_last
    conv2d:dgrad n2 ic48 i9 oc40 k4 p1 s2
    conv2d:dgrad n2 ic48 i9 oc40 k4 p1 s2 channels_last
    conv2d n1 ic240 i8 oc240 k3 p1 g30
    conv2d:dgrad n1 ic3 i16 oc128 k7 p3 s2
    conv2d n1 ic3 i16 oc128 k7 p3 s2
    conv2d n1 ic150 i1 oc160 k1
    conv2d n1 ic32 i6 oc24 k6
    conv2d:dgrad n1 ic32 i6 oc24 k6
""".strip().splitlines()


def in_order(array, order):
    """Return the same values, whose axes follow one another in memory in this order."""
    return np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_orders_are_copied_to_c_order(monkeypatch, shape, dtype, threads):
    monkeypatch.setattr(ordering, "_FEW", 0)
    values = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for order in ORDERS:
        w = in_order(values, order)
        for view in (w, w[:, :, ::-1, ::-1], w.swapaxes(0, 1)[:, :, ::-1, ::-1], w[:, ::2], w[1:-1]):
            assert np.array_equal(ordering.ordered(view, threads), view)
            assert np.array_equal(np.sort(ordering.in_any_order(view), None), np.sort(view, None))


@pytest.mark.parametrize("text", PROBLEMS, ids=str.strip)
@pytest.mark.parametrize("prepacked", [False, True])
def test_no_algorithm_minds_the_order_of_a_weight(text, prepacked):
    problem = parse_problem(text).replace(prepacked=prepacked)
    inputs = testing.random_inputs(problem)
    expected = testing.exact(problem, inputs)
    other = in_order(np.full_like(inputs[1], np.nan), (2, 3, 1, 0))
    for algorithm in registry.algorithms():
        if algorithm.backend != "numba" or algorithm.refuses(problem) is not None:
            continue
        plan = algorithm.plan(problem)
        for order in ((0, 2, 3, 1), (2, 3, 1, 0), (2, 3, 0, 1), (1, 0, 2, 3)):
            outputs = tuple(testing.laid_out(o, problem.layout, np.nan) for o in problem.outputs)
            ready = plan.packed((inputs[0], in_order(inputs[1], order)))
            if prepacked:  # which is not in memory that the next call uses
                plan.packed((inputs[0], other))
            plan.run(ready, outputs)
            testing.compare(problem, outputs, expected, algorithm.error_bound(problem))
