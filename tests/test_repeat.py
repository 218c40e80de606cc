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
    "linear": (fc.linear, (ROWS, ROWS), {}),
    "linear, residual": (fc.linear, (ROWS, ROWS), {"residual": np.ones((2, 2), np.float32)}),
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
