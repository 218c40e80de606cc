"""Direct convolution and bias gradients on CUDA cores, in emulation: the shape sets, and what is special about them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cuda_emulation import Emulator, emulated
from cuda_emulation.compiler import Compiler, compiling_only
from cuda_emulation.emulator import PROPERTIES
from test_special_values import CONVOLUTIONS, sprinkled

from fastconv import registry, testing
from fastconv.backends.cuda.direct import run, work
from fastconv.notation import parse_problem
from fastconv.problem import DTYPES, ConvProblem

KEYS = {"fprop": "cuda/direct", "dgrad": "cuda/direct", "wgrad": "cuda/direct", "bgrad": "cuda/bias_gradient"}
# Of many multiprocessors, which small problems fill only in parts.
LARGE = dataclasses.replace(PROPERTIES, multiprocessors=132)


def check(*texts, emulator=None):
    """Check problems given as text, on a GPU that is played."""
    with emulated(emulator) as used:
        for text in texts:
            problem = parse_problem(f"{text} cuda")
            testing.check_problem(registry.find(KEYS[problem.direction]), problem)
    return used


@pytest.mark.parametrize("direction", KEYS)
def test_every_problem_in_single_precision(direction, monkeypatch):
    monkeypatch.setattr(work, "TILES", work.TILES[2:3])  # each tile is a kernel to compile: `test_every_tile`
    problems = [p for p in testing.problems() if isinstance(p, ConvProblem) and p.direction == direction]
    with emulated():
        accepted = testing.check_algorithm(registry.find(KEYS[direction]), (p.replace(device="cuda") for p in problems))
    assert accepted == len(problems)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("direction", KEYS)
def test_other_element_types(dtype, direction):
    with emulated():
        problem = parse_problem(f"conv2d:{direction} n2 c5 ih9 iw8 oc7 kh3 kw2 p1 s2 bias cuda").replace(dtype=dtype)
        testing.check_problem(registry.find(KEYS[direction]), problem)


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:wgrad n3 c3 i13 oc4 k3 p1",
        "conv2d n1 c40 i3 oc5 k3 p1 bias residual relu",
        "conv2d:dgrad n1 c3 i3 oc40 k3 p1 channels_last",
        "linear n2 c300 oc5 bias",
    ],
)
def test_long_reductions_are_split(text):
    used = check(text, emulator=Emulator(properties=LARGE))
    assert {"direct", "direct_sum"} == {kernel.name for kernel, _ in used.launched}


@pytest.mark.parametrize("layout", ["", "channels_last"])
def test_long_bias_gradients_are_shared(layout):
    used = check(f"conv2d:bgrad n3 c3 i48 oc5 k3 bias {layout}", emulator=Emulator(properties=LARGE))
    assert {"bias_gradient", "bias_gradient_sum"} == {kernel.name for kernel, _ in used.launched}


@pytest.mark.parametrize("tile", [*work.TILES, *work.WIDE_TILES], ids=str)
def test_every_tile(tile, monkeypatch):
    monkeypatch.setattr(work, "WIDE_TILES" if tile in work.WIDE_TILES else "TILES", (tile,))
    dtype = "f64" if tile in work.WIDE_TILES else "f32"
    used = check(f"conv2d n2 c5 ih9 iw10 oc{tile.rows + 3} k3 p1 bias {dtype}")
    assert all(dict(kernel.defines)["TILE"] == ", ".join(map(str, tile)) for kernel, _ in used.launched)


@pytest.mark.parametrize(
    ("text", "packing"),
    [
        ("conv2d n2 c4 i6 oc5 k3 p1 bias residual relu", "_COLUMNS"),
        ("conv2d n2 c8 i8 oc6 k1 g2 f16", "_COLUMNS"),
        ("conv2d n2 c3 i7 oc8 k3 channels_last", "_ROWS"),
        ("conv2d:dgrad n2 c8 i7 oc3 k3 channels_last f64", "_ROWS"),
        ("conv2d:wgrad n2 c4 i7 oc5 k3", "_COLUMNS"),
        ("linear n3 c5 oc8 bias", "_ROWS"),
        ("conv2d n1 c3 i7 oc5 k3 channels_last", "_SCATTERED"),
        ("conv2d n1 c3 ih6 iw5 oc4 k3 s2 p1", "_SCATTERED"),
    ],
)
def test_whole_pieces_are_stored_at_once(text, packing, monkeypatch):
    found, choose = [], run._packing
    monkeypatch.setattr(run, "_packing", lambda *arguments: found.append(choose(*arguments)) or found[-1])
    check(text)
    assert found[0] == getattr(run, packing)


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr(run, "_LARGE", 1)
    used = check("conv2d n2 c3 i7 oc4 k3 p1 bias", "conv2d:dgrad n2 c3 i7 oc4 k3 s2 p1")
    assert all(dict(kernel.defines)["OFFSET"] == "long long" for kernel, _ in used.launched)


def test_large_arrays_get_offsets_of_64_bits():
    for text, offset in (("conv2d n8 c64 i512 oc64 k3 cuda", "int"), ("conv2d n70 c64 i512 oc64 k3 cuda", "long long")):
        with compiling_only(Compiler()) as compiler:
            registry.find("cuda/direct").plan(parse_problem(text))
        assert {dict(kernel.defines)["OFFSET"] for kernel in compiler.kernels} == {offset}


def test_phases_of_large_strides_take_several_launches():
    used = check("conv2d:dgrad n1 c2 i11 oc3 k5 s4 p1")
    assert max(grid[2] for _, grid in used.launched) == 8


def test_padding_is_folded_onto_elements_it_repeats():
    check(
        "conv2d:dgrad n2 c3 i5 oc2 k3 p4 reflect channels_last",
        "conv2d:dgrad n1 c2 i4 oc2 k3 p4 circular f16",
        "conv1d:dgrad n1 c2 i1 oc2 k3 p5 replicate bf16",
        "conv2d:dgrad n1 c2 i4 oc2 k3 p1 reflect f64",
    )


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_specials_come_out_where_the_reference_has_them(direction):
    algorithm = registry.find(KEYS[direction])
    texts = [t for t in CONVOLUTIONS if parse_problem(t).direction == direction]
    seen = set()
    for problem in (parse_problem(f"{text} cuda") for text in texts):
        clean = testing.random_inputs(problem)
        for changed in range(len(clean)):
            inputs = tuple(sprinkled(a, (np.nan, np.inf, -np.inf)) if i == changed else a for i, a in enumerate(clean))
            expected = testing.exact(problem, inputs)
            seen |= set(np.isfinite(expected.results[0]).ravel())
            with emulated():
                outputs = testing.run(algorithm, problem, inputs)
            testing.compare(problem, outputs, expected, algorithm.error_bound(problem))
    assert seen == {True, False}


def test_infinite_weights_do_not_meet_padding_in_input_gradients():
    problem = parse_problem("conv2d:dgrad n2 c3 i3 oc40 k3 p1 cuda")
    dy, w = testing.random_inputs(problem)
    inputs = dy, sprinkled(w, (np.inf,))
    expected = testing.exact(problem, inputs)
    assert not np.isnan(expected.results[0]).any()
    for properties in (PROPERTIES, LARGE):  # in one part, and in several
        with emulated(Emulator(properties=properties)):
            outputs = testing.run(registry.find("cuda/direct"), problem, inputs)
        testing.compare(problem, outputs, expected, registry.find("cuda/direct").error_bound(problem))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d n5 c3 i14 oc4 k3 p1 s2 bias residual relu",
        "conv2d:dgrad n5 c3 i14 oc4 k3 p1 s2",
        "conv2d:dgrad n5 c3 i7 oc4 k3 p1 reflect",
        "conv2d n5 c3 i7 oc4 k3 channels_last",
    ],
)
def test_positions_beyond_32_bits_are_counted_in_portions(monkeypatch, text):
    problem = parse_problem(f"{text} cuda")
    direct = registry.find("cuda/direct")
    monkeypatch.setattr("fastconv.backends.cuda.direct.algorithm._MOST", 120)
    with emulated() as emulator:
        assert direct.refuses(problem) is None
        testing.check_problem(direct, problem)
        emulator.launched.clear()
        testing.run(direct, problem, testing.random_inputs(problem))
        assert len(emulator.launched) > 1
        whole = direct.refuses(parse_problem("conv2d:wgrad n5 c3 i7 oc4 k3 p1 cuda"))
    assert whole == "has 2^31 positions and more"
