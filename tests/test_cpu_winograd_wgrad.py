"""Winograd's weight gradient: blocks of tiles, edges, any number of threads, accuracy, values that are not finite."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fresh import python
from sharing import check_threads_share

from fastconv import registry, testing
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.winograd.points import matrices
from fastconv.backends.cpu.winograd.wgrad import WinogradWgrad2x5, WinogradWgrad3x4, WinogradWgrad4, WinogradWgrad4x2
from fastconv.backends.cpu.winograd.wgrad_work import Work
from fastconv.notation import parse_problem
from fastconv.options import options

ALGORITHMS = [WinogradWgrad4(), WinogradWgrad2x5(), WinogradWgrad4x2(), WinogradWgrad3x4()]

# Chunks of inputs and blocks of outputs with and without a smaller last one; tiles that fit and do not; many images.
SHAPES = """
    conv2d:wgrad n1 ic16 ih12 iw12 oc16 k3 p1
    conv2d:wgrad n2 ic20 ih13 iw9 oc50 k3 p1
    conv2d:wgrad n3 ic40 ih7 iw8 oc33 k3
    conv2d:wgrad n2 ic48 ih10 iw11 oc64 k3 p1 g2
    conv2d:wgrad n1 ic24 ih18 iw17 oc40 k3 p1 channels_last
    conv2d:wgrad n1 ic4 ih40 iw41 oc20 k3 p1 circular
    conv2d:wgrad n1 ic18 ih9 iw9 oc18 k3 p2:0 reflect
    conv2d:wgrad n20 ic30 ih16 iw16 oc36 k3 p1
    conv2d:wgrad n1 ic5 ih8 iw1200 oc7 k3 p1
    conv3d:wgrad n2 ic20 id5 ih13 iw9 oc33 k3 p1
    conv3d:wgrad n1 ic18 id9 ih10 iw11 oc40 kd2 kh3 kw3 sd2 dd3 ph1 pw1 g2
    conv3d:wgrad n1 ic40 id4 ih12 iw10 oc20 k3 p1 channels_last
    conv3d:wgrad n3 ic5 id12 ih14 iw30 oc17 k3 p1 circular
    conv3d:wgrad n2 ic16 id3 ih9 iw10 oc17 kd1 kh3 kw3 ph1 pw1
    conv3d:wgrad n2 ic12 id3 ih9 iw10 oc17 kd3 kh3 kw3 ph1 pw1 reflect
""".strip().splitlines()

# Maps that hold the largest kernels.
STEPPING = """
    conv2d:wgrad n2 ic20 ih39 iw43 oc50 k3 p1
    conv2d:wgrad n3 ic40 ih35 iw34 oc33 k3 ph1 pw0:2 channels_last
    conv2d:wgrad n2 ic18 ih50 iw40 oc18 k3 p1 g2 reflect
    conv2d:wgrad n1 ic7 ih36 iw2500 oc9 k3 p1
    conv3d:wgrad n2 ic20 id4 ih35 iw41 oc17 kd2 kh3 kw3 sd2 ph1 pw1
""".strip().splitlines()

each = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: a.name)


def _problems(algorithm):
    for problem in map(parse_problem, SHAPES):
        yield problem.replace(kernel_size=(*problem.kernel_size[:-2], *(algorithm.taps,) * 2))


@each
@pytest.mark.parametrize("threads", [1, 2])
def test_shapes(algorithm, threads):
    with options(threads=threads):
        for problem, dtype in itertools.product(_problems(algorithm), ("float32", "float64")):
            testing.check_problem(algorithm, problem.replace(dtype=dtype))


@each
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stride", [2, 3])
def test_steps(algorithm, threads, stride):
    """Phases of as many taps, and some of fewer; sums that go on from block to block, and such that do not."""
    with options(threads=threads):
        for text, spare in itertools.product(STEPPING, range(stride)):
            problem = parse_problem(text)
            depths = (problem.kernel_size[:-2], problem.stride[:-2])
            kernel = (*depths[0], *(algorithm.taps * stride - spare,) * 2)
            testing.check_problem(algorithm, problem.replace(kernel_size=kernel, stride=(*depths[1], stride, stride)))


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [name for name in ("avx512", "avx2", "none") if name != simd().name])
def test_shapes_with_other_vectors(vectors):
    code = """
import test_cpu_winograd_wgrad as here
for algorithm in here.ALGORITHMS:
    here.test_shapes(algorithm, 1)
"""
    python(code, FASTCONV_SIMD=vectors)


@each
def test_blocks_of_tiles(algorithm, monkeypatch):
    """The sums go on from block to block if little memory is to be used."""
    monkeypatch.setattr("fastconv.backends.cpu.winograd.wgrad_work._TILES", 5)
    monkeypatch.setattr("fastconv.backends.cpu.winograd.wgrad_work._FEW", 1)
    for problem in _problems(algorithm):
        assert len(Work(algorithm.m, problem, simd(), 1, 1 << 20).blocks) > 1
        testing.check_problem(algorithm, problem)


@each
def test_any_number_of_threads(algorithm):
    for problem in _problems(algorithm):
        check_threads_share(algorithm, problem)


@each
def test_error_is_within_half_of_the_bound(algorithm):
    """On data of one sign nothing cancels in the gradient, and all does in the transforms."""
    problem = parse_problem(f"conv2d:wgrad n2 ic3 ih48 iw48 oc32 k{algorithm.taps} p1")
    for seed in range(4):
        inputs = testing.random_inputs(problem, seed)
        if seed % 2:
            inputs = tuple(np.abs(array) for array in inputs)
        outputs = testing.run(algorithm, problem, inputs)
        share = testing.largest_error(
            problem, outputs, testing.exact(problem, inputs), algorithm.error_bound(problem)
        )  # fmt: skip
        assert share < 1 / 2


@each
@pytest.mark.parametrize("images", [6, 24])
def test_error_of_few_products_is_within_the_bound(algorithm, images):
    """Where the transforms' own rounding is most of the error."""
    size = algorithm.taps + (1 if images == 6 else 0)
    problem = parse_problem(f"conv2d:wgrad n{images} ic64 ih{size} iw{size} oc64 k{algorithm.taps}")
    assert algorithm.refuses(problem) is None
    for seed in range(4):
        inputs = testing.random_inputs(problem, seed)
        outputs = testing.run(algorithm, problem, inputs)
        testing.compare(problem, outputs, testing.exact(problem, inputs), algorithm.error_bound(problem))


@each
def test_matrices_correlate_exactly(algorithm):
    """``G^T [(A g) * (B^T d)]`` is the sliding product of a few taps, in double precision to the last bits."""
    data, filters, output = (np.array(matrix) for matrix in matrices(algorithm.m, algorithm.taps))
    rng = np.random.default_rng(0)
    d, g = rng.integers(-8, 8, algorithm.m + algorithm.taps - 1), rng.integers(-8, 8, algorithm.m)
    assert np.array_equal(np.rint(filters.T @ ((output.T @ g) * (data @ d))), np.correlate(d, g))


@each
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_not_finite_stays_where_it_belongs(algorithm, value, stride):
    kernel, size = algorithm.taps * stride - (stride - 1), 12 * stride
    problem = parse_problem(f"conv2d:wgrad n1 ic4 i{size} oc6 k{kernel} s{stride} p1")
    x, dy = testing.random_inputs(problem, seed=5)
    x[0, 1, 0, 0], dy[0, 2, 3, 3] = value, value
    wanted = testing.run(registry.find("numba/wgrad"), problem, (x, dy))[0]
    found = testing.run(algorithm, problem, (x, dy))[0]
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    assert np.array_equal(np.isinf(found), np.isinf(wanted))


@each
def test_refusals(algorithm):
    for text in (
        "conv2d:fprop n2 ic8 ih14 iw14 oc8 k3",
        "conv2d:wgrad n2 ic8 ih14 iw14 oc8 k3 s3",
        "conv2d:wgrad n2 ic8 ih14 iw14 oc8 k3 d2",
        "conv2d:wgrad n2 ic8 ih94 iw94 oc8 k15 s5",
        "conv2d:wgrad n2 ic8 ih14 iw14 oc8 k1",
        "conv2d:wgrad n1 ic8 ih4 iw4 oc8 k3 p1",  # few products behind the corners
        "conv3d:wgrad n2 ic8 id5 ih14 iw14 oc8 k3 s3",
        "conv3d:wgrad n1 ic8 id2 ih14 iw14 oc8 kd3 kh3 kw3 pd2 ph1 pw1 dd2",  # a depth of the kernel sees padding alone
        "max_pool2d:fprop n1 c5 ih6 iw6 kh2 kw2",
    ):
        assert algorithm.refuses(parse_problem(text))
