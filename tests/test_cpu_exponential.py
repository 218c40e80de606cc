"""Sigmoid and tanh behind a convolution: every value, NaN and infinity, however the output lies."""

import numpy as np
import pytest

from fastconv.backends.cpu.exponential import KINDS, Finish
from fastconv.options import options

DTYPES = ("float32", "float64")
# Units in the last place: a few roundings, and the division's.
_ULPS = 4


def exact(activation: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.longdouble)
    with np.errstate(over="ignore"):
        return np.tanh(wide) if activation == "tanh" else 1 / (1 + np.exp(-wide))


def values(dtype: str) -> np.ndarray:
    """Return numbers of all magnitudes and both signs, dense where the functions bend."""
    size = np.concatenate([np.logspace(-30, 2.9, 4001), np.linspace(0, 100, 20001)])
    return np.concatenate([size, -size]).astype(dtype)


@pytest.mark.parametrize("simd", [None, "avx2", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", KINDS)
def test_every_value_is_right_to_a_few_digits_of_its_own(activation, dtype, simd, monkeypatch):
    if simd is not None:
        monkeypatch.setenv("FASTCONV_SIMD", simd)
    x = values(dtype)
    y = x.copy()
    Finish(activation, 1)(y)
    expected = exact(activation, x)
    normal = np.abs(expected) > np.finfo(dtype).tiny
    error = np.abs(y - expected)
    assert (error[normal] <= _ULPS * np.finfo(dtype).eps / 2 * np.abs(expected[normal])).all()
    assert (error[~normal] <= np.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", KINDS)
def test_nan_and_infinity(activation, dtype):
    y = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30], dtype)
    Finish(activation, 1)(y)
    low = 0.0 if activation == "sigmoid" else -1.0
    assert np.isnan(y[0])
    np.testing.assert_array_equal(y[1:3], [1.0, low])
    if activation == "tanh":
        np.testing.assert_array_equal(y[3:], np.array([0.0, -0.0, 1e-30, -1e-30], dtype))
        np.testing.assert_array_equal(np.signbit(y[3:]), [False, True, False, True])
    else:
        np.testing.assert_array_equal(y[3:], 0.5)


@pytest.mark.parametrize("activation", KINDS)
def test_the_same_bits_however_an_output_lies_and_on_any_number_of_threads(activation):
    x = np.random.default_rng(0).standard_normal((3, 50, 31, 17), np.float32)
    expected = x.copy()
    Finish(activation, 1)(expected)
    room = np.empty((4, 60, 40, 17), np.float32)
    raw = np.empty(x.nbytes + 1, np.uint8)
    outputs = {
        "channels-last": np.moveaxis(np.empty((3, 31, 17, 50), np.float32), -1, 1),
        "part of another": room[1:, 5:55, :31],
        "backwards": np.empty_like(x)[..., ::-1],
        "unaligned": raw[1:].view(np.float32).reshape(x.shape),
    }
    for threads in (1, 2, 3):
        finish = Finish(activation, threads)
        for name, y in outputs.items():
            for _ in range(2):  # as a new form of output, and as one that is known
                y[...] = x
                with options(threads=threads):
                    finish(y)
                np.testing.assert_array_equal(y, expected, err_msg=f"{name}, {threads} threads")


def test_what_lies_around_an_output_stays():
    for size in (1, 15, 16, 17, 8191, 8193):
        whole = np.full(size + 2, 3.0, np.float32)
        Finish("sigmoid", 1)(whole[1:-1])
        assert (whole[[0, -1]] == 3.0).all()
        assert (whole[1:-1] == whole[1]).all()


def test_other_activations_are_left_to_the_kernels():
    y = np.array([-1.0, 1.0])
    for activation in (None, "relu", "leaky_relu"):
        Finish(activation, 1)(y)
    np.testing.assert_array_equal(y, [-1.0, 1.0])
