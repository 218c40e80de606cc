"""Convolution of small groups in emulation: forward and the gradient of the input, both memory orders."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import emulated

from fastconv import registry, testing
from fastconv.notation import parse_problem

KEY = "cuda/grouped"

PROBLEMS = """
    conv2d n2 c8 i9 oc8 k3 p1 g2 bias residual relu
    conv2d n2 c8 ih9 iw12 oc16 k3 p1 s2 g2
    conv2d n1 c6 ih9 iw10 oc4 k2 s3 p1 g2 d2 sigmoid
    conv2d n1 c8 ih9 iw12 oc24 kh3 kw2 s2 d2 p1:0 g2
    conv2d n2 c16 i8 oc16 k3 p1 s2 g4 channels_last bias residual
    conv2d n2 c12 i7 oc6 k3 p1:-1 g3 channels_last
    conv1d n3 c8 i40 oc8 k3 p1 g4
    conv2d n1 c64 ih5 iw70 oc64 k3 p1 g2
    conv2d n9 c4 i3 oc4 k1 g2 bias
""".strip().splitlines()


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_single_precision(direction):
    algorithm = registry.find(KEY)
    with emulated():
        for text in PROBLEMS:
            problem = parse_problem(text).replace(device="cuda", direction=direction)
            assert algorithm.refuses(problem) is None, text
            testing.check_problem(algorithm, problem)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "text", ["conv2d:dgrad n1 c8 i16 oc8 k3 p1 g2", "conv2d n1 c32 i6 oc32 k3 p1 g4 channels_last bias relu"]
)
def test_other_element_types(dtype, text):
    with emulated():
        testing.check_problem(registry.find(KEY), parse_problem(f"{text} cuda").replace(dtype=dtype))


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_infinity_stays_where_the_reference_has_it(direction):
    problem = parse_problem(f"conv2d:{direction} n1 c8 i9 oc8 k3 p1 g2 cuda")
    source, weight = testing.random_inputs(problem)
    source[0, 1, 6:, 6:] = np.inf
    weight[2, 1, 0, 0] = -np.inf
    algorithm = registry.find(KEY)
    with emulated():
        outputs = testing.run(algorithm, problem, (source, weight))
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (source, weight))
        testing.compare(problem, outputs, expected, algorithm.error_bound(problem))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv2d n1 c80 i9 oc80 k3 g2", "at most 32 channels"),
        ("conv2d:wgrad n1 c8 i9 oc8 k3 g2", "gradients of their inputs only"),
        ("conv3d n1 c4 i9 oc4 k3 g2", "one and two dimensions"),
        ("conv2d n1 c4 i9 oc4 k3 p1 g2 reflect", "pads with zeros"),
        ("conv2d n1 c4 i130 oc4 k120 g2", "do not fit"),
    ],
)
def test_refuses_with_a_reason(text, reason):
    with emulated():
        assert reason in registry.find(KEY).refuses(parse_problem(f"{text} cuda"))
