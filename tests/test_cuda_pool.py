"""Pools, unpooling, unfold and fold in emulation: every problem of the shape sets, and every way to solve them."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulation import Emulator, emulated

from fastconv import arrays, registry, testing
from fastconv.backends.cuda import parameters
from fastconv.backends.cuda.pool import windows
from fastconv.notation import parse_problem
from fastconv.options import options
from fastconv.problem import DTYPES, PoolProblem

KEYS = ("cuda/pool", "cuda/pool_gradient", "cuda/unpool", "cuda/unfold")


def solver(problem):
    """Return the one algorithm that solves a pool."""
    (algorithm,) = [a for a in map(registry.find, KEYS) if a.declines(problem) is None]
    return algorithm


def pools(dtype):
    found = [p for p in testing.problems(dtype) if isinstance(p, PoolProblem)]
    return [p.replace(device="cuda") for p in found if p.index_dtype == "int64"]


def check(*texts, dtype="float32", emulator=None):
    """Check problems, and return the names of the kernels that solved them."""
    with emulated(emulator) as emulator:
        for text in texts:
            problem = parse_problem(f"{text} cuda").replace(dtype=dtype)
            testing.check_problem(solver(problem), problem)
    return {kernel.name for kernel, _ in emulator.launched}


@pytest.fixture
def crowded(monkeypatch):
    """So many threads, for the multiprocessors there are, that each has several rows and windows are not shared."""
    monkeypatch.setattr(windows, "RESIDENT_THREADS", 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_problem(dtype):
    with emulated() as emulator:
        for problem in pools(dtype):
            testing.check_problem(solver(problem), problem)
    assert len({kernel.name for kernel, _ in emulator.launched}) > 10


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("crowded")
def test_threads_with_several_rows(dtype):
    with emulated():
        for problem in pools(dtype):
            testing.check_problem(solver(problem), problem)


OVERLAPPING = [
    "max_pool2d n2 c16 ih9 iw7 k3 s2 p1 indices channels_last",
    "max_pool2d n1 c16 ih9 iw7 k3 s2 p1 channels_last",
    "max_pool2d:dgrad n2 c16 ih9 iw7 k3 s2 p1 channels_last",
    "avg_pool2d n1 c16 ih9 iw7 k3 s2 p1 ceil exclude_pad channels_last",
    "avg_pool2d:dgrad n1 c16 ih9 iw7 k3 s2 p1 ceil exclude_pad channels_last",
    "lp_pool3d n1 c16 i5 k3 s2 ceil norm2 channels_last",
    "lp_pool2d n1 c16 i7 k3 s1 norm1 channels_last",
    "lp_pool2d:dgrad n1 c16 i7 k3 s2 ceil norm2 channels_last",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_channels(dtype):
    names = check(*OVERLAPPING, dtype=dtype)
    assert names >= {f"{name}_vectors" for name in ("maximum", "indexed_maximum", "average", "usual_norm")}


@pytest.mark.usefixtures("crowded")
def test_vectors_of_channels_and_several_rows():
    check(*OVERLAPPING, dtype="float16")


LARGE_WINDOWS = [
    "adaptive_avg_pool2d n3 c5 i7 o1",
    "adaptive_avg_pool2d n2 c16 i7 o1 channels_last",
    "adaptive_avg_pool2d n1 c3 i40 o1",
    "adaptive_avg_pool2d n1 c3 i33 o2",
    "adaptive_max_pool2d n2 c3 ih17 iw23 oh3 ow2 indices",
    "adaptive_max_pool3d n1 c16 i6 o1 indices channels_last",
    "adaptive_max_pool1d n2 c3 i700 o1",
    "max_pool2d n1 c3 i20 k9 s3 p4 d2 indices",
    "max_pool2d n1 c16 i20 k8 s3 p4 channels_last indices",
    "avg_pool2d n2 c3 i19 k9 s4 p3 ceil exclude_pad",
    "lp_pool2d n2 c3 i13 k7 s6 norm2",
    "lp_pool2d n2 c16 i13 k7 s6 norm2 channels_last",
    "lp_pool2d n1 c3 i13 k7 s6 norm4",
]


@pytest.mark.parametrize("text", LARGE_WINDOWS)
def test_large_windows_are_shared(text):
    assert all(name.endswith("_reduced") for name in check(text))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_large_windows_of_vectors(dtype):
    names = check(
        "adaptive_avg_pool2d n2 c16 i7 o1 channels_last",
        "adaptive_max_pool2d n1 c16 i9 o1 channels_last indices",
        "lp_pool2d n1 c16 i7 k7 norm2 channels_last",
        dtype=dtype,
    )
    assert names >= {f"{name}_vectors_reduced" for name in ("average", "indexed_maximum", "usual_norm")}


@pytest.mark.parametrize(
    "text",
    [
        "avg_pool2d:dgrad n1 c2 i11 k3 s1 p1",
        "avg_pool2d:dgrad n1 c2 ih13 iw6 k2 s3",
        "avg_pool2d:dgrad n2 c3 i8 k4 s1 p2 ceil div7",
        "lp_pool1d:dgrad n1 c2 i17 k4 s1 norm3",
        "adaptive_avg_pool2d:dgrad n2 c3 ih7 iw3 oh5 ow8",
        "adaptive_avg_pool2d:dgrad n2 c16 ih7 iw5 oh3 ow2 channels_last",
        "adaptive_max_pool2d:dgrad n2 c3 ih7 iw3 oh5 ow8",
        "max_pool2d:dgrad n1 c2 ih21 iw6 k5 s1 p2",
        "max_pool2d:dgrad n1 c2 i12 k3 s2 p2 d2",
        "max_pool2d:dgrad n1 c16 i12 k3 s1 p2 d2 channels_last",
        "max_pool3d:dgrad n1 c2 i7 k3 s2 p1",
        "unfold:dgrad n2 c3 ih9 iw8 k3 s2 d3 p2",
        "unfold:dgrad n1 c3 i6 kd2 kh3 kw2 s2 p1 channels_last",
        "unfold n1 c1 i5 k7 p3",
    ],
)
@pytest.mark.parametrize("resident", [0, windows.RESIDENT_THREADS])
def test_windows_over_one_another(text, resident, monkeypatch):
    monkeypatch.setattr(windows, "RESIDENT_THREADS", resident)
    check(text)


def test_batches_in_several_rows_of_the_grid(monkeypatch):
    monkeypatch.setattr(windows, "_MOST_UNITS", 500)
    with emulated() as emulator:
        for text in ("max_pool2d n5 c3 i12 k2 indices cuda", "avg_pool2d:dgrad n5 c2 i8 k3 s1 p1 cuda"):
            problem = parse_problem(text)
            testing.check_problem(solver(problem), problem)
    assert all(len(grid) == 2 and grid[1] > 1 for _, grid in emulator.launched)


def special_inputs(problem):
    """Return inputs of few values, so that many are equal, NaN and infinities among them."""
    rng = np.random.default_rng(3)
    values = np.array([0.0, 1.0, 2.0, -1.0, np.nan, np.inf, -np.inf])
    odds = [0.25, 0.3, 0.25, 0.14, 0.02, 0.02, 0.02]
    inputs = []
    for array, operand in zip(testing.random_inputs(problem), problem.inputs, strict=True):
        special = rng.choice(values, operand.shape, p=odds)
        inputs.append(array if operand.dtype == "int64" else testing.laid_out(operand, problem.layout, special))
    return tuple(inputs)


@pytest.mark.parametrize(
    "text",
    [
        "max_pool2d n2 c3 i9 k3 s2 p1",
        "max_pool2d n2 c3 i9 k3 s2 p1 indices",
        "max_pool2d n2 c16 i9 k3 s2 p1 indices channels_last",
        "max_pool2d n2 c16 i9 k3 s2 p1 channels_last",
        "adaptive_max_pool2d n2 c3 i12 o2 indices",
        "adaptive_max_pool2d n2 c16 i12 o2 indices channels_last",
        "adaptive_max_pool2d n3 c3 i12 o1",
        "max_pool2d:dgrad n2 c3 i9 k3 s2 p1",
        "avg_pool2d n2 c3 i9 k3 s2 p1",
        "avg_pool2d:dgrad n2 c3 i9 k3 s2 p1",
        "lp_pool2d n2 c3 i9 k3 s2",
        "lp_pool2d n2 c3 i9 k3 s2 norm3",
        "lp_pool2d:dgrad n2 c3 i9 k3 s2",
        "max_unpool2d n2 c3 i4 o8",
        "max_unpool2d:dgrad n2 c3 i8 o16",
        "unfold n2 c3 i7 k3 p1",
        "unfold:dgrad n2 c3 i7 k3 p1",
    ],
)
@pytest.mark.parametrize("resident", [0, windows.RESIDENT_THREADS])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity_as_the_reference_has_them(text, resident, monkeypatch):
    monkeypatch.setattr(windows, "RESIDENT_THREADS", resident)
    problem = parse_problem(f"{text} cuda")
    inputs = special_inputs(problem)
    with emulated():
        outputs = testing.run(solver(problem), problem, inputs)
    expected = testing.exact(problem, inputs)
    assert not np.isfinite(expected.results[0]).all()
    testing.largest_error(problem, outputs, expected, solver(problem).error_bound(problem))


def test_narrow_indices_are_declined():
    problem = parse_problem("max_pool2d:dgrad n1 c2 i8 k2 int16_indices cuda")
    assert "64 bits" in registry.find("cuda/pool_gradient").declines(problem)


@pytest.mark.parametrize("resident", [0, windows.RESIDENT_THREADS])
def test_window_of_padding_alone(resident, monkeypatch):
    monkeypatch.setattr(windows, "RESIDENT_THREADS", resident)
    problem = parse_problem("max_pool1d n1 c2 i1 k2 d2 p1 s1 indices cuda")
    with emulated():
        y, indices = testing.run(solver(problem), problem, testing.random_inputs(problem))
        backward = problem.replace(direction="dgrad", return_indices=False)
        (dx,) = testing.run(solver(backward), backward, (np.ones_like(y), indices))
    assert (y == -np.inf).all() and (indices == -1).all() and (dx == 0).all()


@pytest.mark.parametrize("layout", ["", "channels_last"])
def test_last_of_repeated_indices_stays(layout):
    problem = parse_problem(f"max_unpool2d n3 c2 i5 o6 {layout} cuda")
    indices = np.random.default_rng(5).integers(0, 9, problem.x_shape)
    x = testing.random_inputs(problem)[0]
    inputs = x, testing.laid_out(problem.inputs[1], problem.layout, indices)
    with emulated():
        (y,) = testing.run(solver(problem), problem, inputs)
    assert np.array_equal(y, testing.exact(problem, inputs).results[0].astype(np.float32))


@pytest.mark.parametrize("layout", ["", "channels_last"])
def test_an_index_outside_names_no_place(layout):
    """On the CPU that is an error; a GPU would have to be waited for to tell."""
    forward = parse_problem(f"max_unpool2d n2 c3 i4 o6 {layout} cuda")
    backward = forward.replace(direction="dgrad")
    generator = np.random.default_rng(6)
    indices = generator.permuted(np.arange(36)[None, None].repeat(2, 0).repeat(3, 1), axis=2)[..., :16].reshape(
        2, 3, 4, 4
    )
    outside = generator.random(indices.shape) < 0.3
    wrong = np.where(outside, generator.choice([-1, 36, 2**40, -(2**40)], indices.shape), indices)
    with emulated():
        for problem in (forward, backward):
            first = testing.random_inputs(problem)[0]
            given = testing.laid_out(problem.inputs[1], problem.layout, wrong)
            (result,) = testing.run(solver(problem), problem, (first, given))
            kept = testing.laid_out(problem.inputs[1], problem.layout, indices)
            if problem is forward:
                expected = testing.exact(problem, (np.where(outside, 0, first), kept)).results[0]
            else:
                expected = np.where(outside, 0, testing.exact(problem, (first, kept)).results[0])
            assert np.array_equal(result, expected.astype(np.float32))


def test_unpooling_in_little_workspace():
    problem = parse_problem("max_unpool2d n5 c2 i4 o8 cuda")
    with emulated() as emulator, options(max_workspace=1200):
        algorithm = solver(problem)
        assert 0 < algorithm.workspace_bytes(problem) <= 1200
        testing.check_problem(algorithm, problem)
        emulator.launched.clear()
        testing.run(algorithm, problem, testing.random_inputs(problem))
    assert [kernel.name for kernel, _ in emulator.launched] == ["unpool_clear", "unpool_claim", "unpool_fill"] * 3


@pytest.mark.parametrize(
    "text",
    [
        "max_pool2d n2 c8 i9 k3 s2 p1 indices",
        "adaptive_avg_pool2d n2 c8 i9 o1",
        "avg_pool2d:dgrad n2 c8 i9 k3 s2 p1",
        "max_pool2d:dgrad n2 c8 i9 k3 s2 p1",
        "max_unpool2d n2 c8 i4 o8",
        "unfold n2 c8 i7 k3 p1",
        "unfold:dgrad n2 c8 i7 k3 p1",
    ],
)
def test_arrays_of_any_strides(text):
    problem = parse_problem(f"{text} cuda")
    inputs = testing.random_inputs(problem)
    with emulated():
        plan = solver(problem).plan(problem)
        wanted = testing.run(solver(problem), problem, inputs)
        for spread in (2, 3):
            outputs = []
            for operand in problem.outputs:
                whole = np.zeros([spread * size for size in operand.shape], arrays.dtype_named(operand.dtype))
                outputs.append(whole[tuple(slice(None, None, -spread) for _ in operand.shape)])
            turned = tuple(np.ascontiguousarray(a.T).T for a in inputs)
            plan.run(turned, tuple(outputs))
            for output, first in zip(outputs, wanted, strict=True):
                assert np.array_equal(output, first)


def test_vectors_want_alignment():
    problem = parse_problem("max_pool2d n1 c8 i6 k2 channels_last cuda")
    (x,) = testing.random_inputs(problem)
    whole = np.zeros((1, 6, 6, 9), np.float32)
    shifted = whole.reshape(-1)[1 : 1 + 36 * 8].reshape(1, 6, 6, 8).transpose(0, 3, 1, 2)
    shifted[...] = x
    with emulated() as emulator:
        algorithm = solver(problem)
        (wanted,) = testing.run(algorithm, problem, (x,))
        (y,) = testing.run(algorithm, problem, (shifted,))
    assert np.array_equal(y, wanted)
    assert [kernel.name for kernel, _ in emulator.launched] == ["maximum_vectors", "maximum"]


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("cuda/pool", "max_pool2d n1 c1 ih2 iw1500000000 k2", "elements of a map"),
        ("cuda/unfold", "unfold n1 c50000 i1000 k2", "elements of an image"),
        ("cuda/pool", "conv2d n1 c3 i8 oc4 k3", "forward pools only"),
        ("cuda/pool", "max_pool2d:dgrad n1 c3 i8 k2", "forward pools only"),
        ("cuda/pool_gradient", "max_unpool2d:dgrad n1 c3 i4 o8", "gradients of pools only"),
    ],
)
def test_what_is_declined(key, text, reason):
    assert reason in registry.find(key).declines(parse_problem(f"{text} cuda"))


def test_predictions_are_bytes_over_bandwidth():
    with emulated(Emulator()) as emulator:
        for small, large in (
            ("max_pool2d n64 c64 i112 k3 s2 p1", "max_pool2d n128 c64 i112 k3 s2 p1"),
            ("max_unpool2d n64 c64 i28 o56", "max_unpool2d n128 c64 i28 o56"),
            ("unfold:dgrad n8 c64 i28 k3 p1", "unfold:dgrad n16 c64 i28 k3 p1"),
        ):
            first, second = (parse_problem(f"{text} cuda") for text in (small, large))
            seconds = solver(first).predict(first, None)
            assert first.bytes / emulator.properties().bandwidth <= seconds < solver(second).predict(second, None)


def test_fastdiv_of_64_bits():
    for divisor in (1, 2, 3, 7, 640, 2**31 - 1, 2**32 + 1, 2**63 - 25):
        _, multiplier, shift1, shift2 = parameters.fastdiv(divisor, 64)
        for n in (0, 1, divisor - 1, divisor, 2**62, 2**64 - 1):
            t = (multiplier * n) >> 64
            assert (t + ((n - t) >> shift1)) >> shift2 == n // divisor


def test_what_no_window_reads_has_no_gradient():
    """Not even where the slope of its power would be infinite."""
    problem = parse_problem("lp_pool1d:dgrad n1 c1 i5 k2 s2 norm0.5 cuda")
    x = np.array([[[1, 2, 3, 4, 0]]], np.float32)
    (y,) = testing.exact(problem.replace(direction="fprop"), (x,)).results
    given = {"dy": np.ones_like(y, np.float32), "x": x, "y": y.astype(np.float32)}
    inputs = tuple(given[operand.name] for operand in problem.inputs)
    with emulated():
        (dx,) = testing.run(solver(problem), problem, inputs)
    testing.compare(problem, (dx,), testing.exact(problem, inputs), solver(problem).error_bound(problem))
    assert dx[0, 0, 4] == 0 < dx[0, 0, 3]
