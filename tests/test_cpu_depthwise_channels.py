"""Depthwise convolution on channels-last maps, with channels in the lanes."""

from __future__ import annotations

import math

import pytest
from sharing import check_threads_share

from fastconv import registry, testing
from fastconv.notation import parse_problem

ALGORITHM = registry.find("numba/depthwise_channels")

# Channels that no vector divides, or that fill a narrow one; several parts of them; planes of one tile and of an odd
# number of rows; kernels that are taken row by row, or in several groups of rows; steps that no tile is compiled for.
SHAPES = """
    conv2d n1 c1 i9 oc1 k3 p1 g1
    conv2d n2 c37 ih20 iw23 oc37 k3 p1 g37 bias relu
    conv2d n3 c300 i7 oc300 k3 p1 g300 residual
    conv2d n2 c8 ih21 iw33 oc8 k5 s2 p2 g8 bias residual sigmoid
    conv2d n1 c33 i30 oc33 kh7 kw8 p3 g33
    conv2d n1 c20 i31 oc20 kh9 kw3 p4:0 g20 bias
    conv2d n1 c32 i25 oc32 k3 d2 p2 g32
    conv2d n1 c20 i33 oc20 k3 s3 d4 p3 g20
    conv2d n1 c20 i5 oc20 k3 p4 g20 leaky_relu
    conv2d n1 c700 i5 oc700 k7 p3 g700
    conv2d n1 c16 ih1 iw40 oc16 k3 p1 g16
    conv2d n1 c20 i12 oc20 k3 ph1:2 pw0:1 g20
    conv2d n2 c20 i12 oc20 k3 p1:-1 g20
    conv1d n2 c20 i50 oc20 k5 p2 s2 d3 g20 bias
    conv3d n2 c20 i8 oc20 k3 s2 p1 g20 bias
    conv3d n1 c32 id9 ih6 iw7 oc32 k3 d2 p2 g32 residual
""".strip().splitlines()
SHAPES = [text.strip() for text in SHAPES]
PROBLEMS = [parse_problem(text).replace(layout="channels_last") for text in SHAPES]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=SHAPES)
def test_awkward_problems(problem, dtype):
    testing.check_problem(ALGORITHM, problem.replace(dtype=dtype))


@pytest.mark.parametrize("problem", PROBLEMS, ids=SHAPES)
def test_any_number_of_threads_gives_the_same_bits(problem):
    check_threads_share(ALGORITHM, problem)


def test_tiles_are_of_one_row_and_of_two():
    works = [ALGORITHM.plan(problem).run.__self__.work for problem in PROBLEMS]
    assert {1, 2} == {work.tile.rows for work in works}
    assert {1} < {work.parts for work in works}
    assert {1} < {work.axes[1].kernel // work.height for work in works}


@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("operand", [0, 1], ids=["x", "w"])
@pytest.mark.parametrize("problem", PROBLEMS[1:4], ids=SHAPES[1:4])
def test_specials_at_borders(problem, operand, special):
    inputs = testing.random_inputs(problem)
    inputs[operand][:, 0, -1, -1] = special
    outputs = testing.run(ALGORITHM, problem, inputs)
    testing.compare(problem, outputs, testing.exact(problem, inputs), ALGORITHM.error_bound(problem))


@pytest.mark.parametrize("change", [{"layout": "channels_first"}, {"padding_mode": "reflect"}, {"oc": 40}])
def test_what_others_do_is_refused(change):
    problem = parse_problem("conv2d n1 c20 i12 oc20 k3 p1 g20 channels_last")
    assert ALGORITHM.refuses(problem) is None
    assert ALGORITHM.refuses(problem.replace(**change)) is not None
