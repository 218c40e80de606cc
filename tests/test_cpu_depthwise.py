"""Depthwise convolution of the CPU engine: awkward maps, kernels and memory orders, and what stands at borders."""

from __future__ import annotations

import numpy as np
import pytest
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.depthwise.walked_work import Work as WalkedWork
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.registers import Simd, simd
from fastconv.machine import machine
from fastconv.notation import parse_problem

ALGORITHM = registry.find("numba/depthwise")
TURNED = registry.find("numba/depthwise_turned")
WALKED = registry.find("numba/depthwise_walked")
WGRAD = registry.find("numba/depthwise_wgrad")


SHAPES = """
    conv2d n2 c3 i10 oc3 k3 p1 g3
    conv2d n2 c3 i7 oc3 k3 p1 g3 bias relu
    conv2d n1 c2 i19 oc2 k3 p1 g2 bias residual relu
    conv2d n1 c2 i37 oc4 k3 p1 g2 bias
    conv2d n1 c2 ih40 iw75 oc2 k3 p1 g2
    conv2d n1 c2 i33 oc2 k3 s2 p1 g2 bias
    conv2d n1 c2 i9 oc2 k3 s2 p1 g2 residual sigmoid
    conv2d n1 c2 i34 oc2 k3 s2 p0:1 g2
    conv2d n1 c2 i34 oc2 k3 s3 p1 g2
    conv2d n1 c2 i75 oc4 k5 s4 p2 g2 bias
    conv2d n1 c2 ih20 iw83 oc2 k2 s5 d2 ph0 pw3 g2
    conv2d n1 c2 ih20 iw61 oc2 k1 s4 g2
    conv2d n1 c2 ih20 iw90 oc2 k3 s7 p9 g2
    conv2d n1 c2 ih20 iw90 oc2 k3 s9 p1 g2
    conv2d n1 c2 i21 oc2 k3 d2 p2 g2
    conv2d n1 c2 i21 oc2 k5 p2 g2
    conv2d n1 c2 i21 oc2 k5 s2 p2 g2 leaky_relu
    conv2d n1 c2 i21 oc2 k7 p3 g2
    conv2d n1 c2 i5 oc2 k7 p3 g2
    conv2d n1 c2 i1 oc2 k3 p1 g2
    conv2d n1 c1 i5 oc1 k3 p1
    conv2d n1 c2 ih9 iw40 oc2 kh4 kw2 p1:2 g2 s2
    conv2d n1 c2 i12 oc2 k11 p5 g2
    conv2d n1 c2 i12 oc2 k3 p1 g2 reflect
    conv2d n1 c2 i12 oc2 k3 p1 g2 circular s2
    conv2d n1 c2 i12 oc4 k3 p1 g2 replicate s3
    conv2d n1 c2 i52 oc2 k5 p4 g2 reflect s3
    conv2d n2 c3 i7 oc3 k3 p1:-1 g3
    conv1d n2 c3 i50 oc3 k3 p1 g3
    conv1d n2 c3 i50 oc6 k5 p2 s2 d3 g3
    conv3d n1 c2 id4 ih5 iw6 oc2 k3 p1 g2
    conv3d n1 c2 id5 ih5 iw20 oc2 k3 p1 g2 s2 bias
    conv3d n1 c2 i5 oc2 k3 p2 g2 d2
    conv2d n2 c3 i10 oc3 k3 p1 g3 channels_last
    conv2d n2 c19 i10 oc19 k3 p1 g19 channels_last bias residual relu
    conv2d n2 c33 i9 oc33 k3 p1 g33 channels_last bias s2
    conv2d n2 c16 i12 oc16 k5 p2 g16 channels_last bias s2 d2
    conv2d n2 c16 i12 oc16 k3 p1 g16 channels_last reflect
    conv2d n2 c4 i12 oc8 k3 p1 g4 channels_last
    conv3d n1 c20 i5 oc20 k3 p1 g20 channels_last
    conv1d n2 c6 i11 oc6 k3 p1 g6 channels_last
""".strip().splitlines()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", SHAPES)
def test_awkward_shapes(text, dtype):
    problem = parse_problem(text).replace(dtype=dtype)
    testing.check_problem(ALGORITHM, problem)
    testing.check_problem(ALGORITHM, problem.replace(prepacked=True))


PLANES = [text for text in SHAPES if TURNED.refuses(parse_problem(text)) is None] + [
    "conv2d n7 c5 i13 oc10 k3 s3 p1 g5 bias",
    "conv2d n2 c18 i19 oc18 k7 ph9 pw0 d3 g18 bias residual relu",
    "conv2d n1 c16 ih300 iw9 oc16 k3 p1 g16",
    "conv2d n3 c16 i9 oc16 k1 s4 g16",
    "conv2d n2 c3 i2 oc3 k2 g3",
    "conv3d n3 c9 id9 ih4 iw7 oc18 kd3 kh2 kw5 s2 p2 g9 bias",
    "conv1d n17 c2 i40 oc2 k9 s5 p4 g2",
    "conv3d n1 c9 id1 ih6 iw7 oc9 k3 p1 g9",  # all but one of the depths are padding
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", PLANES)
def test_planes_in_lanes(text, dtype):
    problem = parse_problem(text).replace(dtype=dtype)
    testing.check_problem(TURNED, problem)
    testing.check_problem(TURNED, problem.replace(prepacked=True))


def test_a_single_depth_may_be_padding():
    testing.check_problem(TURNED, parse_problem("conv3d n3 c4 id1 ih7 iw5 oc4 kd1 kh1 kw5 sd2 pd1:0 pw1 g4 bias"))


def test_planes_of_few_channels_follow_one_another():
    plan = TURNED.plan(parse_problem("conv2d n64 c3 i9 oc3 k3 p1 g3"))
    assert plan.run.__self__.work.folded
    lone = TURNED.plan(parse_problem("conv2d n64 c64 i9 oc64 k3 p1 g64"))
    assert not lone.run.__self__.work.folded


# Of what is walked down, every number of vectors, both widths of them, pairs of planes and lone ones, strips that
# overlap, every border, and maps of which nothing is inside.
STRIPS = """
    conv2d n2 c5 i7 oc5 k3 p1 g5 bias residual relu
    conv2d n1 c1 i13 oc1 k3 p1
    conv2d n2 c3 i10 oc3 k3 p1 g3 residual
    conv2d n1 c3 i14 oc3 k3 g3 leaky_relu
    conv2d n1 c3 ih5 iw1 oc3 k3 p1 g3 bias
    conv2d n1 c3 ih1 iw5 oc3 k3 p1 g3 bias
    conv2d n1 c2 ih1 iw1 oc2 k3 p1 g2
    conv2d n1 c2 ih2 iw20 oc2 k3 ph3 pw1 g2 bias sigmoid
    conv2d n1 c2 ih4 iw20 oc2 k3 ph4:0 pw0:1 g2
    conv2d n1 c2 ih9 iw19 oc2 k3 p1 g2
    conv2d n1 c2 ih9 iw28 oc2 k3 p1:0 g2
    conv2d n1 c2 ih9 iw37 oc2 k3 p1 g2
    conv2d n1 c2 ih9 iw56 oc2 k3 p1 g2 bias residual
    conv2d n1 c2 ih9 iw74 oc2 k3 p0:1 g2
    conv2d n1 c2 ih9 iw112 oc2 k3 p1 g2
    conv2d n1 c2 ih9 iw129 oc2 k3 p1 g2 bias
    conv2d n1 c2 ih9 iw260 oc2 k3 p1 g2 residual
    conv2d n2 c5 i13 oc5 k3 s2 p1 g5 bias residual relu
    conv2d n1 c3 i28 oc3 k3 s2 p0:1 g3
    conv2d n1 c3 i28 oc3 k3 s2 p1:0 g3
    conv2d n1 c3 ih2 iw1 oc3 k3 s2 p1 g3
    conv2d n1 c3 ih3 iw9 oc3 k3 s2 ph4 pw0 g3
    conv2d n1 c2 ih11 iw56 oc2 k3 s2 p1 g2
    conv2d n1 c2 ih11 iw75 oc2 k3 s2 p1 g2 bias
    conv2d n1 c2 ih11 iw112 oc2 k3 s2 p1 g2 residual
    conv2d n1 c2 ih11 iw150 oc2 k3 s2 p1 g2
""".strip().splitlines()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", STRIPS)
def test_strips_walked_down(text, dtype):
    problem = parse_problem(text).replace(dtype=dtype)
    testing.check_problem(WALKED, problem)
    testing.check_problem(WALKED, problem.replace(prepacked=True))


@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize(
    "vectors",
    [
        *(Simd("avx512", 64, 32, True, rate) for rate in (1.0, 2.0)),
        Simd("avx2", 32, 16, True),
        Simd("neon", 16, 32, True),
        Simd("none", 16, 16, False),
    ],
)
@pytest.mark.parametrize("text", STRIPS)
def test_strips_fit_registers_and_map(text, vectors, workers):
    work = WalkedWork(parse_problem(text), vectors, workers, 1 << 20)
    strip, out = work.strip, work.axes[2].out
    sums = strip.planes * strip.vectors * -(-3 // work.axes[1].stride)
    assert strip.planes * work.taps + sums < vectors.registers
    # All vectors but the last are whole.
    assert (strip.vectors - 1) * strip.lanes < out
    assert strip.planes <= work.problem.ic
    assert work.bands * work.band >= work.axes[1].out >= work.band


def test_strips_are_of_many_forms():
    vectors = Simd("avx512", 64, 32, True, 1.0)
    forms = {WalkedWork(parse_problem(text), vectors, 1, 1 << 20).strip[:3] for text in STRIPS}
    assert {1, 2} == {planes for planes, _, _ in forms}
    assert {1, 2, 3, 4, 5, 7} == {count for _, count, _ in forms}
    assert {8, 16} == {lanes for _, _, lanes in forms}


@pytest.mark.parametrize("stride", [1, 2])
def test_strips_read_nothing_beyond_the_maps(stride):
    """What lies around the planes is not a number, and comes out nowhere."""
    problem = parse_problem(f"conv2d n1 c3 i37 oc3 k3 s{stride} p1 g3 prepacked")
    x, w = testing.random_inputs(problem)
    around = np.full((1, 3, 41, 41), np.nan, np.float32)
    around[:, :, 2:39, 2:39] = x
    plan = WALKED.plan(problem)
    y = np.full((1, 3, 80, 80), 7, np.float32)
    inside = y[:, :, 3 : 3 + problem.output_size[0], 3 : 3 + problem.output_size[1]]
    plan.run(plan.packed((around[:, :, 2:39, 2:39], w)), (inside,))
    testing.compare(problem, (inside.copy(),), testing.exact(problem, (x, w)), WALKED.error_bound(problem))
    inside[...] = 7
    assert (y == 7).all()


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_size": (5, 5)},
        {"dilation": (2, 2)},
        {"stride": (1, 2)},
        {"stride": (3, 3)},
        {"padding": ((1, 1), (2, 1))},
        {"padding_mode": "reflect"},
        {"layout": "channels_last"},
        {"oc": 6},
        {"groups": 1},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_what_is_not_walked_down(change):
    problem = parse_problem("conv2d n1 c3 i37 oc3 k3 p1 g3")
    assert WALKED.refuses(problem) is None
    assert WALKED.refuses(problem.replace(**change)) is not None


def gradient_of(text: str):
    """Return the weight gradient of a forward problem."""
    return parse_problem(text).replace(direction="wgrad", bias="none", residual=False, activation=None)


GRADIENTS = [text for text in SHAPES if WGRAD.refuses(gradient_of(text)) is None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", GRADIENTS)
def test_weight_gradients(text, dtype):
    testing.check_problem(WGRAD, gradient_of(text).replace(dtype=dtype))


def test_weight_gradients_refuse_little():
    assert len(GRADIENTS) >= len(SHAPES) - 11


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1], ids=["x", "dy"])
@pytest.mark.parametrize("text", ["conv2d:wgrad n1 c3 i9 oc3 k3 p1 g3", "conv2d:wgrad n1 c2 i35 oc2 k3 s2 p1 g2"])
def test_specials_at_borders_of_weight_gradients(text, operand, special):
    """One channel alone: beyond the last column nothing is multiplied, and padding is."""
    problem = parse_problem(text)
    inputs = testing.random_inputs(problem)
    inputs[operand][:, 0, -1, -1] = special
    outputs = testing.run(WGRAD, problem, inputs)
    testing.compare(problem, outputs, testing.exact(problem, inputs), WGRAD.error_bound(problem))


@pytest.mark.parametrize("text", GRADIENTS[:3])
def test_weight_gradients_on_any_number_of_threads(text):
    check_threads_share(WGRAD, gradient_of(text))


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [(ALGORITHM, text) for text in SHAPES if "n2" in text]
    + [(TURNED, text.replace("n2", "n40")) for text in PLANES if "n2" in text]
    + [(TURNED, "conv2d n4 c20 i40 oc20 k3 s3 p1 g20"), (TURNED, "conv3d n1 c20 i16 oc20 k3 p1 g20")]
    + [
        (WALKED, text)
        for text in (
            "conv2d n1 c3 i97 oc3 k3 p1 g3 bias",
            "conv2d n3 c33 i14 oc33 k3 p1 g33 residual",
            "conv2d n1 c3 i197 oc3 k3 s2 p1 g3 relu",
            "conv2d n5 c35 i28 oc35 k3 s2 p1 g35",
        )
    ],
)
def test_any_number_of_threads_gives_the_same_bits(algorithm, text):
    check_threads_share(algorithm, parse_problem(text))


@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1], ids=["x", "w"])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d n1 c17 i9 oc17 k3 p1 g17",
        "conv2d n1 c2 i35 oc2 k3 s2 p1 g2",
        "conv2d n1 c2 i20 oc2 k5 p2 g2",
        "conv3d n1 c2 i5 oc2 k3 p1 g2",
    ],
)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_specials_at_borders_come_out_where_the_reference_has_them(text, operand, special, layout):
    """Padding counts: zero times an infinite weight is NaN there, as in the reference."""
    problem = parse_problem(text).replace(layout=layout)
    inputs = testing.random_inputs(problem)
    for corner in ((0,) * problem.ndim, (-1,) * problem.ndim):
        inputs[operand][(slice(None), 0, *corner)] = special
    for algorithm in (ALGORITHM, TURNED, WALKED):
        if algorithm.refuses(problem) is not None:
            continue
        outputs = testing.run(algorithm, problem, inputs)
        testing.compare(problem, outputs, testing.exact(problem, inputs), algorithm.error_bound(problem))


@pytest.mark.parametrize("workers", [1, 2, 16])
@pytest.mark.parametrize(
    "vectors", [Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True), Simd("neon", 16, 32, True)]
)
@pytest.mark.parametrize("text", SHAPES)
def test_tiles_fit_registers_and_map(text, vectors, workers):
    work = Work(parse_problem(text), vectors, workers, 1 << 20)
    tile = work.tile
    assert tile.rows <= work.band <= work.height.out
    assert work.bands * work.band >= work.height.out
    assert tile.rows * tile.vectors + work.kernel_rows + tile.vectors <= max(vectors.registers, 4)
    assert 1 <= work.parts <= work.blocks


@pytest.mark.parametrize("text", ["conv2d n8 c64 i190 oc64 k3 p1 g64", "conv2d n8 c64 i190 oc64 k5 s2 p2 g64"])
def test_maps_beyond_the_caches_are_written_a_row_or_two_at_a_time(text):
    large = Work(parse_problem(text), Simd("avx512", 64, 32, True), 1, 1 << 20)
    assert large.far
    assert large.tile.rows <= 2 or large.tiles_across == 1
    # Nobody waits for the lines of maps that stay near: tiles have the rows that compute fastest.
    small = Work(parse_problem(text).replace(n=1, ic=1, oc=1, groups=1), large.simd, 1, 1 << 20)
    assert not small.far
    assert small.tile.rows > 2


def test_of_tiles_that_all_keep_up_with_memory_the_one_of_fewest_cycles_is_taken():
    problem = parse_problem("conv2d n64 c256 i40 oc256 k3 s2 p1 g256")
    work = Work(problem, Simd("avx512", 64, 32, True, 1.0), 1, 1 << 20)
    assert work.waiting == 0
    assert work.tile.cycles <= min(work._cycles(7, 3, work.lanes // 2), work._cycles(10, 2, work.lanes))


def beyond_the_caches(stride: int):
    """Return a convolution of a large map whose rows no tile and no strip spans."""
    channels = 9 * machine().l2_bytes // (4 * 100 * 290) + 1
    return parse_problem(f"conv2d n1 c{channels} ih100 iw290 oc{channels} k3 s{stride} p1 g{channels} prepacked")


def test_a_map_beyond_the_caches():
    problem = beyond_the_caches(1)
    assert Work.of(problem).far
    testing.check_problem(ALGORITHM, problem)


@pytest.mark.parametrize("stride", [1, 2])
def test_strips_side_by_side_of_a_map_beyond_the_caches(stride):
    problem = beyond_the_caches(stride)
    assert WalkedWork.of(problem).far
    testing.check_problem(WALKED, problem)


def test_strips_that_span_rows_wait_for_nothing():
    vectors = Simd("avx512", 64, 32, True, 1.0)
    spanning, beside = (
        WalkedWork(parse_problem(f"conv2d n1 c256 i{size} oc256 k3 p1 g256"), vectors, 1, 1 << 20)
        for size in (112, 224)
    )
    assert spanning.pieces == 0
    assert beside.pieces == 256 * 224 * 2 * 2
    assert beside.far
    assert not spanning.far


@pytest.mark.skipif(simd().name != "avx512", reason="only AVX-512 has registers for strips that span such rows")
def test_strips_side_by_side_of_large_maps_are_predicted_to_be_slower_than_tiles():
    with fc.options(threads=1):
        for size, first in ((112, WALKED), (256, ALGORITHM)):
            problem = parse_problem(f"conv2d n1 c1 i{size} oc1 k3 p1")
            channels = 36 * machine().l2_bytes // problem.bytes
            problem = problem.replace(ic=channels, oc=channels, groups=channels, prepacked=True)
            assert min(ALGORITHM, WALKED, key=lambda algorithm: algorithm.predict(problem, machine())) is first


def test_compiled_loops_do_not_grow_with_the_maps_that_come():
    from fastconv.backends.cpu.depthwise.loops import columns

    before = columns.cache_info().currsize
    for size in range(5, 60):
        x = np.zeros((1, 2, size, size), np.float32)
        fc.conv2d(x, np.zeros((2, 1, 3, 3), np.float32), padding=1, groups=2, algorithm="numba/depthwise")
    assert columns.cache_info().currsize - before <= 16
