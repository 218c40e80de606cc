"""Depthwise convolution and its gradients in emulation: both kernels of each direction, and all of their variants."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import emulated

from fastconv import registry, testing
from fastconv.backends.cuda.depthwise import work
from fastconv.notation import parse_problem

KEY = "cuda/depthwise"

PROBLEMS = """
    conv2d n2 c6 i9 oc6 k3 p1 g6 bias leaky_relu
    conv2d n1 c3 ih15 iw16 oc3 k3 s2 p1 g3 bias residual relu
    conv2d n1 c3 ih15 iw16 oc6 kh3 kw2 s2 p1 d2 g3 sigmoid
    conv2d n1 c8 ih7 iw8 oc8 k3 p1 g8 channels_last bias residual
    conv2d n1 c8 ih11 iw10 oc8 k3 s2 p1 g8 channels_last
    conv2d n1 c6 ih7 iw8 oc12 k3 p1 g6 channels_last bias
    conv1d n2 c6 i33 oc6 k4 p1:5 s2 g6
    conv1d n2 c6 i11 oc6 k3 p1 g6 channels_last
    conv2d n1 c2 ih3 iw300 oc2 k3 p1 g2
    conv2d n1 c3 i7 oc3 k3 p1:-1 d2 g3
    conv2d n1 c2 i20 oc2 k13 p6 g2
    conv2d n1 c8 ih11 iw10 oc16 k3 s2 p1 g8 channels_last
    conv2d n1 c3 i9 oc6 kh3 kw2 sh2 sw3 p1 dh2 g3
""".strip().splitlines()


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_single_precision(direction):
    algorithm = registry.find(KEY)
    with emulated():
        for text in PROBLEMS:
            problem = parse_problem(text).replace(device="cuda", direction=direction)
            if direction == "wgrad":
                problem = problem.replace(bias="none", residual=False, activation=None)
            elif problem.bias != "none":
                problem = problem.replace(bias="channel")
            assert algorithm.refuses(problem) is None, text
            testing.check_problem(algorithm, problem)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d n1 c3 i16 oc3 k5 p2 g3 bias relu",
        "conv2d:dgrad n1 c16 i7 oc16 k3 p1 g16 channels_last",
        "conv2d:wgrad n1 c16 i7 oc16 k3 p1 g16 channels_last",
        "conv2d:wgrad n1 c3 i16 oc3 k3 p1 g3",
    ],
)
def test_other_element_types(dtype, text):
    with emulated():
        testing.check_problem(registry.find(KEY), parse_problem(f"{text} cuda").replace(dtype=dtype))


@pytest.mark.parametrize("layout", ["", "channels_last"])
@pytest.mark.parametrize("size", work.UNROLLED)
def test_unrolled_kernels(size, layout):
    with emulated() as emulator:
        for direction in ("fprop", "dgrad", "wgrad"):
            text = f"conv2d:{direction} n1 c8 ih9 iw12 oc8 k{size} p{size // 2} g8 {layout} cuda"
            testing.check_problem(registry.find(KEY), parse_problem(text))
    assert {dict(kernel.defines)["KERNEL_HEIGHT"] for kernel, _ in emulator.launched} == {str(size)}


@pytest.mark.parametrize("rows", work._ROWS)
@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_rows_of_a_thread(direction, rows, monkeypatch):
    """They do not divide the map's, of which the last would run into the next plane."""
    monkeypatch.setattr(work, "_ROWS", (rows,))
    with emulated() as emulator:
        for kernel in ("k3 p1", "k2"):
            problem = parse_problem(f"conv2d:{direction} n2 c3 ih17 iw10 oc3 {kernel} g3 cuda")
            testing.check_problem(registry.find(KEY), problem)
    assert {dict(kernel.defines).get("ROWS") for kernel, _ in emulator.launched} - {None} == {str(rows)}


def test_reduction_of_a_weight_gradient_is_shared():
    with emulated() as emulator:
        testing.check_problem(registry.find(KEY), parse_problem("conv2d:wgrad n4 c2 i64 oc2 k3 p1 g2 cuda"))
    assert max(grid[1] for kernel, grid in emulator.launched if kernel.name == "depthwise_planes_wgrad") > 1


@pytest.mark.parametrize("layout", ["", "channels_last"])
@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_infinity_stays_where_the_reference_has_it(direction, layout):
    problem = parse_problem(f"conv2d:{direction} n1 c4 i9 oc4 k3 p1:0 g4 cuda {layout}")
    first, second = testing.random_inputs(problem)
    first[0, 1, 6:, 6:] = np.inf
    second[0, ..., 0, 0] = -np.inf
    algorithm = registry.find(KEY)
    with emulated():
        outputs = testing.run(algorithm, problem, (first, second))
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (first, second))
        testing.compare(problem, outputs, expected, algorithm.error_bound(problem))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv2d n1 c4 i9 oc8 k3", "one input channel a group"),
        ("conv3d n1 c4 i9 oc4 k3 g4", "one and two dimensions"),
        ("conv2d n1 c4 i9 oc4 k3 p1 g4 reflect", "pads with zeros"),
        ("conv2d n1 c1 i70 oc1 k50", "more than 2000"),
        ("conv1d n1 c4 i2000 oc4 k2 d1000 g4", "does not fit"),
    ],
)
def test_refuses_with_a_reason(text, reason):
    with emulated():
        assert reason in registry.find(KEY).refuses(parse_problem(f"{text} cuda"))
