"""Winograd's convolution with tiles in the lanes: phases of all strides, edges, bands, tiles of all sizes, threads."""

from __future__ import annotations

import numpy as np
import pytest
from sharing import check_threads_share

import fastconv as fc
from fastconv import dispatch, registry, testing
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.winograd_tiles.work import Work
from fastconv.notation import parse_problem
from fastconv.options import current, options

TILES = registry.find("numba/winograd_tiles")

PROBLEMS = (
    "conv2d n1 c3 i20 oc9 k3 p1",
    "conv2d n2 c3 ih39 iw43 oc20 k7 s2 p3",
    "conv2d n1 c3 ih57 iw61 oc13 k11 s4 p2",
    "conv2d n1 c1 ih31 iw200 oc5 k13 s3 p1",  # rows of several vectors
    "conv2d n1 c12 ih30 iw31 oc10 kh5 kw3 sh2 sw1 ph1 pw0 g2",
    "conv2d n2 c16 i5 oc7 k2",  # a vector holds several rows of tiles
    "conv2d n1 c2 ih17 iw9 oc8 k8 s2 p0 f64",  # shorter phases than the longest
    "conv2d n1 c4 ih9 iw30 oc17 k5 p2 reflect",
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", PROBLEMS)
def test_problem(text: str, packed: bool) -> None:
    testing.check_problem(TILES, parse_problem(text).replace(prepacked=packed))


def test_error_of_few_products_is_within_the_bound() -> None:
    """Of millions of outputs, some are small beside what their tile is made of."""
    problem = parse_problem("conv2d n2 ic6 i200 oc64 kh1 kw2")
    inputs = testing.random_inputs(problem)
    outputs = testing.run(TILES, problem, inputs)
    testing.compare(problem, outputs, testing.exact(problem, inputs), TILES.error_bound(problem))


@pytest.mark.parametrize("text", PROBLEMS)
def test_bands(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A band is one block of vectors if caches are small."""
    for name in ("_PLANES", "_SHARE"):
        monkeypatch.setattr(f"fastconv.backends.cpu.winograd_tiles.work.{name}", 1e-6)
    problem = parse_problem(text)
    work = Work(problem, simd(), 1, 1 << 20)
    assert work.band == work.strip == 1
    testing.check_problem(TILES, problem)


@pytest.mark.parametrize("text", ["conv2d n1 c3 i99 oc30 k7 s2 p3", "conv2d n2 c12 i40 oc36 k3 p1 g2"])
def test_any_number_of_threads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse_problem(text)
    monkeypatch.setattr("fastconv.backends.cpu.winograd_tiles.work._UNITS", 8)
    assert Work(problem, simd(), 2, 1 << 20).units > Work(problem, simd(), 1, 1 << 20).units
    check_threads_share(TILES, problem)


def test_strided_input_and_output() -> None:
    """Columns of the input may be apart, rows of the output too."""
    random = np.random.default_rng(1)
    x, w = (
        random.standard_normal((1, 3, 30, 62), np.float32)[..., ::2],
        random.standard_normal((8, 3, 7, 7), np.float32),
    )
    room = np.empty((1, 8, 15, 32), np.float32)
    expected = fc.conv2d(np.ascontiguousarray(x), w, stride=2, padding=3, algorithm=TILES.key)
    for out in (room[..., :16], room[..., ::2]):
        assert np.array_equal(fc.conv2d(x, w, stride=2, padding=3, algorithm=TILES.key, out=out), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_zeros_of_the_weight_are_no_infinity(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight is transformed in the memory where it is noted that all is finite."""
    monkeypatch.setattr("fastconv.backends.cpu.winograd_tiles.run.Direct", None)
    problem = parse_problem("conv2d n1 c3 i20 oc9 k3 p1 bias").replace(prepacked=packed)
    x, w, bias = testing.random_inputs(problem)
    (y,) = testing.run(TILES, problem, (x, np.zeros_like(w), bias))
    assert np.array_equal(y, np.broadcast_to(bias[:, None, None], y.shape))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv1d n1 c3 iw29 oc4 k7", "planes"),
        ("conv2d n1 c3 i29 oc4 k7", "2 to 5 taps"),
        ("conv2d n1 c3 i29 oc4 k2 s2", "2 to 5 taps"),
        ("conv2d n1 c3 i29 oc4 k11 s5", "at most 4"),
        ("conv2d n1 c3 i29 oc4 k3 d2", "dilation 1"),
        ("conv2d n1 c65 i9 oc4 k3", "at most 64"),
        ("conv2d n1 c1 i9 oc4 k3", "fewer than 12 products"),
        ("conv2d n1 c1 ih70 iw13 oc4 kh4 kw12 sh3 sw4 ph6:6 pw11:1 replicate", "fewer than 12 products"),
        ("conv2d n1 c3 i9 oc4 k3 channels_last", "neighbours"),
        ("conv2d n1 c3 i9 oc4 k3 f16", "float16"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    assert reason in (TILES.refuses(parse_problem(text)) or "")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("conv2d n1 ic3 i224 oc64 k7 s2 p3", True),
        ("conv2d n1 ic3 i224 oc64 k11 s4 p2", True),
        ("conv2d n1 ic3 i299 oc32 k3 s2", False),
        ("conv2d n1 ic3 i32 oc8 k3 p1", False),
        ("conv2d n1 ic64 i56 oc64 k3 p1", False),
    ],
)
def test_choice(text: str, chosen: bool) -> None:
    with options(threads=1):
        assert (dispatch.survey(parse_problem(text), current()).winner == TILES.key) == chosen
