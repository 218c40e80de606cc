"""The weight gradient of fully connected layers, whose rows are written once."""

from __future__ import annotations

import numpy as np
import pytest
from fresh import python
from sharing import check_threads_share

from fastconv import dispatch, registry, testing
from fastconv.backends.cpu.gemv.wgrad_work import Work
from fastconv.backends.cpu.registers import Simd
from fastconv.machine import machine
from fastconv.notation import parse_problem
from fastconv.options import current

WGRAD = registry.find("numba/gemv_wgrad")
VECTORS = [Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True), Simd("none", 16, 16, False)]

# Rows and inputs that no tile divides, one row, one vector, less than one, more images than a panel holds, kernels that
# see the whole map.
SHAPES = """
    linear:wgrad n1 c100 oc37
    linear:wgrad n2 c33 oc1
    linear:wgrad n3 c16 oc3
    linear:wgrad n13 c130 oc300
    linear:wgrad n5 c7 oc9
    linear:wgrad n1 c1 oc4
    linear:wgrad n900 c300 oc5
    conv2d:wgrad n1 c5 i7 oc20 k7
    conv2d:wgrad n4 c40 i1 oc33 k1
    conv3d:wgrad n2 c3 id2 ih3 iw4 oc21 kd2 kh3 kw4
    conv1d:wgrad n6 c9 iw11 oc6 k11
""".strip().splitlines()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", SHAPES)
def test_shapes(text, dtype):
    problem = parse_problem(text).replace(dtype=dtype)
    testing.check_problem(WGRAD, problem)
    if problem.ndim:
        testing.check_problem(WGRAD, problem.replace(layout="channels_last"))


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["avx2", "none"])
def test_other_widths_of_vectors(vectors):
    """In a fresh process, since compiled kernels and plans know the width."""
    code = """
from test_cpu_gemv_wgrad import SHAPES, WGRAD
from fastconv import testing
from fastconv.notation import parse_problem
for text in SHAPES:
    testing.check_problem(WGRAD, parse_problem(text))
"""
    python(code, FASTCONV_SIMD=vectors)


def test_a_gradient_that_does_not_lie_in_one_piece():
    problem = parse_problem(SHAPES[0])
    inputs = testing.random_inputs(problem)
    apart = tuple(np.repeat(array, 2, axis=-1)[..., ::2] for array in inputs)
    dw = np.full((37, 200), np.nan, np.float32)[:, ::2]
    WGRAD.plan(problem).run(apart, (dw,))
    testing.compare(problem, (dw,), testing.exact(problem, inputs), WGRAD.error_bound(problem))


def test_threads_do_not_change_the_result():
    problem = parse_problem("linear:wgrad n3 c700 oc901")
    check_threads_share(WGRAD, problem, counts=range(1, machine().cores + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_stay_in_their_row_and_column(value):
    problem = parse_problem("linear:wgrad n3 c21 oc11")
    x, dy = testing.random_inputs(problem)
    x[1, 20], dy[2, 4] = value, value
    with np.errstate(invalid="ignore"):
        reference = testing.exact(problem, (x, dy))
    testing.compare(problem, testing.run(WGRAD, problem, (x, dy)), reference, WGRAD.error_bound(problem))


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("text", SHAPES)
def test_tiles_fit_the_registers(text, vectors):
    work = Work(parse_problem(text), vectors, 2, 1 << 20)
    assert work.rows * work.vectors + work.vectors + 1 <= vectors.registers
    assert work.rows <= work.outputs
    assert work.vectors == 1 or work.vectors * work.lanes <= work.terms
    assert work.units * work.share >= work.outputs


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("conv2d:wgrad n1 c16 i4 oc4 k3", "as large as the input"),
        ("conv2d:wgrad n1 c16 i1 oc4 k1 p1", "pads nothing"),
        ("conv2d:wgrad n1 c32 i3 oc4 k3 g2", "one group"),
        ("linear n1 c64 oc4", "weight gradients only"),
        ("linear:wgrad n1 c64 oc4 f16", "float16"),
    ],
)
def test_what_is_refused(text, why):
    assert why in str(WGRAD.refuses(parse_problem(text)))


@pytest.mark.parametrize(("images", "winner"), [(1, "numba/gemv_wgrad"), (2048, "numba/wgrad")])
def test_it_is_chosen_for_few_images(images, winner):
    problem = parse_problem(f"linear:wgrad n{images} c1024 oc1000")
    assert dispatch.survey(problem, current()).winner == winner
