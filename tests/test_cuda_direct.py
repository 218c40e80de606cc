"""Direct convolution on CUDA cores, in emulation: every problem of the shape sets, and what is special about it."""

from __future__ import annotations

import pytest
from cuda_emulation import Emulator, emulated

from fastconv import registry, testing
from fastconv.notation import parse_problem
from fastconv.problem import DTYPES, ConvProblem

KEY = "cuda/direct"
DIRECTIONS = ("fprop", "dgrad", "wgrad")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_problem_in_single_precision(direction):
    problems = [p for p in testing.problems() if isinstance(p, ConvProblem) and p.direction == direction]
    with emulated():
        testing.check_algorithm(registry.find(KEY), (p.replace(device="cuda") for p in problems))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_other_element_types(dtype, direction):
    text = f"conv2d:{direction} n2 c5 ih9 iw8 oc7 kh3 kw2 p1 s2 cuda"
    with emulated():
        testing.check_problem(registry.find(KEY), parse_problem(text).replace(dtype=dtype))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n3 c3 i13 oc4 k3 p1 cuda",
        "conv2d n1 c40 i3 oc5 k3 p1 bias residual relu cuda",
        "conv2d:dgrad n1 c3 i3 oc40 k3 p1 cuda channels_last",
        "linear n2 c300 oc5 bias cuda",
    ],
)
def test_long_reductions_are_split(text):
    with emulated() as emulator:
        testing.check_problem(registry.find(KEY), parse_problem(text))
    assert {"direct", "direct_sum"} == {kernel.name for kernel, _ in emulator.launched}


def test_phases_of_large_strides_take_several_launches():
    with emulated(Emulator()) as emulator:
        testing.check_problem(registry.find(KEY), parse_problem("conv2d:dgrad n1 c2 i11 oc3 k5 s4 p1 cuda"))
    assert max(grid[2] for _, grid in emulator.launched) == 8
