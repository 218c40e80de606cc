"""Dense convolution on the CPU engine: slabs, stages of weights, bands, and columns in the lanes."""

from __future__ import annotations

import numpy as np
import pytest
from fresh import python
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.direct.borders import Borders
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.planes.work import Work as PlanesWork
from fastconv.backends.cpu.registers import Simd
from fastconv.geometry import Axis
from fastconv.machine import machine
from fastconv.notation import parse_problem

AVX512, AVX2 = Simd("avx512", 64, 32, True), Simd("avx2", 32, 16, True)

DIRECT = [
    "conv2d n1 c600 i9 oc33 k3 p1",  # stages, and chunks that do not divide the channels
    "conv2d n1 c300 i12 oc40 k3 p1 bias residual relu",  # what a stage resumes has bias and residual already
    "conv2d n1 c512 i40 oc33 k3 p1 s2",  # bands, the last smaller
    "conv2d n1 c37 i40 oc33 k5 p2 reflect",
    "conv2d n2 c5 i33 oc9 k3 p1 d2",
    "conv2d n1 c40 ih3 iw40 oc8 k5 p2",
    "conv2d n2 c4 i2 oc3 k3 p4",  # windows that lie in the padding wholly
    "conv2d n1 c2048 i7 oc33 k3 p1 channels_last",
    "conv2d n2 c512 i9 oc33 k1 channels_last",  # pixels that contend for cache sets
    "conv2d n3 c512 i5 oc10 k5",
    "conv2d n1 c40 i41 oc200 k1 bias",  # a map in bands, each of which all blocks read
    "conv3d n1 c20 i6 oc17 k3 p1",
    "conv3d n2 c6 id17 ih9 iw8 oc10 k3 p3 s2 d2 g2",  # slabs of several depths, with planes and rows that none reads
    "conv3d n1 c64 id9 ih30 iw31 oc5 k2 s3 d2 p1 reflect",  # slabs of one depth, and rows that none reads
    "linear n37 c1024 oc70 bias residual relu",
    "linear n96 c20 oc70 bias residual relu",
]
PLANES = [
    "conv2d n2 c3 ih40 iw41 oc9 k3 p1 s2 bias",
    "conv2d n1 c3 ih40 iw75 oc17 k5 p2 s2 residual relu",
    "conv2d n3 c7 i40 oc3 k5 p2 reflect",
    "conv2d n1 c4 ih3 iw40 oc8 k5 p2 leaky_relu bias",
    "conv2d n1 c1 ih40 iw90 oc1 k5 p2 d2 s2",
    "conv2d n2 c4 i2 oc3 k3 p4",
    "conv2d n1 c64 i70 oc1 k3 p1 tanh",
    "conv3d n2 c4 i5 oc4 k3 p1 d2 s2",
    "conv1d n2 c3 i190 oc5 k4 s2 p1 bias",
    "conv1d n2 c3 i190 oc5 k4 s3 p1 bias",
    "conv2d n1 c3 ih20 iw150 oc2 k2 s4 d3 p5",
    "conv2d n1 c3 ih20 iw41 oc2 k3 s5 p2 circular",
    "conv3d n1 c2 id9 ih9 iw60 oc2 k1 s7 p1",
]
CASES = [("numba/direct", t) for t in DIRECT] + [("numba/planes", t) for t in PLANES]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("key", "text"), CASES)
def test_shapes_that_the_loops_cut_up(key, text, dtype):
    testing.check_problem(registry.find(key), parse_problem(text).replace(dtype=dtype))


SHARED = [
    "conv2d n1 c40 i37 oc70 k3 p1 bias",
    "conv2d n1 c512 i7 oc512 k3 p1",
    "conv2d n1 c100 i8 oc70 k3 p1 s2 bias",  # of blocks that are packed in turn, as many as there are workers
    "conv3d n3 c6 id17 ih9 iw8 oc10 k3 p1 g2",
    "conv1d n1 c40 i3001 oc16 k5 s2 p3",
    "conv1d n1 c40 i3001 oc10 k5 d3",
    "conv2d n1 c3 ih2 iw3000 oc20 k3 p1 reflect channels_last",
    "linear n384 c100 oc40",
    "linear n1013 c100 oc10",
    "linear n1018 c100 oc20 f16",
    "linear n769 c512 oc20",  # put together, since pixels so far apart contend for the same sets of a cache
    "conv2d n1013 c5 i3 oc10 k3",
]


@pytest.mark.parametrize(
    ("key", "text"),
    [("numba/direct", t) for t in SHARED]
    # Of a line, images are all that there is to share.
    + [
        ("numba/planes", t.replace("conv1d n1", "conv1d n3"))
        for t in SHARED
        if not t.startswith("linear") and " g" not in t
    ],
)
def test_any_number_of_threads_gives_the_same_bits(key, text):
    check_threads_share(registry.find(key), parse_problem(text), counts=(1, 2, 3, 8))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d n1 c37 i9 oc70 k3 p1 bias",  # channels that fill no chunk, in a block that is packed
        "conv2d n1 c64 i9 oc200 k3 p1 g2 f16",
        "conv2d n1 c512 i40 oc600 k3 p1 s2",  # more than the cache holds
        "conv2d n1 c60 i7 oc300 k1",
        "linear n40 c60 oc300",
    ],
)
def test_a_block_of_the_weight_may_be_packed_when_its_turn_comes(text):
    problem, algorithm = parse_problem(text), registry.find("numba/direct")
    inputs = testing.random_inputs(problem)
    (wanted,) = testing.run(algorithm, problem.replace(prepacked=True), inputs)
    x, w, *bias = inputs
    with fc.options(threads=1):
        assert Work.of(problem).packs_blocks
        plan = algorithm.plan(problem)
    for weight in (w, np.asfortranarray(w), np.repeat(w, 2, 1)[:, ::2], w):
        y = np.full_like(wanted, np.nan)
        plan.run((x, weight, *bias), (y,))
        np.testing.assert_array_equal(y, wanted)


def test_workers_share_out_the_blocks_of_one_map():
    problem = parse_problem("conv2d n1 c100 i7 oc64 k3 p1")
    for workers in (1, 2, 4):
        work = Work(problem, AVX512, workers, 1 << 20)
        assert work.packs_blocks
        assert work.busy == workers
    assert not Work(problem.replace(n=2), AVX512, 2, 1 << 20).packs_blocks


@pytest.mark.parametrize("text", ["conv2d n1 c1 i4 oc1 k3 p8", "conv2d n1 c3 ih3 iw224 oc3 kh3 kw3 sh16 ph5 g3 f16"])
def test_nothing_is_predicted_to_take_less_than_no_time(text):
    """Most tiles meet nothing but padding."""
    problem, algorithm = parse_problem(text), registry.find("numba/direct")
    assert Work(problem, AVX512, 1, 1 << 20).summing_cycles >= 0
    assert algorithm.predict(problem, machine()) > 0


@pytest.mark.parametrize("images", [1009, 1018, 1024])
def test_every_worker_gets_images_whatever_divides_their_number(images):
    problem = parse_problem(f"linear n{images} c100 oc10")
    assert Work(problem, AVX512, 1, 1 << 20).units == 1
    assert Work(problem, AVX512, 2, 1 << 20).units > 4


def test_depths_share_a_slab_as_far_as_it_stays_in_the_cache_and_every_worker_gets_some():
    problem = parse_problem("conv3d n2 c6 id17 ih9 iw8 oc10 k3 p1 g2")
    assert Work(problem, AVX512, 1, 1 << 20).deep == 17
    assert Work(problem, AVX512, 4, 1 << 20).deep == 4
    smaller = Work(problem, AVX512, 1, 1 << 15)
    assert 1 < smaller.deep < 17
    assert smaller.slab_bytes(smaller.band) <= 1 << 14
    assert Work(parse_problem("conv3d n2 c6 i16 oc10 k2 s2"), AVX512, 1, 1 << 20).deep == 1  # no plane is shared


@pytest.mark.parametrize("vectors", [AVX512, AVX2])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("text", [text for text in DIRECT if not text.startswith("linear")])
def test_bands_cover_the_rows_and_no_more(vectors, workers, text):
    work = Work(parse_problem(text), vectors, workers, 1 << 20)
    rows = work.output[0]
    assert work.tile.rows <= work.band <= rows
    assert (work.bands - 1) * work.band < rows <= work.bands * work.band
    # A chunk of a pixel's channels is a cache line at most, if it is copied.
    assert not work.staged or work.item * work.size <= 64
    assert work.chunks * work.item >= work.inputs
    assert 1 <= work.stage(work.item) <= work.terms // work.item


def test_pixels_that_many_channels_read_are_put_together_where_registers_are_few():
    def is_staged(vectors, text):
        return Work(parse_problem(text), vectors, 1, 1 << 20).staged

    assert is_staged(AVX2, "conv2d n1 c256 i28 oc128 k1")
    assert not is_staged(AVX2, "conv2d n1 c256 i28 oc32 k1")
    assert not is_staged(AVX2, "conv2d n1 c256 i28 oc128 k1 s2")
    assert not is_staged(AVX512, "conv2d n1 c256 i28 oc128 k1")


@pytest.mark.parametrize("vectors", [AVX512, AVX2])
@pytest.mark.parametrize("text", PLANES)
def test_planes_fit_the_registers_and_the_lines(vectors, text):
    work = PlanesWork(parse_problem(text), vectors, 2, 1 << 20)
    assert work.rows * work.vectors + work.vectors + 1 <= vectors.registers
    assert work.span % (work.vectors * work.lanes) == 0
    assert (work.bands - 1) * work.band < work.height.out <= work.bands * work.band


def test_few_channels_are_left_to_planes():
    x = np.zeros((1, 1, 512, 512), np.float32)
    for outputs in (1, 3):
        problem_x = x if outputs == 1 else np.zeros((1, 16, 256, 256), np.float32)
        w = np.zeros((outputs, problem_x.shape[1], 5, 5), np.float32)
        predicted = {c.algorithm: c.predicted for c in fc.explain(fc.conv2d, problem_x, w, padding=2).candidates}
        assert predicted["numba/planes"] < predicted["numba/direct"]


@pytest.mark.parametrize("key", ["numba/direct", "numba/planes"])
def test_special_values_stay_where_the_windows_are(key):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 20, 19, 35)).astype(np.float32)
    w = rng.standard_normal((3, 20, 3, 3)).astype(np.float32)
    clean = fc.conv2d(x, w, padding=1, algorithm=key)
    x[0, 7, 9, 17] = np.nan
    touched = np.isnan(fc.conv2d(x, w, padding=1, algorithm=key))
    expected = np.zeros(clean.shape, bool)
    expected[:, :, 8:11, 16:19] = True
    np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize("prepacked", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "text",
    ["conv2d n2 ic20 i7 oc70 k3 p1", "conv2d n1 c32 i14 oc64 k5 s2 p2 g2", "conv3d n1 ic17 i5 oc20 k3 p1"],
)
def test_weights_that_are_not_finite_count_on_padding(text, value, prepacked):
    """Taps that meet nothing but padding are left out only where zero times the weight is zero."""
    algorithm, problem = registry.find("numba/direct"), parse_problem(text)
    for corner in ((0,) * problem.ndim, (-1,) * problem.ndim):
        inputs = testing.random_inputs(problem)
        inputs[1][(17, 3, *corner)] = value
        wanted = testing.exact(problem, inputs)
        with fc.options(threads=1):
            assert Work.of(problem).cuts
            outputs = testing.run(algorithm, problem.replace(prepacked=prepacked), inputs)
        testing.compare(problem, outputs, wanted, algorithm.error_bound(problem))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("numba/direct", "conv2d n1 c16 i13 oc16 k5 p2 bias"),
        ("numba/direct", "conv2d n1 c4 i7 oc4 k5 p4 d2 bias"),
        ("numba/dgrad_woven", "conv2d:dgrad n1 c16 i25 oc16 k4 s2 p1 bias"),
    ],
)
def test_zeros_have_no_sign_that_tells_what_was_left_out(key, text):
    """A row may be in two tiles that leave out different taps, and in other ones for other numbers of threads."""
    algorithm, problem = registry.find(key), parse_problem(text)
    inputs = {o.name: testing.laid_out(o, problem.layout, -0.0 if o.name == "bias" else 0.0) for o in problem.inputs}
    inputs["w"][...] = -1
    (result,) = testing.run(algorithm, problem, tuple(inputs.values()))
    assert not np.signbit(result).any()


@pytest.mark.parametrize(
    "axis",
    [
        Axis(7, 7, 3, 1, 1, 1, "zeros"),
        Axis(8, 4, 4, 2, 1, 1, "zeros"),
        Axis(9, 9, 5, 1, 2, 4, "zeros"),
        Axis(3, 5, 5, 1, 3, 7, "zeros"),
        Axis(2, 6, 1, 1, 1, 2, "zeros"),
    ],
)
def test_borders_are_the_taps_that_meet_the_input(axis):
    borders = Borders(axis)
    line = np.arange(axis.kernel) * axis.dilation - axis.before
    meets = [(line + o * axis.stride >= 0) & (line + o * axis.stride < axis.size) for o in range(axis.out)]
    for met, (first, stop) in zip(meets, borders.taps, strict=True):
        assert np.array_equal(met, (np.arange(axis.kernel) >= first) & (np.arange(axis.kernel) < stop))
    whole = [o for o, met in enumerate(meets) if met.all()]
    assert list(range(*borders.inner)) == whole
    assert borders.met(1) == pytest.approx(sum(met.sum() for met in meets) / axis.kernel)


def test_borders_of_a_long_line_take_no_memory():
    borders = Borders(Axis(1 << 50, 1 << 50, 9, 1, 1, 4, "zeros"))
    assert borders.inner == (4, (1 << 50) - 4) and borders.met(1) == pytest.approx(1 << 50)
    assert borders.outputs[0].tolist() == [4, 1 << 50]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["conv2d n1 c200 i13 oc20 k1 bias relu", "conv2d n2 c200 i27 oc64 k1 residual"])
def test_tiles_of_two_sizes_in_stages(text):
    """In a fresh process with few registers, where such tiles are chosen."""
    code = f"""
from fastconv import registry, testing
from fastconv.backends.cpu.direct.work import Work
from fastconv.notation import parse_problem
problem = parse_problem({text!r})
work = Work.of(problem)
assert work.cut.full < work.cut.pieces and work.stage(work.item) * work.item < work.terms
testing.check_problem(registry.find("numba/direct"), problem)
testing.check_problem(registry.find("numba/direct"), problem.replace(dtype="float64", prepacked=True))
"""
    python(code, FASTCONV_SIMD="avx2")
