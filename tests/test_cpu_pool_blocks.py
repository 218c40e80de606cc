"""The gradient of a max pool with channels in the lanes: blocks of elements that the same windows read."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv import registry, testing
from fastconv.backends.cpu.pool.gradient_work import GradientWork
from fastconv.notation import parse_problem
from fastconv.options import options

GRADIENT = registry.find("numba/pool_gradient")

SHAPES = """
    max_pool2d n2 c199 ih9 iw10 k2
    max_pool2d n1 c200 ih9 iw10 k3 s2 p1 ceil
    max_pool2d n1 c210 ih8 iw7 k3 s2
    max_pool2d n1 c205 ih11 iw13 k3 s3
    max_pool2d n1 c203 ih8 iw9 k3 s1 p1
    adaptive_max_pool2d n2 c200 i8 o4
""".strip().splitlines()


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Whatever the machine's instructions are, blocks are what is taken."""
    monkeypatch.setattr(GradientWork, "_block_cycles", property(lambda work: 0.0))


def problem_of(text, dtype="float32"):
    return parse_problem(text).replace(layout="channels_last", direction="dgrad", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", SHAPES)
def test_every_kernel(text, dtype):
    testing.check_problem(GRADIENT, problem_of(text, dtype))


@pytest.mark.parametrize("text", SHAPES)
def test_nothing_is_written_beside_the_result_nor_changed_by_threads(text):
    problem = problem_of(text)
    inputs = testing.random_inputs(problem)
    with options(threads=1):
        (expected,) = testing.run(GRADIENT, problem, inputs)
    edge = 64
    buffer = np.full(expected.size + 2 * edge, 77, expected.dtype)
    n, c, *spatial = problem.x_shape
    result = np.moveaxis(buffer[edge:-edge].reshape(n, *spatial, c), -1, 1)
    with options(threads=2):
        GRADIENT.plan(problem).run(inputs, (result,))
    assert np.array_equal(result, expected)
    assert (buffer[:edge] == 77).all() and (buffer[-edge:] == 77).all()


def test_infinity_goes_to_its_element_alone():
    problem = problem_of(SHAPES[1])
    dy, indices = testing.random_inputs(problem)
    dy[:, ::3] = np.inf
    expected = testing.exact(problem, (dy, indices)).results[0]
    (result,) = testing.run(GRADIENT, problem, (dy, indices))
    assert np.array_equal(np.isinf(result), np.isinf(expected)) and not np.isnan(result).any()
