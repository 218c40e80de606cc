"""Winograd's convolution beyond what the registry's tests ask: tiles, blocks that workers share, edges, accuracy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fresh import python
from hypothesis import assume, given
from hypothesis import strategies as st
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.winograd.algorithm import ALGORITHMS as REGISTERED
from fastconv.backends.cpu.winograd.algorithm import WINOGRAD6
from fastconv.backends.cpu.winograd.points import matrices
from fastconv.backends.cpu.winograd.work import Work
from fastconv.geometry import Axis, fewest_reads
from fastconv.notation import parse_problem

ALGORITHMS = [*REGISTERED, WINOGRAD6]

# Several chunks of channels with and without a smaller last one; maps that tiles fit and do not fit; several images.
SHAPES = """
    conv2d n1 ic16 ih12 iw12 oc16 k3 p1
    conv2d n2 ic20 ih13 iw9 oc50 k3 p1 bias relu
    conv2d n3 ic40 ih7 iw8 oc33 k3
    conv2d n1 ic64 ih14 iw14 oc96 k3 p1 residual leaky_relu
    conv2d n2 ic48 ih10 iw11 oc64 k3 p1 g2 bias residual
    conv2d n1 ic24 ih18 iw17 oc40 k3 p1 channels_last bias residual relu
    conv2d n1 ic4 ih40 iw41 oc20 k3 p1 circular
    conv2d n1 ic18 ih9 iw9 oc18 k3 p2:0 sigmoid bias
    conv3d n2 ic20 id5 ih13 iw9 oc33 k3 p1 bias relu
    conv3d n1 ic18 id9 ih10 iw11 oc40 kd2 kh3 kw3 sd2 dd3 ph1 pw1 g2 residual
    conv3d n1 ic24 id4 ih12 iw10 oc20 kd3 kh3 kw3 p1 channels_last bias
    conv3d n2 ic5 id3 ih14 iw12 oc17 kd3 kh3 kw3 p1 circular
    conv3d n1 ic16 id3 ih9 iw10 oc17 kd1 kh3 kw3 ph1 pw1
    conv3d n1 ic12 id3 ih9 iw10 oc17 kd3 kh3 kw3 ph1 pw1 reflect
    conv3d n1 ic12 id6 ih9 iw10 oc17 kd3 kh3 kw3 pd1:-1 ph1 pw1
""".strip().splitlines()

# Maps that hold the largest kernels, whatever their shape.
STEPPING = """
    conv2d n2 ic20 ih45 iw53 oc33 k3 p1 bias relu
    conv2d n1 ic24 ih39 iw50 oc40 k3 ph1 pw0:2 g2 channels_last residual
    conv2d n1 ic13 ih24 iw61 oc17 k3 p1:3 reflect
    conv3d n1 ic18 id5 ih26 iw37 oc20 kd3 kh3 kw3 sd2 pd1 ph1 pw1
""".strip().splitlines()


def fitted(text, algorithm):
    """Return the problem of a text with the algorithm's kernel, and with padding that leaves as much of the map."""
    problem = parse_problem(text)
    padded = tuple(
        (max(0, min(before + (taps - 2) // 2, taps - 1)), max(0, after + (taps - 3) // 2))
        for taps, (before, after) in zip(algorithm.taps, problem.padding[-2:], strict=True)
    )
    depths = (problem.kernel_size[:-2], problem.padding[:-2])
    return problem.replace(kernel_size=(*depths[0], *algorithm.taps), padding=(*depths[1], *padded))


three = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)


@three
@pytest.mark.parametrize("threads", [1, 2])
def test_shapes(algorithm, threads):
    with fc.options(threads=threads):
        for text, dtype in itertools.product(SHAPES, ("float32", "float64")):
            testing.check_problem(algorithm, fitted(text, algorithm).replace(dtype=dtype))


def stepping(problem, algorithm, stride, spare):
    """Return a problem with a kernel that moves by ``stride``, and lacks ``spare`` taps of filling all its phases."""
    kernel = tuple(max(1, taps * stride - spare) for taps in algorithm.taps)
    depths = (problem.kernel_size[:-2], problem.stride[:-2])
    return problem.replace(kernel_size=(*depths[0], *kernel), stride=(*depths[1], stride, stride))


@three
@pytest.mark.parametrize("threads", [1, 2])
def test_steps(algorithm, threads):
    """Of phases with as many taps, and of some with fewer."""
    with fc.options(threads=threads):
        for text, spare in itertools.product(STEPPING, (0, 1)):
            testing.check_problem(algorithm, stepping(parse_problem(text), algorithm, 2, spare))


@pytest.mark.parametrize("key", ["numba/winograd3_2x2", "numba/winograd4", "numba/winograd4_1x3"])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_steps_of_any_length(key, stride):
    """Several phases may have fewer taps, or none."""
    algorithm = registry.find(key)
    for text, spare, dtype in itertools.product(STEPPING[:2], range(stride), ("float32", "float64")):
        problem = stepping(parse_problem(text), algorithm, stride, spare)
        testing.check_problem(algorithm, problem.replace(dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [name for name in ("avx512", "avx2", "none") if name != simd().name])
def test_shapes_with_other_vectors(vectors):
    """Tiles of every kind: what depends on the width is not in the matrices; `test_cpu_engine` tries all in float32."""
    code = """
import test_cpu_winograd as here
for algorithm in here.ALGORITHMS:
    if algorithm.name in ("winograd6", "winograd3_4x4", "winograd6_1x7", "winograd4_2x1"):
        here.test_shapes(algorithm, 1)
        here.test_steps(algorithm, 1)
"""
    python(code, FASTCONV_SIMD=vectors)


@three
@pytest.mark.parametrize("stride", [1, 2])
def test_error_is_within_half_of_the_bound(algorithm, stride):
    """On data of one sign nothing cancels in the output, and all does in the transforms."""
    padded = int(min(algorithm.taps) != 2)
    problems = (
        fitted(f"conv2d n1 ic{ic} ih48 iw48 oc32 k3 p{padded}", algorithm)
        if stride == 1
        else stepping(parse_problem(f"conv2d n1 ic{ic} ih96 iw96 oc32 k3"), algorithm, stride, stride - 1)
        for ic in itertools.count(1)
    )
    problem = next(problem for problem in problems if algorithm.refuses(problem) is None)
    for seed in range(4):
        inputs = testing.random_inputs(problem, seed)
        if seed % 2:
            inputs = tuple(np.abs(array) for array in inputs)
        outputs = testing.run(algorithm, problem, inputs)
        share = testing.largest_error(
            problem, outputs, testing.exact(problem, inputs), algorithm.error_bound(problem)
        )  # fmt: skip
        assert share < 1 / 2


@pytest.mark.parametrize(
    ("key", "text", "seed"),
    [
        ("numba/winograd4_2x2", "conv2d n1 c3 i80 oc32 k2", 16),
        ("numba/winograd3_4x4", "conv2d n1 c1 i80 oc32 k4", 25),
        ("numba/winograd6_1x3", "conv2d n1 c1 i80 oc32 kh2 kw6 s2", 44),
        ("numba/winograd6_3x1", "conv2d n1 c1 i80 oc32 kh6 kw2 s2", 23),
    ],
)
def test_largest_errors_are_within_half_of_the_bound(key, text, seed):
    """Of a neighbour's large terms, where an output's own are small: so few outputs that most seeds have none."""
    problem, algorithm = parse_problem(text), registry.find(key)
    inputs = testing.random_inputs(problem, seed)
    outputs, bound = testing.run(algorithm, problem, inputs), algorithm.error_bound(problem)
    assert testing.largest_error(problem, outputs, testing.exact(problem, inputs), bound) < 1 / 2


@three
def test_matrices_filter_exactly(algorithm):
    """``A^T [(G g) * (B^T d)]`` is the sliding product, in double precision to the last bits."""
    rng = np.random.default_rng(0)
    for m, taps in zip(algorithm.m, algorithm.taps, strict=True):
        data, filters, output = (np.array(matrix) for matrix in matrices(m, taps))
        d, g = rng.integers(-8, 8, m + taps - 1), rng.integers(-8, 8, taps)
        assert np.array_equal(np.rint(output @ ((filters @ g) * (data @ d))), np.correlate(d, g))


@three
def test_two_workers_share_a_block_of_tiles(algorithm):
    """One image of few tiles is no work for two, unless they share it; no bit of the result depends on it."""
    problem = fitted("conv2d n1 ic256 ih7 iw7 oc256 k3 p1 bias", algorithm)
    assert Work(algorithm.m, problem, simd(), 2, 1 << 20).block.shared
    check_threads_share(algorithm, problem)


@three
def test_a_weight_transformed_in_turns_gives_what_one_transformed_before_gives(algorithm):
    """One block of tiles reads each block of the weight once, which needs room for no more than that."""
    problem = fitted("conv2d n1 ic20 ih7 iw7 oc150 k3 p1 g2 bias", algorithm)
    inputs, results = testing.random_inputs(problem), []
    for threads in (1, 2):
        work = Work(algorithm.m, problem, simd(), threads, 1 << 20)
        assert work.packs_blocks and work.weight_room < work.packed_size * work.size
        for prepacked in (False, True):
            with fc.options(threads=threads):
                results.append(testing.run(algorithm, problem.replace(prepacked=prepacked), inputs)[0])
    assert all(np.array_equal(result, results[0]) for result in results)


@three
def test_prediction_falls_with_workers(algorithm):
    problem = fitted("conv2d n4 ic128 ih28 iw28 oc128 k3 p1", algorithm)
    one, two = (Work(algorithm.m, problem, simd(), workers, 1 << 20).block.cycles for workers in (1, 2))
    assert one / 2 <= two < one


@three
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_nan_and_infinity_stay_where_they_belong(algorithm, threads, special):
    problem = fitted("conv2d n1 ic32 ih14 iw14 oc32 k3 p1 bias residual relu", algorithm)
    x, w, *rest = testing.random_inputs(problem)
    x[0, 5, 3, 4] = special
    with fc.options(threads=threads):
        outputs = testing.run(algorithm, problem, (x, w, *rest))
    inputs = (x, w, *rest)
    testing.compare(problem, outputs, testing.exact(problem, inputs), algorithm.error_bound(problem))


@three
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0), (27, 26), (-1, -1)])
def test_nan_and_infinity_stay_where_steps_meet_them(algorithm, special, place):
    """A phase with a tap fewer leaves out the point to which the last element of its tile goes."""
    problem = stepping(parse_problem("conv2d n1 ic16 ih50 iw51 oc18 k3"), algorithm, 2, 1)
    x, w = testing.random_inputs(problem)
    x[0, 5][place] = special
    outputs = testing.run(algorithm, problem, (x, w))
    testing.compare(problem, outputs, testing.exact(problem, (x, w)), algorithm.error_bound(problem))


@three
@pytest.mark.parametrize("threads", [1, 2])
def test_padding_in_depth_multiplies_weights_that_are_not_finite(algorithm, threads):
    """As the reference has it: zero times infinity is no number, at the first depth of the output alone."""
    problem = fitted("conv3d n1 ic8 id4 ih12 iw12 oc20 k3 p1", algorithm)
    x, w = testing.random_inputs(problem)
    w[7, 3, 0] = np.inf
    with fc.options(threads=threads):
        outputs = testing.run(algorithm, problem, (x, w))
    with np.errstate(invalid="ignore"):
        exact = testing.exact(problem, (x, w))
    testing.compare(problem, outputs, exact, algorithm.error_bound(problem))


@given(st.data())
def test_fewest_reads_is_the_least_of_all_windows(data):
    kernel, stride, dilation = (data.draw(st.integers(1, most)) for most in (6, 4, 3))
    size, before, after = data.draw(st.integers(1, 12)), data.draw(st.integers(-2, 9)), data.draw(st.integers(-2, 9))
    room = size + before + after - (kernel - 1) * dilation - 1
    assume(room >= 0 and size + min(before, 0) + min(after, 0) >= 1)
    axis = Axis(size, room // stride + 1, kernel, stride, dilation, before, "zeros")
    windows = ([o * stride - before + k * dilation for k in range(kernel)] for o in range(axis.out))
    assert fewest_reads(axis) == min(sum(0 <= place < size for place in window) for window in windows)


def test_fewest_reads_of_a_line_takes_no_memory_that_grows_with_it():
    assert fewest_reads(Axis(1 << 50, 1 << 50, 7, 1, 1, 3, "zeros")) == 4


@pytest.mark.parametrize("depths", ["id1 kd3 pd1", "id4 kd3 pd3", "id4 kd2 dd4 pd2"])
def test_depths_of_the_output_that_see_few_products_are_refused(depths):
    algorithm = registry.find("numba/winograd4")
    sees = fitted("conv3d n1 ic4 id4 ih12 iw12 oc20 kd3 kh3 kw3 pd1 ph1 pw1", algorithm)
    assert algorithm.refuses(sees) is None
    why = algorithm.refuses(parse_problem(f"conv3d n1 ic2 {depths} ih12 iw12 oc20 kh3 kw3 ph1 pw1"))
    assert why is not None
    assert "products" in why


@three
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("activation", [None, "leaky_relu", "tanh"])
def test_a_residual_may_lie_in_any_order(algorithm, layout, activation):
    """One that lies as the output does is added as that is stored, any other afterwards."""
    problem = fitted("conv2d n2 ic20 ih13 iw9 oc50 k3 p1 bias residual", algorithm)
    problem = problem.replace(layout=layout, activation=activation)
    *others, residual = testing.random_inputs(problem)
    mirrored = np.ascontiguousarray(residual[..., ::-1])[..., ::-1]
    expected = testing.exact(problem, (*others, residual))
    for added in (residual, mirrored):
        outputs = testing.run(algorithm, problem, (*others, added))
        testing.compare(problem, outputs, expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("depths", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_an_input_gradient_of_volumes(depths, packed):
    """Its weight comes with all taps turned, those of the depth too."""
    text = f"conv3d:dgrad n2 ic21 id5 ih11 iw9 oc18 kd{depths} kh3 kw3 pd{depths // 2} ph1 pw1"
    testing.check_problem(registry.find("numba/dgrad_winograd4"), parse_problem(text).replace(prepacked=packed))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d:dgrad n2 ic21 ih14 iw18 oc18 k4 s2 p1 bias relu",
        "conv2d:dgrad n2 ic21 ih15 iw17 oc18 k4 s2 p1",
        "conv2d:dgrad n1 ic24 ih12 iw12 oc40 k4 s2 p1 channels_last",
        "conv2d:dgrad n1 ic24 ih13 iw12 oc40 k2",
    ],
)
def test_phases_of_a_kernel_that_moves_by_two(text, packed):
    testing.check_problem(registry.find("numba/dgrad_winograd3_2x2"), parse_problem(text).replace(prepacked=packed))


@pytest.mark.parametrize("key", [algorithm.key for algorithm in REGISTERED])
def test_a_flipped_weight_of_groups(key):
    """Its strides are those of the weight that an input gradient's convolution has."""
    taps = registry.find(key).taps
    padding = tuple((k - 1) // 2 for k in taps)
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 12, 13, 11)).astype(np.float32)
    w = rng.integers(-3, 4, (20, 6, *taps)).astype(np.float32)[:, :, ::-1, ::-1]
    expected = fc.conv2d(x, w, padding=padding, groups=2, backend="reference")
    for plan in (False, True):
        call = fc.plan(fc.conv2d, x, w, padding=padding, groups=2, algorithm=key) if plan else None
        y = call(x) if call else fc.conv2d(x, w, padding=padding, groups=2, algorithm=key)
        assert np.abs(y - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("key", ["numba/winograd4_1x3", "numba/winograd4_7x1", "numba/winograd3_2x2"])
def test_a_flipped_weight_of_a_volume_whose_filters_overlap(key):
    """Planes of a filter lie together, and those at one depth are another filter's at the next."""
    taps = registry.find(key).taps
    rng = np.random.default_rng(0)
    x, room = rng.standard_normal((1, 3, 5, 12, 12), np.float32), rng.standard_normal(4000, np.float32)
    elements, size = taps[0] * taps[1], room.itemsize
    strides = (elements * size, 40 * size, -elements * size, -taps[1] * size, -size)
    w = np.lib.stride_tricks.as_strided(room[2000:], (32, 3, 2, *taps), strides)
    expected = fc.conv3d(x, w, backend="reference")
    assert np.abs(fc.conv3d(x, w, algorithm=key) - expected).max() <= 1e-3 * np.abs(expected).max()
