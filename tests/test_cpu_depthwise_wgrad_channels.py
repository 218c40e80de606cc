"""The weight gradient of depthwise convolution on channels-last maps."""

import math

import pytest
from sharing import check_threads_share

from fastconv import registry, testing
from fastconv.notation import parse_problem

ALGORITHM = registry.find("numba/depthwise_wgrad_channels")

# Pieces of tiles that differ: channels that no vector divides, several parts of them, bands of lines, kernels that
# are taken row by row, steps that no tile is compiled for.
SHAPES = [
    "conv2d n1 c1 i9 oc1 k3 p1 g1",
    "conv2d n2 c37 ih20 iw23 oc37 k3 p1 g37",
    "conv2d n3 c300 i7 oc300 k3 p1 g300",
    "conv2d n2 c40 ih21 iw33 oc40 k5 s2 p2 g40",
    "conv2d n1 c33 i30 oc33 kh7 kw8 p3 g33",
    "conv2d n1 c20 i25 oc20 k3 d2 p2 g20",
    "conv2d n1 c20 i33 oc20 k3 s3 d4 p3 g20",
    "conv2d n1 c20 i5 oc20 k3 p4 g20",
    "conv2d n1 c20 i12 oc20 k3 ph1:2 pw0:1 g20",
    "conv2d n9 c64 i40 oc64 k3 p1 g64",
    "conv3d n2 c20 i8 oc20 k3 s2 p1 g20",
    "conv3d n1 c20 id9 ih6 iw7 oc20 k3 d2 p2 g20",
]
PROBLEMS = [parse_problem(text).replace(direction="wgrad", layout="channels_last") for text in SHAPES]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=SHAPES)
def test_weight_gradients(problem, dtype):
    testing.check_problem(ALGORITHM, problem.replace(dtype=dtype))


@pytest.mark.parametrize("problem", PROBLEMS[1:], ids=SHAPES[1:])  # the first is one unit of work
def test_weight_gradients_on_any_number_of_threads(problem):
    check_threads_share(ALGORITHM, problem)


def test_some_are_summed_in_bands():
    works = [ALGORITHM.plan(problem).run.__self__.work for problem in PROBLEMS]
    assert {1} < {work.bands for work in works}
    assert {1} < {work.parts for work in works}


@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("operand", [0, 1], ids=["x", "dy"])
@pytest.mark.parametrize("problem", PROBLEMS[1:4], ids=SHAPES[1:4])
def test_specials_at_borders(problem, operand, special):
    inputs = testing.random_inputs(problem)
    inputs[operand][:, 0, -1, -1] = special
    outputs = testing.run(ALGORITHM, problem, inputs)
    testing.compare(problem, outputs, testing.exact(problem, inputs), ALGORITHM.error_bound(problem))


def test_an_empty_batch_gives_zeros():
    problem = parse_problem("conv2d:wgrad n0 c20 i8 oc20 k3 p1 g20 channels_last")
    (dw,) = testing.run(ALGORITHM, problem, testing.random_inputs(problem))
    assert not dw.any()
