"""Winograd's convolution in emulation: forward and the gradient of the input, and numbers that are not finite."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from cuda_emulation import emulated

from fastconv import registry, testing
from fastconv.backends.cpu.winograd import points
from fastconv.backends.cuda import sources
from fastconv.notation import parse_problem

KEY = "cuda/winograd4"

PROBLEMS = """
    conv2d n2 c13 ih9 iw10 oc35 k3 p1 bias residual relu
    conv2d n1 c20 ih5 iw11 oc16 k3 p0:2 channels_last bias sigmoid
    conv2d n5 c12 i12 oc12 k3
""".strip().splitlines()


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_problems(direction):
    algorithm = registry.find(KEY)
    with emulated():
        for text in PROBLEMS:
            problem = parse_problem(text).replace(device="cuda", direction=direction)
            assert algorithm.refuses(problem) is None, text
            testing.check_problem(algorithm, problem)


def test_end_of_the_input_is_not_read():
    with emulated():
        testing.check_problem(registry.find(KEY), parse_problem("conv2d n1 c12 i7 oc12 k3 p1:-1 cuda"))


@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_numbers_that_are_not_finite_stay_where_they_are(direction, value):
    problem = parse_problem(f"conv2d:{direction} n1 c12 i11 oc12 k3 p1 cuda")
    source, weight = testing.random_inputs(problem)
    source[0, 3, 4, 9] = value
    if np.isinf(value):
        weight[1, 2, 0, 0] = -value
    else:
        weight *= np.float32(0.1)
    algorithm = registry.find(KEY)
    with emulated():
        outputs = testing.run(algorithm, problem, (source, weight))
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (source, weight))
        testing.compare(problem, outputs, expected, algorithm.error_bound(problem))


def test_points_are_those_of_the_smallest_error():
    known = dict(re.findall(r"([AB]) = ([\d.]+)f", sources.source("winograd.cu")))
    first, second = (Fraction(known[name]) for name in "AB")
    assert points.matrices(4, 3).output[1] == tuple(map(float, (0, first, -first, second, -second, 0)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv2d:wgrad n1 c16 i9 oc16 k3", "gradients of their inputs only"),
        ("conv2d n1 c16 i9 oc16 k3 s2", "stride 1"),
        ("conv2d n1 c16 i9 oc16 k5", "3x3"),
        ("conv2d n1 c16 i9 oc16 k3 g2", "one group"),
        ("conv2d n1 c16 i9 oc16 k3 f64", "float32"),
        ("conv2d n1 c1 i9 oc16 k3 p1", "fewer than 12 products"),
        ("conv2d n1 c16 i9 oc16 k3 p1 circular", "pads with zeros"),
        ("conv2d:dgrad n1 c12 i7 oc12 k3 p1:-1", "fewer than 12 products"),
    ],
)
def test_refuses_with_a_reason(text, reason):
    with emulated():
        assert reason in registry.find(KEY).refuses(parse_problem(f"{text} cuda"))


def test_is_left_out_where_every_result_must_be_a_plain_sum():
    assert not registry.find(KEY).strict
