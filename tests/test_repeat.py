"""Calls that are made again: which are recognised, and that what differs is not taken for the same."""

from __future__ import annotations

import numpy as np
import pytest

import fastconv as fc
from fastconv import lowering, repeat

X = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8) % 7
W = np.arange(4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3) % 5
ROWS = np.ones((2, 6), np.float32)

CALLS = {
    "numbers": (fc.conv2d, (X, W), {"padding": 1}),
    "tuples": (fc.conv2d, (X, W), {"padding": (1, 1), "stride": (2, 1)}),
    "lists": (fc.conv2d, (X, W), {"padding": [1, 1]}),
    "integers of NumPy": (fc.conv2d, (X, W), {"padding": np.int64(1)}),
    "padding before and after": (fc.conv2d, (X, W), {"padding": ((1, 0), (2, 1))}),
    "bias and activation": (fc.conv2d, (X, W, W[:, 0, 0, 0]), {"activation": "relu"}),
    "linear": (fc.linear, (ROWS, ROWS + 1), {}),
    "linear, residual": (fc.linear, (ROWS, ROWS + 1), {"residual": np.ones((2, 2), np.float32)}),
    "pool": (fc.max_pool2d, (X, 2), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_of_a_form_reads_no_arguments(name, monkeypatch):
    function, args, kwargs = CALLS[name]
    first = function(*args, **kwargs)

    def fail(*args, **kwargs):
        raise AssertionError("the arguments were read again")

    monkeypatch.setattr(lowering, "read_arrays", fail)
    monkeypatch.setattr("fastconv.call.execute", fail)
    assert np.array_equal(function(*args, **kwargs), first)


@pytest.mark.parametrize("name", CALLS)
def test_the_second_derivative_of_a_form_reads_no_arguments(name, monkeypatch):
    function, args, kwargs = CALLS[name]
    y, pullback = fc.vjp(function, *args, **kwargs)
    gradients = pullback(y)
    changed = [np.ascontiguousarray(a[::-1]) + 1 if isinstance(a, np.ndarray) else a for a in args]
    with monkeypatch.context() as patch:
        patch.setattr(repeat, "find", lambda form: None)
        expected_y, expected_pullback = fc.vjp(function, *changed, **kwargs)

    def fail(*args, **kwargs):
        raise AssertionError("the arguments were read again")

    monkeypatch.setattr(lowering, "read_arrays", fail)
    other_y, other_pullback = fc.vjp(function, *changed, **kwargs)
    assert np.array_equal(other_y, expected_y) and not np.array_equal(other_y, y)
    for mine, expected in zip(other_pullback(y), expected_pullback(y), strict=True):
        assert (mine is None) == (expected is None) and (mine is None or np.array_equal(mine, expected))
    for again, first in zip(pullback(y), gradients, strict=True):  # what the first kept is its own
        assert first is None or np.array_equal(again, first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"padding": 1}, {"padding": 0}),
        ({"padding": ((1, 0), (2, 1))}, {"padding": ((0, 1), (2, 1))}),
        ({"padding": ((1, 1), (1, 1))}, {"padding": 1}),
        ({"stride": 1, "padding": 2}, {"stride": 2, "padding": 1}),
        ({"activation": "relu"}, {"activation": None}),
    ],
)
def test_other_arguments_are_another_form(one, other):
    assert repeat.form(fc.conv2d, (X, W), one) != repeat.form(fc.conv2d, (X, W), other)


@pytest.mark.parametrize("wrong", [{"stride": True}, {"padding": ((1, True), (1, 1))}, {"groups": 1.0}])
def test_what_is_refused_is_refused_after_a_good_call_too(wrong):
    good = {name: plain(value) for name, value in wrong.items()}
    fc.conv2d(X, W, **good)
    with pytest.raises((TypeError, ValueError)):
        fc.conv2d(X, W, **wrong)


def plain(value):
    """Return the number or numbers that a wrong argument equals."""
    return tuple(map(plain, value)) if isinstance(value, tuple) else int(value)


def test_results_are_new_arrays_and_weights_are_read_again():
    weight = W.copy()
    first = fc.conv2d(X, weight, padding=1)
    weight *= 2
    with fc.options(strict=True):
        second = fc.conv2d(X, weight, padding=1)
        expected = fc.conv2d(X, weight, padding=1, backend="reference")
    assert not np.shares_memory(first, second)
    assert np.array_equal(second, expected)


SAME = {  # of one array in two places, and of two
    "linear": (fc.linear, lambda a, b: ((a, b), {})),
    "residual": (fc.conv2d, lambda a, b: ((a, np.eye(3, dtype=np.float32)[:, :, None, None]), {"residual": b})),
    "weight gradient": (fc.grad.conv2d_weight, lambda a, b: ((a, (3, 3, 1, 1), b), {})),
}


@pytest.mark.parametrize("name", SAME)
def test_one_array_in_two_places_is_not_two_arrays_another_time(name):
    function, arguments = SAME[name]
    one = ROWS if name == "linear" else X
    other = np.ascontiguousarray(one[::-1]) + 3
    for first, second in ((one, one), (one, other), (other, one), (other, other)):
        args, kwargs = arguments(first, second)
        expected = function(*args, backend="reference", **kwargs)
        for _ in range(2):
            assert np.array_equal(function(*args, **kwargs), expected)
            y, pullback = fc.vjp(function, *args, **kwargs)
            assert np.array_equal(y, expected)
            gradients = fc.vjp(function, *args, backend="reference", **kwargs)[1](y)
            for mine, right in zip(pullback(y), gradients, strict=True):
                assert (mine is None) == (right is None) and (mine is None or np.allclose(mine, right))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (fc.conv2d, lambda n: ((X, W), {"stride": np.array([n, n])})),
        (fc.conv2d, lambda n: ((X, W), {"padding": np.array(n)})),
        (fc.max_pool2d, lambda n: ((X, np.array([n, n])), {})),
        (fc.adaptive_avg_pool2d, lambda n: ((X, np.array([n, 1])), {})),
        (fc.grad.conv2d_input, lambda n: ((np.array([2, 3, 7 + n, 8]), W, X[:, :1, : 5 + n, :6].repeat(4, 1)), {})),
    ],
)
def test_sizes_in_arrays_are_read_every_time(function, arguments):
    for n in (1, 2, 1, 3):
        args, kwargs = arguments(n)
        expected = function(*args, backend="reference", **kwargs)
        result = function(*args, **kwargs)
        assert result.shape == expected.shape and np.allclose(result, expected)


def test_sizes_in_arrays_are_refused_after_a_good_call_too():
    fc.conv2d(X, W, stride=np.array([1, 1]))
    with pytest.raises(ValueError, match="stride"):
        fc.conv2d(X, W, stride=np.array([-1, 1]))
