"""Plans that are kept: an algorithm chosen once, a weight packed once, run on one array after another."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from fakes import Fake, general_backends, registered
from fresh import python

import fastconv as fc
from fastconv import dispatch, testing
from fastconv.notation import parse_problem

PROBLEM = parse_problem("conv2d n2 c4 i9 oc6 k3 p1 s2 bias residual relu")
X, W, B, R = testing.integer_inputs(PROBLEM)
ARGUMENTS = {"stride": 2, "padding": 1, "activation": "relu"}
Y = fc.conv2d(X, W, B, residual=R, backend="reference", **ARGUMENTS)


@pytest.fixture(params=general_backends())
def plan(request):
    """A plan of the whole of `conv2d`, by every backend."""
    return fc.plan(fc.conv2d, X, W, B, residual=R, backend=request.param, **ARGUMENTS)


# ---------------------------------------------------------------------------------------------------- running


def test_plan_runs(plan):
    assert np.array_equal(plan(X), Y)
    other = X[::-1] + 1
    assert np.array_equal(plan(other), fc.conv2d(other, W, B, residual=R, **ARGUMENTS))
    assert np.array_equal(plan(X), Y)


def test_plan_says_what_it_is(plan):
    assert plan.problem == PROBLEM.replace(prepacked=True)
    assert plan.algorithm in [c.algorithm for c in fc.explain(PROBLEM).candidates if c.refusal is None]
    assert repr(plan) == (
        f"<plan of conv2d:fprop n2 ic4 ih9 iw9 oc6 kh3 kw3 s2 p1 relu bias residual prepacked f32 by {plan.algorithm}>"
    )


def test_plan_takes_a_residual(plan):
    other = R + 100
    assert np.array_equal(plan(X, residual=other), fc.conv2d(X, W, B, residual=other, **ARGUMENTS))
    assert np.array_equal(plan(X), Y)


def test_plan_writes_where_it_is_told(plan):
    out = np.full_like(Y, np.nan)
    assert plan(X, out=out) is out
    assert np.array_equal(out, Y)
    strided = np.full((*Y.shape[:-1], 2 * Y.shape[-1]), np.nan, np.float32)[..., ::2]
    assert plan(X, out=strided) is strided
    assert np.array_equal(strided, Y)


def test_plan_may_write_over_its_residual(plan):
    place = R.copy()
    assert plan(X, residual=place, out=place) is place
    assert np.array_equal(place, Y)


OPS = {
    "conv1d": lambda x: (fc.conv1d, x[:, :, 0], W[:, :, 0], None, 2),
    "conv_transpose2d": lambda x: (fc.conv_transpose2d, x, W.swapaxes(0, 1).copy(), None, 2, 1, 1),
    "linear": lambda x: (fc.linear, x, W[0, :, :3, :3].reshape(4, 9), B[:4]),
    "unfold": lambda x: (fc.unfold, x, 3),
    "fold": lambda x: (fc.fold, fc.unfold(x, 3), 9, 3),
    "max_pool2d": lambda x: (fc.max_pool2d, x, 3),
    "adaptive_avg_pool2d": lambda x: (fc.adaptive_avg_pool2d, x, 2),
    "conv2d_weight": lambda x: (fc.grad.conv2d_weight, x, W.shape, Y, 2, 1),
    "unbatched": lambda x: (fc.conv2d, x[0], W),
    "empty": lambda x: (fc.conv2d, x[:0], W),
}


@pytest.mark.parametrize("name", OPS)
def test_plan_of_any_op(name):
    op, first, *rest = OPS[name](X)
    expected = op(first, *rest)
    result = fc.plan(op, first, *rest)(first)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(result, expected)


def test_plan_of_an_input_gradient_runs_on_the_outputs_gradient():
    plan = fc.plan(fc.grad.conv2d_input, X.shape, W, Y, 2, 1)
    assert np.array_equal(plan(2 * Y), 2 * fc.grad.conv2d_input(X.shape, W, Y, 2, 1))


def test_plan_of_a_max_pool_gives_indices_if_asked():
    y, indices = fc.plan(fc.max_pool2d, X, 3, return_indices=True)(X)
    expected = fc.max_pool2d(X, 3, return_indices=True)
    assert np.array_equal(y, expected[0])
    assert np.array_equal(indices, expected[1])


# --------------------------------------------------------------------------------------- chosen and packed once


def test_weights_are_packed_once():
    fake = Fake("packing")
    with registered(fake):
        plan = fc.plan(fc.conv2d, X, W, B, residual=R, **ARGUMENTS)
        assert (fake.plans, fake.packs, fake.runs) == (1, 1, 0)
        for _ in range(3):
            assert np.array_equal(plan(X), Y)
        assert (fake.plans, fake.packs, fake.runs) == (1, 1, 3)
        fc.conv2d(X, W, padding=1)
        assert fake.packs == 1


def test_what_has_no_weight_is_not_packed():
    fake = Fake("packing")
    with registered(fake):
        fc.plan(fc.max_pool2d, X, 3)(X)
        fc.plan(fc.grad.conv2d_weight, X, W.shape, Y, 2, 1)(X)
    assert (fake.packs, fake.runs) == (0, 2)


def test_plan_keeps_the_options_it_was_made_under():
    with fc.options(backend="naive"):
        plan = fc.plan(fc.conv2d, X, W)
    with fc.options(backend="reference"):
        assert plan.algorithm == "naive/loops"
        assert np.array_equal(plan(X), fc.conv2d(X, W))


def test_plan_survives_a_later_register_and_tune(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    first, second = Fake("first", predicted=1e-8), Fake("second", predicted=1e-9)
    with registered(first):
        plan = fc.plan(fc.conv2d, X, W, B, residual=R, **ARGUMENTS)
        with registered(second):
            assert fc.plan(fc.conv2d, X, W).algorithm == "fake/second"
            with fc.options(backend="fake"):
                fc.tune(plan.problem)
            assert np.array_equal(plan(X), Y)
        dispatch.forget()
    assert plan.algorithm == "fake/first"
    runs = first.runs
    assert np.array_equal(plan(X), Y)
    assert first.runs == runs + 1


def test_plan_in_many_threads(plan):
    inputs = [X + i for i in range(8)]
    expected = [fc.conv2d(x, W, B, residual=R, **ARGUMENTS) for x in inputs]
    results = [[] for _ in inputs]

    def work(i):
        results[i].extend(plan(inputs[i]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for wanted, got in zip(expected, results, strict=True):
        assert len(got) == 20
        assert all(np.array_equal(y, wanted) for y in got)


# ---------------------------------------------------------------------------------------------------- pickling


def test_plan_is_picklable(plan):
    again = pickle.loads(pickle.dumps(plan))
    assert (again.problem, again.algorithm) == (plan.problem, plan.algorithm)
    assert np.array_equal(again(X), Y)
    assert np.array_equal(again(X, residual=R + 1), plan(X, residual=R + 1))


def test_plan_leaves_its_example_behind(plan):
    large = fc.plan(fc.conv2d, np.zeros((16, 4, 64, 64), np.float32), W)
    assert len(pickle.dumps(large)) < 100_000


def test_plan_travels_to_another_process(plan, tmp_path):
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    np.save(tmp_path / "x.npy", X)
    code = f"""
import pickle, numpy
from pathlib import Path
folder = Path({str(tmp_path)!r})
plan = pickle.loads((folder / "plan").read_bytes())
numpy.save(folder / "y.npy", plan(numpy.load(folder / "x.npy")))
print(plan.algorithm)
"""
    assert python(code).stdout.strip() == plan.algorithm
    assert np.array_equal(np.load(tmp_path / "y.npy"), Y)


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (X[:1], ValueError, r"input: the plan is for shape \(2, 4, 9, 9\), got \(1, 4, 9, 9\)"),
        (X[0], ValueError, r"input: the plan is for shape \(2, 4, 9, 9\), got \(4, 9, 9\)"),
        (X.astype(np.float64), TypeError, r"input: expected dtype float32, got float64"),
        (X.tolist(), TypeError, r"input: expected an array"),
        (None, TypeError, r"input: expected an array"),
    ],
)
def test_input_unlike_the_example(array, error, message):
    plan = fc.plan(fc.conv2d, X, W, B, residual=R, **ARGUMENTS)
    with pytest.raises(error, match=f"^{message}"):
        plan(array)


def test_arrays_of_another_kind():
    torch = pytest.importorskip("torch")
    plan = fc.plan(fc.conv2d, X, W)
    with pytest.raises(TypeError, match=r"^input: is a torch array on cpu, but the plan's is a NumPy array on cpu"):
        plan(torch.from_numpy(X))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"residual": R[:1]}, ValueError, r"residual: the plan is for shape \(2, 6, 5, 5\), got \(1, 6, 5, 5\)"),
        ({"residual": R.astype(np.float16)}, TypeError, r"residual: expected dtype float32, got float16"),
        ({"out": Y[:1].copy()}, ValueError, r"out: expected shape \(2, 6, 5, 5\), got \(1, 6, 5, 5\)"),
        ({"out": Y.astype(np.float64)}, TypeError, r"out: expected dtype float32, got float64"),
        ({"out": np.broadcast_to(Y[:1], Y.shape)}, ValueError, r"out: is read-only"),
    ],
)
def test_residual_and_out_that_do_not_fit(arguments, error, message):
    plan = fc.plan(fc.conv2d, X, W, B, residual=R, **ARGUMENTS)
    with pytest.raises(error, match=f"^{message}"):
        plan(X, **arguments)


def test_residual_of_a_plan_without_one():
    plan = fc.plan(fc.conv2d, X, W)
    with pytest.raises(ValueError, match=r"^residual: the plan was made without one"):
        plan(X, residual=R)


def test_out_belongs_to_the_run():
    with pytest.raises(ValueError, match=r"^out: give it when the plan is run"):
        fc.plan(fc.conv2d, X, W, out=np.empty((2, 6, 7, 7), np.float32))


def test_plan_of_what_is_no_op():
    with pytest.raises(TypeError, match=r"^function: expected one of fastconv's ops"):
        fc.plan(np.convolve, X, W)


def test_bound_to_arrays_it_computes_from_what_they_hold():
    plan = fc.plan(fc.conv2d, X, W, B, residual=R, **ARGUMENTS)
    x, residual, wide = X.copy(), R.copy(), np.full((2, 9, 5, 5), np.nan, np.float32)
    run = plan.bind(x, out=wide[:, 2:8], residual=residual)
    for factor in (1, -2):
        x[...], residual[...] = factor * X, factor * R
        run()
        assert np.array_equal(wide[:, 2:8], fc.conv2d(x, W, B, residual=residual, **ARGUMENTS))
    assert np.isnan(wide[:, [0, 1, 8]]).all()


def test_binding_what_would_be_a_copy():
    """Seen as rows, features of some steps of a longer sequence lie apart in two ways."""
    rows, w = np.ones((2, 4, 3), np.float32), np.ones((5, 3), np.float32)
    plan = fc.plan(fc.linear, rows, w)
    run = plan.bind(rows, out=np.empty((2, 4, 5), np.float32))
    run()
    with pytest.raises(ValueError, match=r"out: its elements, of shape \(2, 4, 5\) and strides .* without a copy"):
        plan.bind(rows, out=np.empty((2, 6, 5), np.float32)[:, :4])
    with pytest.raises(ValueError, match=r"input: its elements, of shape \(2, 4, 3\) .* without a copy"):
        plan.bind(np.ones((2, 6, 3), np.float32)[:, :4], out=np.empty((2, 4, 5), np.float32))


def test_binding_what_does_not_fit():
    plan = fc.plan(fc.conv2d, X, X[:1, :, :1, :1].copy())
    with pytest.raises(ValueError, match=r"^out: expected shape"):
        plan.bind(X, out=np.empty((1, 2, 3, 4), np.float32))
    with pytest.raises(ValueError, match=r"^residual: the plan was made without one"):
        plan.bind(X, out=np.empty_like(X[:, :1]), residual=X)
    with pytest.raises(ValueError, match=r"^out: lies over an input"):
        plan.bind(X, out=X[:, :1])


@pytest.mark.parametrize("algorithm", [None, "im2col/gemm", "numba/direct"])
def test_out_with_a_packed_weight(algorithm):
    plan = fc.plan(fc.conv2d, X, W, B, residual=R, algorithm=algorithm, **ARGUMENTS)
    out = np.empty_like(Y)
    assert plan(X, out=out) is out
    assert np.array_equal(out, Y)
