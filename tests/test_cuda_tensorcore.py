"""Convolution on tensor cores, in emulation: every direction and layout, tails in every dimension, and each tile."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import emulated
from cuda_emulation.compiler import PROPERTIES, Compiler, compiling_only
from test_special_values import sprinkled

import fastconv
from fastconv import registry, testing
from fastconv.backends.cuda.tensorcore import work
from fastconv.notation import parse_problem

KEY = "cuda/tensorcore"
DIRECTIONS = ("fprop", "dgrad", "wgrad")
SMALL = work.Tile(64, 64, 32, 32, 4)
TILES, NARROW = work.TILES, work.NARROW_TILES


def tiles(monkeypatch, *only):
    monkeypatch.setattr(work, "TILES", only)
    monkeypatch.setattr(work, "NARROW_TILES", ())


def check(text):
    """Check a problem; return the names and grids of what was launched."""
    with emulated() as emulator:
        testing.check_problem(registry.find(KEY), parse_problem(text).replace(device="cuda"))
    return [(kernel.name, grid) for kernel, grid in emulator.launched]


def forms(text):
    """Return a problem's text in every direction: the forward passes with their epilogue, the gradient without."""
    name, rest = text.split(" ", 1)
    words = rest.split()
    plain = " ".join(w for w in words if w not in ("bias", "residual", "relu", "leaky_relu", "sigmoid"))
    return [f"{name} {rest}", f"{name}:dgrad {rest}", f"{name}:wgrad {plain}"]


@pytest.mark.parametrize(
    "text",
    [
        # Rows, columns and steps that fill no tile, chunks that channels do not fill.
        "conv2d n2 c9 i7 oc11 k3 p1 bias residual relu",
        "conv2d n2 c9 i7 oc11 k3 p1 bias residual relu channels_last",
        # Results of whole chunks: of channels, then of positions.
        "conv2d n2 c16 i8 oc24 k3 p1 bias residual leaky_relu channels_last",
        "conv2d n2 c16 i8 oc24 k3 p1 bias residual relu",
        "conv2d n1 c12 ih9 iw11 oc18 kh3 kw5 sh2 sw1 ph1:2 pw0:3 g3 bias",
        "conv2d n1 c16 ih9 iw10 oc32 kh3 kw2 s2 d2 p2 g2 channels_last",
        "conv2d n2 c8 i9 oc16 k1 s2 channels_last",
        "conv2d n2 c3 i7 oc4 k3 p1:-1 d2",
        "conv1d n2 c6 i19 oc5 k4 s2 p1 bias",
        "linear n5 c17 oc9 bias",
        "linear n70 c16 oc72 bias sigmoid",
    ],
)
def test_half_precision(text, monkeypatch):
    tiles(monkeypatch, SMALL)
    for form in forms(text):
        check(f"{form} f16")


@pytest.mark.parametrize("text", forms("conv2d n2 c12 i6 oc10 k3 p1"))
def test_bfloat16(text, monkeypatch):
    tiles(monkeypatch, SMALL)
    check(f"{text} bf16")


@pytest.mark.parametrize("layout", ["", "channels_last"])
@pytest.mark.parametrize("text", forms("conv2d n2 c6 i6 oc12 k3 p1 bias relu"))
def test_tf32(text, layout, monkeypatch):
    tiles(monkeypatch, SMALL)
    with fastconv.options(tf32=True):
        check(f"{text} {layout}")


def test_tf32_rounds_what_float32_would_not():
    with emulated(), fastconv.options(tf32=True):
        algorithm, problem = registry.find(KEY), parse_problem("linear n4 c9 oc5 cuda")
        inputs = testing.random_inputs(problem)
        expected = testing.exact(problem, inputs)
        outputs = testing.run(algorithm, problem, inputs)
        testing.compare(problem, outputs, expected, algorithm.error_bound(problem))
        with pytest.raises(AssertionError, match="elements are off"):
            testing.compare(problem, outputs, expected, registry.find("cuda/direct").error_bound(problem))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_specials_come_out_where_the_reference_has_them(direction, monkeypatch):
    tiles(monkeypatch, SMALL)
    algorithm, seen = registry.find(KEY), set()
    for rest in ("c4 ih9 iw8 oc4 kh3 kw2 p1", "c8 i8 oc8 k3 p1 s2 channels_last"):
        problem = parse_problem(f"conv2d:{direction} n2 {rest} f16 cuda")
        clean = testing.random_inputs(problem)
        for changed in range(len(clean)):
            inputs = tuple(sprinkled(a, (np.nan, np.inf, -np.inf)) if i == changed else a for i, a in enumerate(clean))
            expected = testing.exact(problem, inputs)
            seen |= set(np.isfinite(expected.results[0]).ravel())
            with emulated():
                outputs = testing.run(algorithm, problem, inputs)
            testing.compare(problem, outputs, expected, algorithm.error_bound(problem))
    assert seen == {True, False}


@pytest.mark.parametrize("splits", [1, 3])
def test_infinite_weights_do_not_meet_padding_in_input_gradients(splits, monkeypatch):
    tiles(monkeypatch, SMALL)
    monkeypatch.setattr(work.Work, "seconds", lambda self, tile, parts, images: abs(parts - splits))
    problem = parse_problem("conv2d:dgrad n2 c8 i5 oc48 k3 p1 f16 cuda")
    dy, w = testing.random_inputs(problem)
    inputs = dy, sprinkled(w, (np.inf,))
    expected = testing.exact(problem, inputs)
    assert not np.isnan(expected.results[0]).any()
    with emulated() as emulator:
        outputs = testing.run(registry.find(KEY), problem, inputs)
    assert splits in {grid[1] for kernel, grid in emulator.launched if kernel.name == "tensorcore"}
    testing.compare(problem, outputs, expected, registry.find(KEY).error_bound(problem))


@pytest.mark.parametrize("text", forms("conv3d n1 c4 id4 ih5 iw6 oc8 kd2 kh3 kw3 s2 p1"))
def test_three_dimensions(text, monkeypatch):
    tiles(monkeypatch, SMALL)
    check(f"{text} f16")


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES + NARROW)
def test_every_tile(tile, monkeypatch):
    """More than one tile of rows and of columns, and more slices than stages."""
    tiles(monkeypatch, tile)
    positions = 2 * tile.rows // 16 + 1
    check(f"conv2d n1 c24 ih16 iw{positions} oc{tile.columns + 8} kh3 kw2 f16 channels_last")
    if tile not in NARROW:
        check(f"conv2d:wgrad n2 c{tile.columns // 8 + 4} ih9 iw9 oc{tile.rows + 8} k3 f16")
    with fastconv.options(tf32=True):
        check(f"conv2d n1 c12 ih16 iw{positions} oc{tile.columns + 4} kh3 kw1 channels_last")


@pytest.mark.parametrize(
    "text",
    [
        "conv2d n1 c64 i5 oc9 k3 p1 bias residual relu",
        "conv2d n1 c64 i5 oc10 k3 p1 g2 bias channels_last",
        "conv2d:dgrad n1 c9 i5 oc64 k3 p1",
        "conv2d:wgrad n3 c3 i13 oc4 k3 p1",
        "conv2d:wgrad n3 c4 i13 oc6 k3 p1 g2 channels_last",
    ],
)
def test_reduction_in_parts(text, monkeypatch):
    tiles(monkeypatch, SMALL)
    monkeypatch.setattr(work.Work, "seconds", lambda self, tile, splits, images: -splits)
    launched = check(f"{text} f16")
    assert any(grid[1] > 1 for name, grid in launched if name == "tensorcore")
    assert "tensorcore_sum" in {name for name, _ in launched}


@pytest.mark.parametrize(("direction", "scratch"), [("fprop", 8 << 10), ("dgrad", 8 << 10), ("wgrad", 26 << 10)])
def test_images_are_packed_a_few_at_a_time_if_scratch_is_short(direction, scratch, monkeypatch):
    tiles(monkeypatch, SMALL)
    text = f"conv2d:{direction} n5 c9 i8 oc11 k3 p1 f16"
    with fastconv.options(max_workspace=scratch):
        launched = check(text)
        with emulated():
            assert registry.find(KEY).workspace_bytes(parse_problem(text).replace(device="cuda")) <= scratch
    # Four runs: each packs both operands, in at least two portions.
    assert sum(name == "tensorcore" for name, _ in launched) >= 2 * 4


def turned(array):
    """Return the same values with channels side by side, and every other axis reversed in memory, with gaps."""
    last = np.moveaxis(array, 1, -1)
    spread = np.zeros((*(2 * size for size in last.shape[:-1]), last.shape[-1]), array.dtype)
    view = spread[tuple(slice(None, None, -2) for _ in last.shape[:-1])]
    view[...] = last
    return np.moveaxis(view, -1, 1)


@pytest.mark.parametrize(("direction", "packed"), [("fprop", 0), ("dgrad", 1), ("wgrad", 1)])
def test_views_whose_channels_stay_side_by_side_are_not_packed(direction, packed, monkeypatch):
    """But for a weight whose channels are far apart, and a dy whose positions do not follow at one distance."""
    tiles(monkeypatch, SMALL)
    problem = parse_problem(f"conv2d:{direction} n2 c16 i5 oc16 k3 f16 channels_last cuda")
    inputs = testing.integer_inputs(problem)
    with emulated() as emulator:
        outputs = testing.run(registry.find(KEY), problem, tuple(map(turned, inputs)))
    np.testing.assert_array_equal(outputs[0], testing.exact(problem, inputs).results[0].astype(np.float16))
    assert [kernel.name for kernel, _ in emulator.launched].count("pack") == packed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv2d n1 c8 i8 oc8 k3 p1", "options(tf32=True)"),
        ("conv2d n1 c8 i8 oc8 k3 p1 f64", "float32"),
        ("conv2d n1 c8 i8 oc8 k3 p1 f16 reflect", "padding_mode 'reflect'"),
        ("conv2d n1 c8 i8 oc8 k3 p1 f16 g8", "fewer than"),
        ("conv1d n1 c8 i5000 oc8 k2000 f16", "kernel positions"),
        ("locally_connected2d n1 c8 i8 oc8 k3 f16", "weights of its own"),
        ("conv2d n1 c9 i4000 oc8 k3 f16", "max_workspace"),
        ("conv2d:bgrad n1 c8 i8 oc8 k3 bias f16", "convolutions"),
        ("max_pool2d n2 c3 i8 k2 f16", "convolutions"),
    ],
)
def test_refusals(text, reason):
    with emulated():
        assert reason in registry.find(KEY).refuses(parse_problem(text).replace(device="cuda"))


def test_expected_to_beat_cuda_cores_where_there_is_work():
    with compiling_only(Compiler(PROPERTIES)):
        for text in ("n16 c64 i56 oc64 k3 p1", "n128 c256 i14 oc256 k3 p1", "n128 c512 i7 oc2048 k1"):
            for direction in DIRECTIONS:
                problem = parse_problem(f"conv2d:{direction} {text} f16").replace(device="cuda")
                here, there = (registry.find(key).predict(problem, None) for key in (KEY, "cuda/direct"))
                assert here < there
