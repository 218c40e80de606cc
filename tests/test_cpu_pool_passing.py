"""The gradients of large maps, which go past the caches: rows made in scratch, and sent on as whole lines."""

from __future__ import annotations

import numpy as np
import pytest

from fastconv import registry, testing
from fastconv.backends.cpu.pool import gradient_work
from fastconv.backends.cpu.pool.gradient_work import GradientWork
from fastconv.backends.cpu.registers import simd
from fastconv.notation import parse_problem
from fastconv.options import options

GRADIENT = registry.find("numba/pool_gradient")

# Rows of windows side by side, narrow maps of them, windows that overlap, in several pieces and with rows left, and
# uneven ones.
SHAPES = """
    max_pool2d n2 c3 ih9 iw100 k2
    max_pool2d n2 c5 ih7 iw17 k2
    max_pool2d n2 c3 ih8 iw101 k3
    max_pool2d n1 c3 ih70 iw67 k3 s2 p1
    max_pool2d n2 c3 ih15 iw30 k3 s1 p1
    max_pool2d n2 c3 ih70 iw73 k3 s1 p1
    avg_pool2d n2 c3 ih12 iw70 k2
    avg_pool2d n2 c3 ih12 iw19 k2
    avg_pool2d n2 c3 ih90 iw35 k3 s1 p1 exclude_pad
    avg_pool2d n1 c3 ih16 iw40 k5 s3
    adaptive_avg_pool2d n2 c3 ih12 iw37 oh5 ow9
""".strip().splitlines()
FORMATS = ("float32", "float64", "bfloat16")


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Whatever the machine's caches are, maps are too large for them."""
    monkeypatch.setattr(gradient_work, "_KEPT", 0)


def problems():
    found = [parse_problem(text).replace(direction="dgrad", dtype=dtype) for text in SHAPES for dtype in FORMATS]
    return found + [p.replace(index_dtype="int16") for p in found if p.is_max and p.dtype == "float32"]


@pytest.mark.parametrize("problem", problems(), ids=str)
def test_every_loop(problem):
    assert GradientWork(problem, simd(), 1).passes or problem.dtype != "float32"
    testing.check_problem(GRADIENT, problem)


@pytest.mark.parametrize("problem", [p for p in problems() if p.dtype == "float32"], ids=str)
@pytest.mark.parametrize("offset", [0, 1, 5, 15])
def test_nothing_is_written_beside_the_result_nor_changed_by_threads(problem, offset):
    inputs = testing.random_inputs(problem)
    with options(threads=1):
        (expected,) = testing.run(GRADIENT, problem, inputs)
    start = 64 + offset
    buffer = np.full(expected.size + 2 * start, 77, expected.dtype)
    result = buffer[start : start + expected.size].reshape(expected.shape)
    with options(threads=2):
        GRADIENT.plan(problem).run(inputs, (result,))
    assert np.array_equal(result, expected)
    assert (buffer[:start] == 77).all() and (buffer[start + expected.size :] == 77).all()


def test_rows_with_gaps_between_them():
    problem = problems()[0]
    inputs = testing.random_inputs(problem)
    (expected,) = testing.run(GRADIENT, problem, inputs)
    whole = np.full((*expected.shape[:-1], expected.shape[-1] + 3), 77, expected.dtype)
    GRADIENT.plan(problem).run(inputs, (whole[..., :-3],))
    assert np.array_equal(whole[..., :-3], expected) and (whole[..., -3:] == 77).all()
