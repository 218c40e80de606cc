"""The weight gradient with pixels in the lanes: strides, phases, bands, tiles of all sizes, any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from sharing import check_threads_share

import fastconv as fc
from fastconv import dispatch, registry, testing
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.wgrad.pixels_work import Work
from fastconv.notation import parse_problem
from fastconv.options import current, options

WGRAD = registry.find("numba/wgrad_pixels")

PROBLEMS = (
    "conv2d:wgrad n2 c3 ih19 iw18 oc13 k3 s2",
    "conv2d:wgrad n1 c3 ih39 iw43 oc10 k7 s2 p3",  # some vectors of a row are whole
    "conv2d:wgrad n2 c24 ih8 iw9 oc36 k3 p1 g3",
    "conv2d:wgrad n1 c16 i14 oc16 k3 s2 p1 d2 g2",  # no kernel row reads the rows between
    "conv2d:wgrad n1 c6 ih30 iw31 oc9 kh5 kw2 sh3 sw3 ph1 pw0:2 g3 f64",
    "conv2d:wgrad n1 c1 ih20 iw70 oc6 kh2 kw5 sh1 sw4",
    "conv2d:wgrad n1 c2 i5 oc3 kh1 kw3 sh4 sw1 ph3 pw1",  # rows of padding only
    "conv2d:wgrad n2 c5 i1 oc24 k3 p1",
    "conv1d:wgrad n2 c6 iw1000 oc9 k5 s2 p1 d3 g3",
    "conv2d:wgrad n3 c40 ih9 iw7 oc5 k1",
    "conv3d:wgrad n2 c6 id3 ih4 iw5 oc14 k1 g2",
    "conv2d:wgrad n2 c50 i13 oc3 k1 s2",
    "conv1d:wgrad n2 c18 iw2100 oc9 k1 f64",
    "conv2d:wgrad n2 c40 ih9 iw13 oc3 k3 p1",
    "conv3d:wgrad n2 c3 id6 ih7 iw18 oc5 k3 p1",
    "conv3d:wgrad n1 c6 id11 ih9 iw8 oc9 kd3 kh2 kw3 sd3 sh2 sw1 pd4:0 ph1 pw0 dd2 dh1 dw2 g3",  # depths of padding
)


@pytest.mark.parametrize("text", PROBLEMS)
def test_problem(text: str) -> None:
    testing.check_problem(WGRAD, parse_problem(text))


@pytest.mark.parametrize("text", PROBLEMS)
def test_what_is_asked_for_ahead_changes_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands, depths, images and units all end somewhere: what is not there may be asked for, not read."""
    problem = parse_problem(text)
    assert not Work(problem, simd(), 1, 1 << 30).is_far
    if problem.input_size[-1] * problem.itemsize >= 64:
        assert Work(problem, simd(), 1, 1).is_far
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._SHARE", 1 << 9)
    inputs = testing.random_inputs(problem)
    results = []
    for far in (False, True):
        monkeypatch.setattr(Work, "is_far", far)
        results.append(testing.run(WGRAD, problem, inputs)[0])
    assert np.array_equal(*results)
    check_threads_share(WGRAD, problem)


@pytest.mark.parametrize("far", [0, 4])
@pytest.mark.parametrize("text", PROBLEMS[:5])
def test_bands(text: str, far: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slab holds a row at once, of all channels or of one, and tiles take a vector of it, if caches are small."""
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._FAR", far)
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._SHARE", 1 << 20)
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._NEAR", 1)
    problem = parse_problem(text)
    work = Work(problem, simd(), 1, 1 << 20)
    assert work.bands == problem.oh
    assert work.channels == (1 if far else work.inputs)
    assert work.piece(work.tile) == work.lanes
    testing.check_problem(WGRAD, problem)


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n2 c12 i40 oc36 k3 s2 p1 g2",
        "conv2d:wgrad n1 c3 i99 oc30 k5 s2 p2",
        "conv2d:wgrad n2 c30 i70 oc12 k1",
        "conv3d:wgrad n1 c4 i22 oc16 k3 p1",
    ],
)
def test_any_number_of_threads(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share out channels and output channels, in other tiles; the sums stay what they are."""
    problem = parse_problem(text)
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._UNITS", 8)
    assert Work(problem, simd(), 2, 1 << 20).units > Work(problem, simd(), 1, 1 << 20).units
    check_threads_share(WGRAD, problem)


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n5 c3 i19 oc19 k3 s2 p1",
        "conv2d:wgrad n9 c3 i19 oc19 k1",
        "conv3d:wgrad n1 c4 i14 oc7 k3 p1 f64",
    ],
)
def test_slices(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where channels are few, threads share the bands of rows, and that does not change the result."""
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._STEPS", 1)
    problem = parse_problem(text)
    assert Work(problem, simd(), 1, 1 << 20).slices > 1
    testing.check_problem(WGRAD, problem)
    check_threads_share(WGRAD, problem)


def test_slices_of_unlike_infinities_are_added_up_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.pixels_work._STEPS", 1)
    problem = parse_problem("conv2d:wgrad n4 c3 i19 oc5 k1")
    assert Work(problem, simd(), 1, 1 << 20).slices > 1
    x, dy = testing.random_inputs(problem)
    x[0, 0, 0, 0], x[-1, 0, 0, 0] = np.inf, -np.inf
    dy[[0, -1], :, 0, 0] = 1
    with np.errstate(all="raise"):
        (dw,) = testing.run(WGRAD, problem, (x, dy))
    assert np.isnan(dw[:, 0]).all() and np.isfinite(dw[:, 1:]).all()


@pytest.mark.parametrize("text", ["conv2d:wgrad n2 c3 i19 oc20 k3 s2 p1", "conv2d:wgrad n2 c3 i19 oc20 k1"])
def test_strides(text: str) -> None:
    """Arrays of which neither columns nor rows are neighbours, and a result that is written backwards."""
    problem = parse_problem(text)
    x, dy = testing.integer_inputs(problem)
    given = {"stride": problem.stride, "padding": problem.padding}
    expected = fc.grad.conv2d_weight(x, problem.w_shape, dy, backend="reference", **given)
    backwards, columns = x[::-1].copy()[::-1], x.swapaxes(2, 3).copy().swapaxes(2, 3)
    for inputs in ((backwards, dy), (columns, dy.swapaxes(2, 3).copy().swapaxes(2, 3))):
        out = np.full(problem.w_shape, np.nan, np.float32)[:, ::-1]
        fc.grad.conv2d_weight(inputs[0], problem.w_shape, inputs[1], algorithm=WGRAD.key, out=out, **given)
        assert np.array_equal(out, expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("linear:wgrad n8 c2 oc4", "spatial axes"),
        ("conv2d:wgrad n1 c33 i9 oc34 k3", "at most 32 channels"),
        ("conv2d:wgrad n1 c33 i9 oc34 k1", "at most 32 channels"),
        ("conv2d:wgrad n1 c3 i29 oc4 k3 s5", "at most 4 columns"),
        ("conv2d:wgrad n1 c3 i9 oc4 k3 p1 reflect", "pads with zeros"),
        ("conv2d:wgrad n1 c3 i9 oc4 k3 channels_last", "neighbours"),
        ("conv2d:wgrad n1 c3 i9 oc4 k3 f16", "float16"),
    ],
)
def test_refusals(text: str, reason: str) -> None:
    assert reason in (WGRAD.refuses(parse_problem(text)) or "")


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n1 c3 i299 oc32 k3 s2",
        "conv2d:wgrad n1 c256 i56 oc256 k3 s2 p1 g32",
        "conv2d:wgrad n4 c128 i64 oc2 k1",
        "conv2d:wgrad n1 c64 i56 oc3 k3 p1",
        "conv3d:wgrad n2 c16 i32 oc2 k3 p1",
    ],
)
def test_is_taken_where_channels_are_few(text: str) -> None:
    """First layers and groups; otherwise transposing what many channels share costs little."""
    with options(threads=1):
        assert dispatch.survey(parse_problem(text), current()).winner == WGRAD.key
