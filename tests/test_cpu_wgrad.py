"""The weight gradient on the CPU engine: every kind of problem, exact adjoints, and any number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.wgrad.work import Work
from fastconv.notation import format_problem, parse_problem

WGRAD = registry.find("numba/wgrad")

PROBLEMS = (
    "conv2d:wgrad n2 ic5 ih9 iw8 oc7 kh3 kw3 p1",
    "conv2d:wgrad n2 ic3 ih19 iw18 oc40 kh7 kw7 s2 p3",  # a tile's inputs run along kernel columns
    "conv2d:wgrad n1 ic1 ih12 iw12 oc6 kh5 kw5",
    "conv2d:wgrad n16 ic20 ih7 iw7 oc33 kh3 kw3 p1",  # several images at once
    "conv2d:wgrad n2 ic6 ih14 iw13 oc20 kh3 kw2 ph1:0 pw0:2 dh2 dw1 reflect",
    "conv2d:wgrad n2 ic6 ih14 iw13 oc20 kh2 kw3 sh1 sw3 ph1 pw2 circular f64",
    "conv2d:wgrad n1 ic18 ih11 iw10 oc17 kh1 kw3 ph0 pw1 replicate channels_last",
    "conv2d:wgrad n2 ic30 ih9 iw11 oc50 kh3 kw3 s2 p1 d2 channels_last",
    "conv2d:wgrad n1 ic4 ih5 iw5 oc4 kh1 kw1 p2",  # padding alone
    "conv2d:wgrad n3 ic70 ih9 iw8 oc20 kh1 kw1",
    "conv2d:wgrad n3 ic20 ih9 iw8 oc70 kh1 kw1",  # inputs in the lanes
    "conv2d:wgrad n2 ic144 ih7 iw7 oc70 kh1 kw1",  # and stored in rows of dw, but for the last vectors
    "conv2d:wgrad n2 ic64 ih56 iw56 oc70 kh1 kw1 g2",  # the same when more pixels are added to what is there
    "conv2d:wgrad n2 ic20 ih9 iw8 oc70 kh1 kw1 channels_last f64",
    "conv2d:wgrad n1 ic60 ih32 iw32 oc20 kh1 kw1",  # channels fall on the same cache lines
    "conv2d:wgrad n2 ic30 ih14 iw13 oc50 kh1 kw1 sh2 sw3",
    "conv2d:wgrad n2 ic24 ih8 iw9 oc36 kh3 kw3 p1 g3",
    "conv2d:wgrad n2 ic24 ih8 iw9 oc36 kh1 kw1 g3",
    "conv2d:wgrad n2 ic32 ih9 iw8 oc32 kh3 kw3 sh2 sw1 p1 g8",  # several groups in a vector
    "conv2d:wgrad n2 ic32 ih9 iw8 oc32 kh3 kw5 p2 dh2 dw1 g4 channels_last",
    "conv2d:wgrad n2 ic16 ih9 iw8 oc16 kh3 kw3 p1 g4 f64",
    "conv2d:wgrad n3 ic32 ih9 iw8 oc32 kh1 kw1 g8",  # which without a kernel are not the inputs in the lanes
    "conv2d:wgrad n2 ic32 ih19 iw18 oc32 kh1 kw1 g8 channels_last f64",
    "conv2d:wgrad n1 ic8 ih9 iw8 oc8 kh3 kw3 p1 g8",
    "conv1d:wgrad n3 ic17 iw1000 oc20 kw5 p2",
    "conv3d:wgrad n2 ic7 id6 ih7 iw8 oc20 kd3 kh3 kw3 p1",
    "conv3d:wgrad n2 ic17 id6 ih5 iw4 oc20 kd3 kh1 kw1 sd2 sh1 sw1 pd1 ph0 pw0",
    "linear:wgrad n1 ic370 oc5",
    "linear:wgrad n16 ic37 oc50",
)


@pytest.mark.parametrize("text", PROBLEMS)
def test_problem(text: str) -> None:
    testing.check_problem(WGRAD, parse_problem(text))


def _sums_of(problem: Any, inputs: tuple[Any, ...]) -> Any:
    return testing.run(WGRAD, problem, inputs)[0]


@pytest.mark.parametrize("text", PROBLEMS[:6])
def test_chunks(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reduction goes through many chunks if little memory is to be used."""
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.work._CHUNK_CACHES", 1 / 512)
    problem = parse_problem(text)
    assert Work(problem, simd(), 1, 1 << 20).count > 1
    testing.check_problem(WGRAD, problem)


@pytest.mark.parametrize("text", PROBLEMS)
def test_any_number_of_threads(text: str) -> None:
    check_threads_share(WGRAD, parse_problem(text))


@pytest.mark.parametrize("pieces", [4, 1e-3])  # with the second, slices of which most are empty
@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n1 ic3 ih80 iw80 oc20 kh3 kw3 p1",
        "conv2d:wgrad n2 ic17 ih55 iw52 oc24 kh1 kw1",  # inputs in the lanes
        "conv2d:wgrad n2 ic16 i90 oc16 k3 g8 f64",
        "conv1d:wgrad n2 ic7 iw3000 oc20 kw2 d8",
    ],
)
def test_slices(text: str, pieces: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dw has few blocks, threads share the pixels, and that does not change the result."""
    monkeypatch.setattr("fastconv.backends.cpu.wgrad.work._PIECES", pieces)
    problem = parse_problem(text)
    assert Work(problem, simd(), 1, 1 << 20).slices > 1
    testing.check_problem(WGRAD, problem)
    test_any_number_of_threads(text)


@pytest.mark.parametrize("text", PROBLEMS[:8])
def test_adjoint(text: str) -> None:
    """<conv(x, w), dy> is <w, dw>, exactly on small integers."""
    problem = parse_problem(text)
    x, dy = testing.integer_inputs(problem)
    forward = problem.replace(direction="fprop")
    w = testing.integer_inputs(forward)[1]
    y = testing.exact(forward, (x, w)).results[0]
    dw = _sums_of(problem, (x, dy))
    assert np.vdot(y.astype(np.float64), dy.astype(np.float64)) == np.vdot(
        w.astype(np.float64), dw.astype(np.float64)
    ), format_problem(problem)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n2 c20 i7 oc40 k3 p1",
        "conv2d:wgrad n2 ic3 i15 oc40 k7 s2 p3",  # a tile's inputs run along kernel columns
        "conv2d:wgrad n2 c32 i14 oc64 k3 s2 p1 g8",
        "conv3d:wgrad n1 ic16 i6 oc20 k3 p1",
        "conv2d:wgrad n2 ic16 i5 oc20 k5 p6 d3",  # taps that meet nothing but padding
    ],
)
def test_padding_counts_where_it_is_multiplied_by_what_is_not_finite(text, layout, value) -> None:
    problem = parse_problem(text).replace(layout=layout)
    for corner in ((0,) * problem.ndim, (-1,) * problem.ndim):
        inputs = testing.random_inputs(problem)
        inputs[1][(0, 1, *corner)] = value
        outputs = testing.run(WGRAD, problem, inputs)
        testing.compare(problem, outputs, testing.exact(problem, inputs), WGRAD.error_bound(problem))


def test_nothing_else_is_multiplied() -> None:
    """A NaN that no output reads changes nothing, and one that is read reaches what reads it only."""
    problem = parse_problem("conv2d:wgrad n1 ic5 ih6 iw6 oc3 kh1 kw1 s2")
    x, dy = testing.random_inputs(problem, seed=2)
    x[:, :, 1::2], x[:, 1, 0, 0] = np.nan, np.nan
    dw = _sums_of(problem, (x, dy))
    assert np.isnan(dw[:, 1]).all()
    assert not np.isnan(np.delete(dw, 1, 1)).any()


def test_refusals() -> None:
    assert WGRAD.refuses(parse_problem("conv2d:fprop n1 ic5 ih6 iw6 oc3 kh1 kw1"))
    assert WGRAD.refuses(parse_problem("max_pool2d:fprop n1 c5 ih6 iw6 kh2 kw2"))


@pytest.mark.parametrize(
    "text", ["conv2d n2 c5 i9 oc20 k3 p1", "conv2d n2 c40 i6 oc20 k1", "conv2d n1 c5 i9 oc20 k3 s2"]
)
def test_gradients_are_written_backwards(text):
    """Into an array whose filters lie in reverse order."""
    problem = parse_problem(text).replace(direction="wgrad")
    x, dy = testing.integer_inputs(problem)
    given = {"stride": problem.stride, "padding": problem.padding}
    expected = fc.grad.conv2d_weight(x, problem.w_shape, dy, backend="reference", **given)
    for order in (np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1, ::-1]):
        out = np.full(problem.w_shape, np.nan, np.float32)[order]
        fc.grad.conv2d_weight(x, problem.w_shape, dy, algorithm="numba/wgrad", out=out, **given)
        assert np.array_equal(out, expected)
