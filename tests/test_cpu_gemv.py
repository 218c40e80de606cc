"""Fully connected layers on the CPU engine, whose weights are read as they lie."""

from __future__ import annotations

import numpy as np
import pytest
from fresh import python
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.gemv.batch_work import BatchWork
from fastconv.backends.cpu.gemv.work import Work
from fastconv.backends.cpu.registers import Simd
from fastconv.machine import machine
from fastconv.notation import parse_problem

GEMV, BATCH = registry.find("numba/gemv"), registry.find("numba/gemv_batch")
VECTORS = [Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True), Simd("none", 16, 16, False)]

# Rows and inputs that no tile divides, one row, fewer inputs than a vector has lanes, several blocks of images.
SHAPES = """
    linear n1 c100 oc37 bias
    linear n2 c33 oc1
    linear n3 c5 oc19 bias relu
    linear n5 c64 oc9 residual leaky_relu
    linear n7 c130 oc300 bias residual relu6
    linear n13 c48 oc40 bias tanh
    linear n35 c21 oc277 bias residual
    conv2d n1 c5 i7 oc20 k7 bias
    conv2d n4 c40 i1 oc33 k1 residual relu
    conv3d n2 c3 id2 ih3 iw4 oc21 kd2 kh3 kw4 bias
    conv1d n6 c9 iw11 oc8 k11
""".strip().splitlines()


DTYPES = [(text, "float32") for text in SHAPES]
DTYPES += [(SHAPES[i], dtype) for i, dtype in ((1, "float64"), (6, "float64"), (0, "float16"), (3, "bfloat16"))]


@pytest.mark.parametrize("algorithm", [GEMV, BATCH])
@pytest.mark.parametrize(("text", "dtype"), DTYPES)
def test_shapes(text, dtype, algorithm):
    problem = parse_problem(text).replace(dtype=dtype)
    testing.check_problem(algorithm, problem)
    testing.check_problem(algorithm, problem.replace(prepacked=True))
    if problem.ndim:
        testing.check_problem(algorithm, problem.replace(layout="channels_last"))


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["avx2", "none"])
def test_other_widths_of_vectors(vectors):
    """In a fresh process, since compiled kernels and plans know the width."""
    code = """
from test_cpu_gemv import BATCH, GEMV, SHAPES, check_transposed
from fastconv import testing
from fastconv.notation import parse_problem
for text in SHAPES[1::3]:
    for dtype in ("float32", "float64"):
        for algorithm in (GEMV, BATCH):
            testing.check_problem(algorithm, parse_problem(text).replace(dtype=dtype))
for algorithm in (GEMV, BATCH):
    check_transposed(parse_problem(SHAPES[4]), algorithm)
"""
    python(code, FASTCONV_SIMD=vectors)


def check_transposed(problem, algorithm):
    inputs = testing.random_inputs(problem)
    transposed = (inputs[0], np.asfortranarray(inputs[1]), *inputs[2:])
    y = testing.laid_out(problem.outputs[0], problem.layout, np.nan)
    algorithm.plan(problem).run(transposed, (y,))
    testing.compare(problem, (y,), testing.exact(problem, inputs), algorithm.error_bound(problem))


@pytest.mark.parametrize("algorithm", [GEMV, BATCH])
@pytest.mark.parametrize(("text", "dtype"), DTYPES)
def test_a_weight_that_was_transposed(text, dtype, algorithm):
    check_transposed(parse_problem(text).replace(dtype=dtype), algorithm)


@pytest.mark.parametrize("algorithm", [GEMV, BATCH])
@pytest.mark.parametrize("transposed", [False, True])
def test_threads_do_not_change_the_result(transposed, algorithm):
    problem = parse_problem("linear n3 c700 oc901 bias")
    inputs = testing.random_inputs(problem)
    if transposed:
        inputs = (inputs[0], np.asfortranarray(inputs[1]), *inputs[2:])
    check_threads_share(algorithm, problem, inputs, range(1, machine().cores + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_lies_beyond_a_row_reaches_no_sum(value):
    """The last vector of a row is not whole: its other lanes belong to the next row, or to the next image."""
    problem = parse_problem("linear n3 c21 oc11")
    x, w = testing.random_inputs(problem)
    x[1], w[4, 0] = value, value
    with np.errstate(invalid="ignore"):
        reference = testing.exact(problem, (x, w))
    testing.compare(problem, testing.run(GEMV, problem, (x, w)), reference, GEMV.error_bound(problem))


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("text", SHAPES)
def test_tiles_fit_the_registers(text, vectors):
    work = Work(parse_problem(text), vectors, 2, 1 << 20)
    for tile in (work.tile, work.across):
        assert tile.rows * tile.images + 2 <= vectors.registers
        assert tile.images <= work.problem.n
    assert work.tile.rows <= work.outputs
    assert work.units * work.share >= work.outputs
    batch = BatchWork(parse_problem(text), vectors, 2, 1 << 20)
    assert batch.tile.vectors * (batch.tile.rows + 1) + 1 <= vectors.registers
    assert batch.tile.rows <= batch.outputs
    assert batch.share % batch.tile.rows == batch.block % batch.tile.rows == 0


def test_what_is_refused():
    for text in (
        "conv2d n1 c4 i4 oc4 k3",
        "conv2d n1 c4 i3 oc4 k3 p1",
        "conv2d n1 c4 i3 oc4 k3 g2",
        "unfold n1 c1 i4 k2",
    ):
        assert GEMV.refuses(parse_problem(text)) is not None
    assert GEMV.refuses(parse_problem("linear n1 c4 oc4 tanh").replace(dtype="float16")) is not None


def test_a_call_does_not_pack():
    """A call of few rows goes where the weight is read once, as it lies."""
    x, w = np.ones((2, 1536), np.float32), np.ones((1000, 1536), np.float32)
    with fc.options(threads=1):
        assert fc.explain(fc.linear, x, w).winner == GEMV.key
        np.testing.assert_array_equal(fc.linear(x, w), np.full((2, 1000), 1536, np.float32))
