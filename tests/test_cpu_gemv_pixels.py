"""1x1 convolutions of channels-last maps with few outputs."""

from __future__ import annotations

import pytest
from sharing import check_threads_share

from fastconv import registry, testing
from fastconv.notation import parse_problem

ALGORITHM = registry.find("numba/gemv_pixels")

# Channels that fill no vector, or some; pixels that no tile divides; all that follows the sums.
SHAPES = """
    conv2d n1 ic1 i5 oc1 k1
    conv2d n2 ic37 i9 oc1 k1 bias
    conv2d n3 ic64 ih6 iw7 oc2 k1 bias residual relu
    conv2d n1 ic100 i11 oc4 k1 sigmoid prepacked
    conv2d n1 ic256 i60 oc3 k1 bias
    conv1d n2 ic20 i50 oc1 k1 prepacked
    conv3d n2 ic20 i5 oc3 k1 residual
""".strip().splitlines()
SHAPES = [text.strip() for text in SHAPES]
PROBLEMS = [parse_problem(text).replace(layout="channels_last") for text in SHAPES]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=SHAPES)
def test_awkward_problems(problem, dtype):
    testing.check_problem(ALGORITHM, problem.replace(dtype=dtype))


@pytest.mark.parametrize("problem", PROBLEMS, ids=SHAPES)
def test_any_number_of_threads_gives_the_same_bits(problem, monkeypatch):
    monkeypatch.setattr("fastconv.backends.cpu.gemv.work._WORTH", 1)  # most are so small that they are one unit
    check_threads_share(ALGORITHM, problem)


@pytest.mark.parametrize("change", [{"layout": "channels_first"}, {"stride": (2, 2)}, {"groups": 2}, {"oc": 10}])
def test_what_others_do_is_refused(change):
    problem = parse_problem("conv2d n1 ic20 i12 oc2 k1 channels_last")
    assert ALGORITHM.refuses(problem) is None
    assert ALGORITHM.refuses(problem.replace(**change)) is not None


@pytest.mark.parametrize("text", ["conv2d n1 ic20 i3 oc2 k1 s2 p1", "conv1d n1 ic20 i5 oc1 k1 s2 p2"])
def test_as_many_outputs_as_pixels_need_not_be_all_pixels(text):
    problem = parse_problem(text).replace(layout="channels_last")
    assert problem.output_size == problem.input_size
    assert ALGORITHM.refuses(problem) is not None
