"""Locally connected layers on the CPU engine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fresh import python
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.local.work import Work
from fastconv.backends.cpu.registers import Simd
from fastconv.machine import machine
from fastconv.notation import parse_problem

LOCAL = registry.find("numba/local")
VECTORS = [Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True), Simd("none", 16, 16, False)]

SHAPES = [
    "locally_connected2d n1 c40 ih3 iw30 oc13 kh1 kw9 pw2",
    "locally_connected2d n2 c6 i9 oc8 g2 k3 d2 p2 s3",
    "locally_connected2d n3 c20 i15 oc17 k3 p1 channels_last bias residual",
    "locally_connected2d n5 c1 i7 oc1 k7 p3 tanh",
    "locally_connected2d n9 c3 ih6 iw7 oc4 k3 p1 s2 bias",
    "locally_connected2d n16 c20 i15 oc17 k3 p1 channels_last bias_per_position",
    "locally_connected2d n17 c2 i5 oc3 k2 bias_per_position residual relu",
    "locally_connected2d n20 c6 i9 oc8 g2 k3 d2 p2 leaky_relu",
    "locally_connected2d n33 c2 i5 oc3 k3 p1 reflect d2",
    "locally_connected2d n70 c2 i4 oc3 k3 p2",
]


def directions(text, dtype="float32"):
    problem = parse_problem(text).replace(dtype=dtype)
    plain = problem.replace(bias="none", activation=None, residual=False)
    for candidate in (problem, plain.replace(direction="dgrad"), plain.replace(direction="wgrad")):
        if LOCAL.refuses(candidate) is None:
            yield candidate


DTYPES = [(text, "float32") for text in SHAPES]
DTYPES += [(text, dtype) for first, dtype in enumerate(("float64", "float16", "bfloat16")) for text in SHAPES[first::4]]


@pytest.mark.parametrize(("text", "dtype"), DTYPES)
def test_shapes(text, dtype):
    checked = [testing.check_problem(LOCAL, problem) for problem in directions(text, dtype)]
    assert len(checked) >= 1


def test_the_last_block_of_channels_is_smaller(monkeypatch):
    """Its window fills some vectors of a tile, and not all."""
    small = dataclasses.replace(machine(), l2_bytes=1 << 20)
    monkeypatch.setattr("fastconv.backends.cpu.work.machine", lambda: small)
    problem = parse_problem("locally_connected2d:wgrad n48 c3 ih5 iw224 oc8 k5")
    assert Work.of(problem).channels == 2
    testing.check_problem(LOCAL, problem)


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["avx2", "none"])
def test_other_widths_of_vectors(vectors):
    """In a fresh process, since compiled kernels and plans know the width."""
    code = """
from test_cpu_local import LOCAL, SHAPES, directions
from fastconv import testing
for text in SHAPES[4::5]:
    for problem in directions(text, "bfloat16"):
        testing.check_problem(LOCAL, problem)
"""
    python(code, FASTCONV_SIMD=vectors)


@pytest.mark.parametrize("text", SHAPES[::4])
def test_any_number_of_threads_gives_the_same_bits(text):
    for problem in directions(text):
        check_threads_share(LOCAL, problem)


@pytest.mark.parametrize("vectors", VECTORS)
@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("text", SHAPES)
def test_work_is_cut_into_what_there_is(vectors, workers, text):
    for problem in directions(text):
        work = Work(problem, vectors, workers, 1 << 20)
        images, channels = work.blocks
        assert (images - 1) * work.images < problem.n <= images * work.images
        assert (channels - 1) * work.channels < work.inputs <= channels * work.channels
        assert 1 <= work.parts <= work.cols.out
        assert work.tile.rows * work.tile.across + work.tile.across + 2 <= vectors.registers
        assert 1 <= work.tile.tail <= work.tile.rows


@pytest.mark.parametrize("images", [1, 16])
def test_special_values_stay_in_their_windows(images):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, 5, 9, 12)).astype(np.float32)
    w = rng.standard_normal((9, 12, 4, 5, 3, 3)).astype(np.float32)
    x[0, 3, 4, 5] = np.nan
    y = fc.locally_connected2d(x, w, padding=1, algorithm="numba/local")
    expected = np.zeros(y.shape, bool)
    expected[0, :, 3:6, 4:7] = True
    np.testing.assert_array_equal(np.isnan(y), expected)
    # A weight that reads padding contributes to no element of the gradient.
    w[0, 0, :, :, 0, :] = np.inf
    _, pullback = fc.vjp(fc.locally_connected2d, np.zeros_like(x), w, padding=1)
    assert np.isfinite(pullback(np.ones_like(y))[0]).all()


def test_the_engine_is_chosen():
    for batch in (1, 16):
        x = np.zeros((batch, 16, 20, 20), np.float32)
        w = np.zeros((18, 18, 16, 16, 3, 3), np.float32)
        assert fc.explain(fc.locally_connected2d, x, w).winner == "numba/local"
