"""Convolution of small groups in emulation: forward and both gradients, both memory orders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cuda_emulation import Emulator, emulated
from cuda_emulation.emulator import PROPERTIES

from fastconv import registry, testing
from fastconv.backends.cuda.grouped.wgrad import WgradWork
from fastconv.backends.cuda.grouped.work import Work
from fastconv.notation import parse_problem
from fastconv.options import options

KEY = {"fprop": "cuda/grouped", "dgrad": "cuda/grouped", "wgrad": "cuda/grouped_wgrad"}

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


@pytest.mark.parametrize("direction", KEY)
def test_single_precision(direction):
    algorithm = registry.find(KEY[direction])
    with emulated():
        for text in PROBLEMS:
            plain = {"bias": "none", "activation": None, "residual": False} if direction == "wgrad" else {}
            problem = parse_problem(text).replace(device="cuda", direction=direction, **plain)
            assert algorithm.refuses(problem) is None, text
            testing.check_problem(algorithm, problem)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d:dgrad n1 c8 i16 oc8 k3 p1 g2",
        "conv2d n1 c32 i6 oc32 k3 p1 g4 channels_last bias relu",
        "conv2d:wgrad n2 c8 i16 oc8 k3 p1 g2",
        "conv2d:wgrad n2 c32 i6 oc32 k5 p2 g2 channels_last",
    ],
)
def test_other_element_types(dtype, text):
    problem = parse_problem(f"{text} cuda").replace(dtype=dtype)
    with emulated():
        testing.check_problem(registry.find(KEY[problem.direction]), problem)


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n3 c64 i9 oc64 k3 p1 g2",
        "conv2d:wgrad n3 c64 i9 oc36 k3 p1 s2 g2 channels_last",
        "conv2d:wgrad n7 c6 i20 oc10 kh5 kw9 p2 d2 g2",
        "conv1d:wgrad n3 c12 i50 oc12 k11 p5 g3",
        "conv2d:wgrad n2 c40 i7 oc40 k1 g2",
    ],
)
def test_weight_gradients_of_many_units_and_tiles(text):
    """More sums than a block has threads; taps and channels that fill no vector; parts of the images added up."""
    problem = parse_problem(f"{text} cuda")
    small = Emulator(properties=dataclasses.replace(PROPERTIES, multiprocessors=1))
    with emulated() as emulator, options(max_workspace=1 << 20):
        testing.check_problem(registry.find("cuda/grouped_wgrad"), problem)
    assert {kernel.name for kernel, _ in emulator.launched} == {"grouped_wgrad", "grouped_wgrad_sum"}
    with emulated(small), options(max_workspace=0):  # in one part
        testing.check_problem(registry.find("cuda/grouped_wgrad"), problem)


@pytest.mark.parametrize("taps", [7, 5, 4])
def test_taps_of_a_thread(taps):
    problem = parse_problem(f"conv2d:wgrad n2 c8 i9 oc8 k{taps} p2 g2 cuda")
    with emulated() as emulator:
        testing.check_problem(registry.find("cuda/grouped_wgrad"), problem)
    assert {dict(kernel.defines)["TAPS"] for kernel, _ in emulator.launched} == {str(taps)}


def test_weight_gradients_of_any_strides():
    problem = parse_problem("conv2d:wgrad n2 c16 i9 oc16 k3 p1 s2 g4 cuda")
    algorithm = registry.find("cuda/grouped_wgrad")
    inputs = testing.random_inputs(problem)
    with emulated():
        plan = algorithm.plan(problem)
        for turned in (inputs, tuple(np.ascontiguousarray(a.T).T for a in inputs),
                       tuple(np.ascontiguousarray(a[:, :, ::-1])[:, :, ::-1] for a in inputs)):  # fmt: skip
            whole = np.zeros([2 * size for size in problem.w_shape], np.float32)
            dw = whole[::-2, ::2, ::-2, ::2]
            plan.run(turned, (dw,))
            exact = testing.exact(problem, inputs)
            testing.compare(problem, (dw,), exact, algorithm.error_bound(problem))


def check_infinities(problem):
    """Check that these are where the reference has them: in both operands, of the first in a corner and at an edge."""
    source, weight = testing.random_inputs(problem)
    source[0, 1, 6:, 6:] = np.inf
    source[-1, 0, 2, -1] = np.inf  # which the first tap of a row does not reach
    weight[0 if problem.direction == "wgrad" else 2, 1, 0, 0] = -np.inf
    algorithm = registry.find(KEY[problem.direction])
    with emulated():
        outputs = testing.run(algorithm, problem, (source, weight))
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (source, weight))
        testing.compare(problem, outputs, expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("direction", KEY)
def test_infinity_stays_where_the_reference_has_it(direction):
    check_infinities(parse_problem(f"conv2d:{direction} n1 c8 i9 oc8 k3 p1 g2 cuda"))


@pytest.mark.parametrize("layout", ["", "channels_last"])
@pytest.mark.parametrize("direction", KEY)
def test_tiles_that_nothing_fills(direction, layout, monkeypatch):
    """Groups, rows and columns are left over, whatever tile would take the least time."""
    monkeypatch.setattr(Work, "tile", lambda self, *form: self._tile(*form, 5, 2)._replace(groups=2))
    monkeypatch.setattr(WgradWork, "tile", lambda self, *form: self._tile(*form, 2, 5)._replace(groups=2))
    problem = parse_problem(f"conv2d:{direction} n2 c12 ih9 iw11 oc12 k3 p1 g3 {layout} cuda")
    with emulated():
        testing.check_problem(registry.find(KEY[direction]), problem)
    check_infinities(problem)


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
        assert reason in registry.find("cuda/grouped").refuses(parse_problem(f"{text} cuda"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv2d:wgrad n1 c80 i9 oc80 k3 g2", "at most 32 channels"),
        ("conv2d n1 c8 i9 oc8 k3 g2", "gradients of weights only"),
        ("conv2d:wgrad n1 c4 i130 oc4 k120 g2", "does not fit"),
    ],
)
def test_weight_gradient_refuses_with_a_reason(text, reason):
    with emulated():
        assert reason in registry.find("cuda/grouped_wgrad").refuses(parse_problem(f"{text} cuda"))
