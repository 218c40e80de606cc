"""1x1 convolution on the CPU engine: tiles, panels, memory orders, threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastconv import registry, testing
from fastconv.backends.cpu.cuts import even
from fastconv.backends.cpu.pointwise.work import LANES_ARE_CHANNELS, ROWS_ARE_CHANNELS, TURNED, Work
from fastconv.backends.cpu.registers import Simd
from fastconv.machine import machine
from fastconv.notation import parse_problem
from fastconv.options import options

POINTWISE, IN_PLACE = registry.find("numba/pointwise"), registry.find("numba/pointwise_in_place")

# Odd numbers of pixels and channels, tiles that do not divide them, strides, groups, dimensions.
SHAPES = """
    conv2d n1 c5 i8 oc7 k1 bias
    conv2d n1 c1 i3 oc1 k1
    conv2d n3 c9 i1 oc17 k1 bias
    conv2d n1 c40 i7 oc48 k1 bias residual relu
    conv2d n2 c33 i14 oc100 k1 bias residual leaky_relu
    conv2d n2 c33 i17 oc20 k1 bias residual relu6
    conv2d n1 c65 i19 oc31 k1 bias tanh
    conv2d n1 c3 ih61 iw47 oc3 k1 residual
    conv2d n2 c70 ih60 iw61 oc1 k1 bias residual relu
    conv2d n1 c90 ih61 iw60 oc2 k1 bias
    conv2d n2 c33 ih57 iw31 oc64 k1 s2 bias residual relu
    conv2d n3 c7 ih9 iw5 oc40 k1 sh2 sw1
    conv2d n3 c7 ih9 iw5 oc40 k1 sh1 sw2
    conv2d n2 c33 ih17 iw13 oc40 k1 s3 bias
    conv2d n2 c24 i10 oc72 k1 g3 bias residual
    conv2d n2 c24 i13 oc8 k1 g4 s2
    conv2d n3 c300 i10 oc700 k1 bias
    conv1d n2 c33 iw50 oc40 k1 bias
    conv3d n2 c9 id3 ih4 iw5 oc17 k1 s2 bias
    conv2d n1 c6 i7 oc9 kh1 kw1 ph0:-1 pw0:-2
""".strip().splitlines()


# Each algorithm in the memory orders that it takes.
WAYS = [(POINTWISE, "channels_first"), (POINTWISE, "channels_last"), (IN_PLACE, "channels_first")]


@pytest.mark.parametrize(("algorithm", "layout"), WAYS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("text", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_awkward_shapes_are_right_and_the_same_for_any_number_of_threads(text, algorithm, layout, dtype):
    problem = parse_problem(text).replace(layout=layout, dtype=dtype)
    assert algorithm.refuses(problem) is None
    results = []
    for threads in (1, 2):
        with options(threads=threads):
            testing.check_problem(algorithm, problem)
            testing.check_problem(algorithm, problem.replace(prepacked=True))
            results.append(testing.run(algorithm, problem, testing.random_inputs(problem)))
    assert np.array_equal(results[0][0], results[1][0], equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", [text for text in SHAPES if " g" not in text])
@pytest.mark.parametrize("algorithm", [POINTWISE, IN_PLACE], ids=lambda algorithm: algorithm.name)
def test_transposed_weights_are_read_right(algorithm, text, dtype):
    """Those whose output channels lie together, as a gradient finds them."""
    problem = parse_problem(text).replace(dtype=dtype)
    inputs = testing.random_inputs(problem)
    w = np.ascontiguousarray(inputs[1].swapaxes(0, 1)).swapaxes(0, 1)
    testing.compare(
        problem,
        testing.run(algorithm, problem, (inputs[0], w, *inputs[2:])),
        testing.exact(problem, inputs),
        algorithm.error_bound(problem),
    )


def test_weights_that_lie_in_no_order_are_copied():
    problem = parse_problem("conv2d n1 c40 i7 oc48 k1 bias residual relu")
    x, w, *rest = testing.random_inputs(problem)
    spread = np.zeros((48, 80, 1, 1), np.float32)[:, ::2]
    spread[...] = w
    expected = testing.run(IN_PLACE, problem, (x, w, *rest))
    assert np.array_equal(testing.run(IN_PLACE, problem, (x, spread, *rest))[0], expected[0])


@pytest.mark.parametrize("algorithm", [POINTWISE, IN_PLACE], ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("text", ["conv2d n2 c33 i14 oc100 k1 bias residual relu", "conv2d n2 c8 i57 oc24 k1 s2"])
def test_special_values_stay_in_their_pixel(algorithm, text):
    """Lanes and rows that do not exist must not reach those that do."""
    problem = parse_problem(text)
    inputs = testing.random_inputs(problem)
    inputs[0][0, 3, 0, 2] = np.nan
    inputs[0][1, 0, -1, -1] = np.inf
    with np.errstate(invalid="ignore"):
        reference = testing.exact(problem, inputs)
    testing.compare(problem, testing.run(algorithm, problem, inputs), reference, algorithm.error_bound(problem))


@pytest.mark.parametrize("form", [ROWS_ARE_CHANNELS, TURNED, LANES_ARE_CHANNELS])
@pytest.mark.parametrize(
    "text", ["conv2d n2 c19 i9 oc37 k1 bias residual relu", "conv2d n2 c19 i15 oc70 k1 s2 g1 bias"]
)
def test_every_tiling_is_right(text, form, monkeypatch):
    """Also those that no cost model chooses for the shape."""
    layout = "channels_last" if form == LANES_ARE_CHANNELS else "channels_first"
    problem = parse_problem(text).replace(layout=layout)
    tiles = [tile for tile in Work(problem, machine_simd(), 1, 1 << 20)._tiles() if tile.form == form]
    for tile in tiles:
        monkeypatch.setattr(Work, "_tiles", lambda self, tile=tile: iter([tile]))
        for algorithm in (POINTWISE, IN_PLACE) if form == ROWS_ARE_CHANNELS else (POINTWISE,):
            testing.check_problem(algorithm, problem)
    assert tiles


def machine_simd() -> Simd:
    from fastconv.backends.cpu.registers import simd

    return simd()


def test_pieces_are_even_and_cover_the_length():
    for length, most in itertools.product(range(1, 200), range(1, 30)):
        cut = even(length, most)
        assert 1 <= cut.full <= cut.pieces and 1 <= cut.size <= most
        assert cut.full * cut.size + (cut.pieces - cut.full) * (cut.size - 1) == length


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "registers", [Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True), Simd("neon", 16, 32, True)]
)
def test_tiles_fit_the_registers_and_every_worker_gets_some(registers, layout, workers):
    for channels, size, outputs in itertools.product((16, 2080), (1, 7, 14, 56, 147), (3, 24, 128, 1536)):
        problem = parse_problem(f"conv2d n1 c{channels} i{size} oc{outputs} k1").replace(layout=layout)
        work = Work(problem, registers, workers, 1 << 20)
        tile = work.tile
        vectors = tile.cut.size if tile.form == ROWS_ARE_CHANNELS else tile.block
        rows = tile.block if tile.form == ROWS_ARE_CHANNELS else tile.cut.size
        assert rows * vectors + vectors + 1 <= registers.registers
        assert work.bands * work.band >= work.images * tile.cut.pieces
        assert 1 <= work.parts <= tile.blocks
        assert work.band * work.panel_bytes <= max(1 << 19, work.panel_bytes)


@pytest.mark.parametrize("text", ["n16 c16 i14 oc512", "n64 c8 i10 oc100", "n16 c128 i7 oc512"])
def test_one_thread_writes_one_image_after_the_other(text):
    work = Work(parse_problem(f"conv2d {text} k1"), Simd("avx512", 64, 32, True), 1, 1 << 20)
    assert work.band == work.tile.cut.pieces


def test_compiled_loops_do_not_grow_with_the_shapes_that_come():
    from fastconv.backends.cpu.pointwise.loops import loops
    from fastconv.backends.cpu.pointwise.tile import tile

    before = tile.cache_info().currsize
    for size, channels in itertools.product(range(30, 60), (5, 64)):
        POINTWISE.plan(parse_problem(f"conv2d n1 c{channels} i{size} oc64 k1"))
    assert tile.cache_info().currsize - before <= 24
    assert loops.cache_info().currsize == 1


def test_workspace_is_what_the_runner_takes():
    shapes = ("conv2d n2 c300 i10 oc700 k1", "conv2d n1 c2080 i8 oc1536 k1", "conv2d n1 c64 i57 oc64 k1 s2")
    for text, algorithm in itertools.product(shapes, (POINTWISE, IN_PLACE)):
        problem = parse_problem(text)
        runner = algorithm.plan(problem).run.__self__
        packed = 0 if algorithm is IN_PLACE else runner.pack(testing.random_inputs(problem)[1]).array.nbytes
        assert algorithm.workspace_bytes(problem) >= packed + runner._scratch
        assert algorithm.workspace_bytes(problem.replace(prepacked=True)) >= runner._scratch
        assert runner._scratch <= machine().threads() * (2 << 20)
