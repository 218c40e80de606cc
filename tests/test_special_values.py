"""NaN, infinities, subnormal and huge numbers: what the reference makes of them, every algorithm makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import general_backends

import fastconv as fc
from fastconv import arrays, registry, testing
from fastconv.notation import parse_problem
from fastconv.problem import DTYPES

CONVOLUTIONS = [
    f"conv2d:{direction} n2 c4 ih9 iw8 oc4 kh3 kw2 {rest}"
    for direction in ("fprop", "dgrad", "wgrad")
    for rest in ("p1", "s2", "d2 p2 g2", "p2 reflect", "p1 channels_last", "p1 g4")
] + [
    "conv2d n2 c6 i7 oc5 k1",
    "conv2d:dgrad n2 c6 i7 oc5 k1",
    "conv2d n2 c3 i8 oc4 k3 p1 bias residual relu",
    "conv2d n2 c3 i8 oc4 k3 p1 leaky_relu",
    "conv2d n2 c3 i8 oc4 k3 relu6",
    "conv2d n2 c3 i8 oc4 k3 sigmoid",
    "conv2d n2 c3 i8 oc4 k3 tanh",
    "conv2d:bgrad n2 c3 i8 oc4 k3 bias",
    "conv1d n2 c3 i19 oc4 k4 s3 p2",
    "conv3d n1 c2 i5 oc3 k3 p1",
    "linear n4 c9 oc5 bias",
    "locally_connected2d n2 c3 i6 oc4 k3 p1",
]
POOLS = [
    "max_pool2d n2 c3 i9 k3 s2 p1 indices",
    "max_pool2d:dgrad n2 c3 i9 k3 s2 p1",
    "max_pool2d n2 c3 i8 k2 channels_last indices",
    "adaptive_max_pool2d n2 c3 i7 o3 indices",
    "avg_pool2d n2 c3 i9 k3 s2 p1",
    "avg_pool2d:dgrad n2 c3 i9 k3 s2 p1",
    "adaptive_avg_pool2d n2 c3 i7 o3",
    "lp_pool2d n2 c3 i9 k3 s2",
    "lp_pool2d:dgrad n2 c3 i9 k3 s2",
    "max_unpool2d n2 c3 i4 o8",
    "max_unpool2d:dgrad n2 c3 i4 o8",
    "unfold n2 c3 i7 k3 p1",
    "unfold:dgrad n2 c3 i7 k3 p1",
]


def solves(algorithm, text: str, dtype: str) -> bool:
    return algorithm.refuses(parse_problem(text).replace(dtype=dtype)) is None


def solvable(*texts: str, dtypes=tuple(DTYPES)):
    """Return a mark for every (key, text, dtype) that an algorithm does not refuse."""
    return pytest.mark.parametrize(
        ("key", "text", "dtype"),
        [
            (algorithm.key, text, dtype)
            for algorithm in registry.algorithms()
            for text in texts
            for dtype in dtypes
            if solves(algorithm, text, dtype)
        ],
    )


def sprinkled(array, values: tuple[float, ...]):
    """Return a copy with each of some values at a place of its own."""
    array = array.copy(order="K")
    for place, value in zip(np.random.default_rng(0).permutation(array.size), values, strict=False):
        array[np.unravel_index(place, array.shape)] = value
    return array


@solvable(*CONVOLUTIONS, *POOLS, dtypes=("float32", "float64", "float16"))
def test_specials_come_out_where_the_reference_has_them(key, text, dtype):
    """Into each input in turn: NaN alone, infinities alone, and all together, where infinities may cancel to NaN."""
    algorithm, problem = registry.find(key), parse_problem(text).replace(dtype=dtype)
    clean = testing.random_inputs(problem)
    changeable = [i for i, operand in enumerate(problem.inputs) if operand.dtype == dtype and operand.name != "y"]
    seen = set()
    for i in changeable:
        for values in ((np.nan,), (np.inf,), (-np.inf,), (np.nan, np.inf, -np.inf)):
            inputs = tuple(sprinkled(a, values) if i == j else a for j, a in enumerate(clean))
            if problem.inputs[-1].name == "y":  # goes with x
                forward = problem.replace(direction="fprop")
                inputs = (*inputs[:-1], testing.run(registry.find("reference/windows"), forward, inputs[1:2])[0])
            expected = testing.exact(problem, inputs)
            seen |= set(np.isfinite(expected.results[0]).ravel())
            testing.compare(problem, testing.run(algorithm, problem, inputs), expected, algorithm.error_bound(problem))
    assert seen == {True, False}


# -------------------------------------------------------------------------------------------------- max pools


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", general_backends())
def test_max_pool_of_minus_infinity(backend, dtype):
    """Padding is less than any element, minus infinity too: the index is that of an element."""
    x = np.full((1, 2, 6, 6), -np.inf).astype(arrays.dtype_named(dtype))
    y, indices = fc.max_pool2d(x, 3, 2, 1, return_indices=True, backend=backend)
    assert (y == -np.inf).all()
    assert (indices == [[0, 1, 3], [6, 7, 9], [18, 19, 21]]).all()
    y, indices = fc.adaptive_max_pool2d(x, 2, return_indices=True, backend=backend)
    assert (y == -np.inf).all()
    assert (indices == [[0, 3], [18, 21]]).all()


@pytest.mark.parametrize("backend", general_backends())
def test_max_pool_passes_nan_on(backend):
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 1], x[0, 0, 2, 3], x[0, 0, 3, 2] = np.nan, np.inf, np.nan
    y, indices = fc.max_pool2d(x, 2, return_indices=True, backend=backend)
    assert np.array_equal(y[0, 0], [[np.nan, 0], [0, np.nan]], equal_nan=True)
    assert indices[0, 0].tolist() == [[5, 2], [8, 14]]


# ------------------------------------------------------------------------------------------- very small numbers

# The smallest number above zero; its multiples by small integers are exact, and so are their sums.
SUBNORMAL = {"float32": 2.0**-149, "float64": 2.0**-1074, "float16": 2.0**-24, "bfloat16": 2.0**-133}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", [a.key for a in registry.algorithms() if a.strict])
def test_subnormal_numbers_are_not_flushed_to_zero(key, dtype):
    algorithm = registry.find(key)
    scalable = [text for text in CONVOLUTIONS + POOLS if "relu6" not in text]
    for problem in (parse_problem(text).replace(dtype=dtype) for text in scalable):
        if algorithm.refuses(problem) is None and testing.is_exact(problem):
            small = SUBNORMAL[dtype]
            integers = testing.integer_inputs(problem)
            linear = [i == 0 or o.name in ("bias", "residual") for i, o in enumerate(problem.inputs)]
            inputs = tuple(a * a.dtype.type(small) if scaled else a for a, scaled in zip(integers, linear, strict=True))
            expected = testing.exact(problem, integers).results[0] * small
            assert expected.any()
            result = testing.run(algorithm, problem, inputs)[0]
            assert np.array_equal(result, expected.astype(result.dtype))


# ------------------------------------------------------------------------------------------- very large numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key", [a.key for a in registry.algorithms()])
def test_sums_beyond_the_largest_number_are_infinite(key, dtype):
    """Sums of different length of one large number: all of one sign, so that their order does not matter."""
    algorithm = registry.find(key)
    numpy_dtype = arrays.dtype_named(dtype)
    large = 2.0 ** {"float32": 127, "float64": 1023, "float16": 15, "bfloat16": 127}[dtype]
    texts = ("conv2d n1 c2 i5 oc2 k3 p1", "conv2d:dgrad n1 c2 i5 oc2 k3 p1", "unfold:dgrad n1 c2 i5 k3 p1")
    for problem in (parse_problem(text).replace(dtype=dtype) for text in texts):
        if algorithm.refuses(problem) is None:
            ones = tuple(testing.laid_out(o, problem.layout, 1.0) for o in problem.inputs)
            counts = testing.exact(problem, ones).results[0]
            # Of the largest power of two, the whole fits once, a quarter seven times.
            for share, fits in ((1.0, 1), (0.25, 7)):
                first = (ones[0] * numpy_dtype.type(share * large)).astype(numpy_dtype)
                (result,) = testing.run(algorithm, problem, (first, *ones[1:]))
                assert (counts > fits).any()
                assert np.array_equal(
                    result.astype(np.float64) / large, np.where(counts <= fits, counts * share, np.inf)
                )


@pytest.mark.parametrize("key", [a.key for a in registry.algorithms()])
def test_half_precision_is_summed_in_single(key):
    """A sum that passes float16's largest number on its way, and comes back, is right."""
    algorithm, problem = registry.find(key), parse_problem("linear n1 c4 oc1 f16")
    if algorithm.refuses(problem) is None:
        x = np.array([[60000, 60000, -60000, -59000]], np.float16)
        (y,) = testing.run(algorithm, problem, (x, np.ones((1, 4), np.float16)))
        assert y.tolist() == [[float(x.astype(np.float32).sum())]]
    pool = parse_problem("avg_pool1d n1 c1 i4 k4 f16")
    if algorithm.refuses(pool) is None:
        (y,) = testing.run(algorithm, pool, (np.full((1, 1, 4), 60000, np.float16),))
        assert y.tolist() == [[[float(np.float16(60000))]]]


SPIKY = [
    "conv2d n1 c16 i20 oc16 k3 p1",
    "conv2d n1 c16 i20 oc16 k5 p2",
    "conv2d:dgrad n1 c16 i20 oc16 k3 p1",
    "conv1d n1 c2 i400 oc3 k101",
]


@solvable(*SPIKY, dtypes=("float32",))
def test_a_value_that_dwarfs_the_rest(key, text, dtype):
    """A plain sum feels it where it is read; what computes neighbours together, within the magnitude of the largest."""
    algorithm, problem = registry.find(key), parse_problem(text)
    x, w = testing.random_inputs(problem)
    x[0, 0, ..., x.shape[-1] // 2] *= 1e9
    inputs = (x, w)
    expected = testing.exact(problem, inputs)
    if not algorithm.strict:
        largest = np.broadcast_to(expected.magnitude.max(), expected.magnitude.shape)
        expected = expected._replace(magnitude=largest)
    testing.compare(problem, testing.run(algorithm, problem, inputs), expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("backend", [*general_backends(), "numba"])
@pytest.mark.parametrize(("norm", "low"), [(1.5, -1.0), (0.5, 0.0), (4.0, 1e13)])
def test_what_no_window_reads_has_no_gradient_whatever_its_power(backend, norm, low):
    x = np.full((1, 2, 7, 7), 2, np.float32)
    x[:, :, 2::3], x[..., 2::3] = low, low  # between windows of 2 that are 3 apart
    with np.errstate(all="ignore"):
        _, pullback = fc.vjp(fc.lp_pool2d, x, norm, 2, stride=3)
        dy = np.ones((1, 2, 2, 2), np.float32)
        with fc.options(backend=backend):
            (dx,) = pullback(dy)
    assert np.isfinite(dx).all()
    assert not dx[:, :, 2::3].any() and not dx[..., 2::3].any()


@pytest.mark.parametrize("backend", [*general_backends(), "numba"])
def test_a_norm_of_zero_has_no_slope_even_for_an_infinite_gradient(backend):
    x = np.ones((1, 1, 4, 4), np.float32)
    x[..., :2, :2] = 0
    with fc.options(backend=backend):
        _, pullback = fc.vjp(fc.lp_pool2d, x, 2.0, 2)
        (dx,) = pullback(np.array([[[[np.inf, 1], [1, 1]]]], np.float32))
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.filterwarnings("error")
def test_a_rectifier_lets_nothing_pass_even_if_it_is_infinite(activation):
    x, w = np.array([[-1, 1.0]], np.float32), np.eye(2, dtype=np.float32)
    _, pullback = fc.vjp(fc.linear, x, w, activation=activation)
    for special in (np.inf, np.nan):
        dx, dw = pullback(np.array([[special, 1]], np.float32))[:2]
        assert np.array_equal(dx, [[0, 1]])
        assert np.isfinite(dw).all()
