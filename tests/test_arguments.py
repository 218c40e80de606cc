"""Bad input: every invalid call is a ValueError or TypeError that names the argument."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv as fc

NDIM = {"1d": 1, "2d": 2, "3d": 3}
SIDES = (7, 8, 9)


def x(ndim: int = 2, n: int = 2, c: int = 4) -> Any:
    return np.ones((n, c, *SIDES[:ndim]), np.float32)


def w(ndim: int = 2, oc: int = 6, c: int = 4) -> Any:
    return np.ones((oc, c, *(3, 3, 3)[:ndim]), np.float32)


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


class Valid:
    """A valid call for every op, from which each test changes one argument."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        for suffix, ndim in NDIM.items():
            window = {"input": x(ndim), "kernel_size": 3}
            out = tuple(s - 2 for s in SIDES[:ndim])
            self.calls |= {
                f"conv{suffix}": {"input": x(ndim), "weight": w(ndim)},
                f"conv_transpose{suffix}": {"input": x(ndim), "weight": w(ndim, 4, 6)},
                f"max_pool{suffix}": dict(window),
                f"avg_pool{suffix}": dict(window),
                f"lp_pool{suffix}": {**window, "norm_type": 2},
                f"adaptive_avg_pool{suffix}": {"input": x(ndim), "output_size": 2},
                f"adaptive_max_pool{suffix}": {"input": x(ndim), "output_size": 2},
                f"max_unpool{suffix}": {
                    "input": x(ndim),
                    "indices": np.zeros(x(ndim).shape, np.int64),
                    "kernel_size": 2,
                },
                f"grad.conv{suffix}_input": {
                    "input_size": x(ndim).shape,
                    "weight": w(ndim),
                    "grad_output": np.ones((2, 6, *out), np.float32),
                },
                f"grad.conv{suffix}_weight": {
                    "input": x(ndim),
                    "weight_size": w(ndim).shape,
                    "grad_output": np.ones((2, 6, *out), np.float32),
                },
            }
        self.calls |= {
            "locally_connected2d": {"input": x(), "weight": np.ones((5, 6, 6, 4, 3, 3), np.float32)},
            "linear": {"input": np.ones((2, 5), np.float32), "weight": np.ones((3, 5), np.float32)},
            "unfold": {"input": x(), "kernel_size": 3},
            "fold": {"input": np.ones((2, 9, 30), np.float32), "output_size": (7, 8), "kernel_size": 3},
        }

    def with_(self, op: str, **changes: Any) -> Any:
        return function(op)(**{**self.calls[op], **changes})

    def ops_with(self, parameter: str) -> list[str]:
        return [op for op in self.calls if parameter in inspect.signature(function(op)).parameters]


def function(op: str) -> Any:
    return getattr(fc.grad, op.removeprefix("grad.")) if op.startswith("grad.") else getattr(fc, op)


VALID = Valid()


def test_every_op_is_here_and_valid():
    public = [f for f in vars(fc).values() if inspect.isfunction(f)] + [
        f for f in vars(fc.grad).values() if inspect.isfunction(f) and f.__name__.startswith("conv")
    ]
    ops = {f.__name__ for f in public if hasattr(f, "lower")}
    assert ops == {op.removeprefix("grad.") for op in VALID.calls}
    for op in VALID.calls:
        assert VALID.with_(op).size


# ------------------------------------------------------------------------------------- for every op that has it

BAD_ARRAYS = {
    "a list": ([[1.0, 2.0]], TypeError),
    "a number": (1.0, TypeError),
    "a string": ("array", TypeError),
    "an object": (object(), TypeError),
    "integers": (np.ones((2, 4, 7, 8), np.int32), TypeError),
    "booleans": (np.ones((2, 4, 7, 8), np.bool_), TypeError),
    "complex numbers": (np.ones((2, 4, 7, 8), np.complex64), TypeError),
    "long doubles": (np.ones((2, 4, 7, 8), np.longdouble), TypeError),
    "objects": (np.ones((2, 4, 7, 8), object), TypeError),
    "a masked array": (np.ma.masked_array(np.ones((2, 4, 7, 8), np.float32)), TypeError),
    "foreign byte order": (np.ones((2, 4, 7, 8), np.float32).astype(np.dtype(np.float32).newbyteorder()), TypeError),
    "no dimensions": (np.ones((), np.float32), ValueError),
    "one dimension": (np.ones(2, np.float32), ValueError),
    "seven dimensions": (np.ones((1,) * 7, np.float32), ValueError),
}
BAD_COUNTS = {  # of what must be a positive integer, or one per axis
    "zero": (0, ValueError),
    "negative": (-1, ValueError),
    "one zero": ((1, 0, 1), ValueError),
    "a bool": (True, TypeError),
    "a float": (1.0, TypeError),
    "a list of floats": ([1.0, 1.0], TypeError),
    "a string": ("1", TypeError),
    "a dictionary of strings": ({"h": 1}, TypeError),
    "an object": (object(), TypeError),
    "too many": ((1,) * 5, ValueError),
    "none": ((), ValueError),
    "nested": (((1, 1), (1, 1)), TypeError),
    "an array of floats": (np.ones(2), TypeError),
    "an array of bools": (np.ones(2, bool), TypeError),
    "a set": ({1, 2}, TypeError),
    "a dictionary": ({1: 2, 2: 1}, TypeError),
    "bytes": (b"\1\1", TypeError),
    "an iterator": (iter([1, 1]), TypeError),
    "beyond any size": (2**31, ValueError),
    "beyond any integer": ((1, 2**64), ValueError),
}
BAD_OPTIONS = {
    "padding_mode": [
        ("bogus", ValueError),
        (None, TypeError),
        (1, TypeError),
        ([], TypeError),
        ("constant", ValueError),
    ],
    "activation": [("bogus", ValueError), (1, TypeError), ([], TypeError), (np.tanh, TypeError), ("", ValueError)],
    "backend": [("bogus", ValueError), (1, TypeError), ([], TypeError)],
    "algorithm": [("bogus", ValueError), (1, TypeError), ([], TypeError)],
    "ceil_mode": [(1, TypeError), ("yes", TypeError), (None, TypeError)],
    "count_include_pad": [(0, TypeError), (None, TypeError)],
    "return_indices": [(1, TypeError), (None, TypeError)],
    "groups": [
        (0, ValueError),
        (-2, ValueError),
        (3, ValueError),
        (5, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
        ((1, 1), TypeError),
        ([], TypeError),
    ],
    "padding": [
        ("bogus", (ValueError, TypeError)),
        (-1, ValueError),
        (((0, -1), (0, 0), (0, 0)), (ValueError, TypeError)),
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
        ((1,) * 5, ValueError),
        (((1, 1),) * 5, (ValueError, TypeError)),
        (((1, 1, 1),) * 3, (ValueError, TypeError)),
        (((1, 1), 1), (ValueError, TypeError)),
        ({"h": 1}, TypeError),
    ],
    "output_padding": [(1, ValueError), (-1, ValueError), (0.0, TypeError), (False, TypeError), ((0,) * 5, ValueError)],
    "divisor_override": [(0, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)],
    "norm_type": [
        (0, ValueError),
        (-1.0, ValueError),
        (float("inf"), ValueError),
        (float("nan"), ValueError),
        (True, TypeError),
        ("2", TypeError),
        (None, TypeError),
    ],
    "indices": [
        (np.zeros((2, 4), np.int64), ValueError),
        (np.zeros((2, 4), np.int32), TypeError),
        (np.zeros((2, 4), np.float32), TypeError),
        ([[0]], TypeError),
        (None, TypeError),
    ],
    "output_size": [
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        ("2", TypeError),
        ((2,) * 6, ValueError),
        (1000, ValueError),
    ],
    "input_size": [
        (5, TypeError),
        (None, TypeError),
        ((2, 4), ValueError),
        ((2, 4.0, 7, 8), TypeError),
        ((2, 4, 7, 8, 9, 9), ValueError),
        ((2, -4, 7, 8), ValueError),
    ],
    "weight_size": [(5, TypeError), (None, TypeError), ((6, 4), ValueError), ((6, 4.0, 3, 3), TypeError)],
    "bias": [
        (np.ones(5, np.float32), ValueError),
        (np.ones((2, 2), np.float32), ValueError),
        (np.ones(6, np.float64), TypeError),
        (np.ones(6, np.int64), TypeError),
        ([0.0] * 6, TypeError),
        (torch.ones(6), TypeError),
        (0.0, TypeError),
    ],
    "residual": [
        (np.ones(6, np.float32), ValueError),
        (np.ones((2, 6, 1, 1), np.float32), ValueError),
        (np.ones((2, 6, 5, 6), np.float64), TypeError),
        (torch.ones(2, 6, 5, 6), TypeError),
        (1.0, TypeError),
    ],
    "out": [
        (np.empty((1, 1, 1), np.float32), ValueError),
        ([0.0], TypeError),
        (torch.empty(2, 6, 5, 6), TypeError),
        (1.0, TypeError),
    ],
}


def table() -> list[Any]:
    rows = []
    for parameter in ("input", "weight", "grad_output"):
        for what, (value, error) in {**BAD_ARRAYS, "None": (None, TypeError)}.items():
            rows += [(op, parameter, what, value, error) for op in VALID.ops_with(parameter)]
    for parameter in ("stride", "dilation", "kernel_size"):
        for what, (value, error) in BAD_COUNTS.items():
            rows += [(op, parameter, what, value, error) for op in VALID.ops_with(parameter)]
    for parameter, values in BAD_OPTIONS.items():
        for value, error in values:
            what = repr(value) if not hasattr(value, "shape") else f"{value.dtype}{tuple(value.shape)}"
            rows += [(op, parameter, what, value, error) for op in VALID.ops_with(parameter)]
    return [row for row in rows if not _is_valid(*row[:4])]


def _is_valid(op: str, parameter: str, what: str, value: Any) -> bool:
    """Whether a value that most ops refuse means something to this one."""
    if parameter == "input" and what in ("one dimension", "seven dimensions"):
        return op == "linear"  # refused there for another reason, see below
    if parameter == "output_size":
        return op.startswith("adaptive") and isinstance(value, int) and value == 1000
    return False


@pytest.mark.parametrize(
    ("op", "parameter", "value", "error"),
    [pytest.param(op, p, value, error, id=f"{op}-{p}-{what}") for op, p, what, value, error in table()],
)
def test_bad_argument_is_named(op, parameter, value, error):
    with pytest.raises(error) as raised:
        VALID.with_(op, **{parameter: value})
    assert type(raised.value) in (ValueError, TypeError, fc.NoAlgorithmError)
    assert parameter in str(raised.value)


# ----------------------------------------------------------------------------------------- and what is particular

UNBATCHED = np.ones((4, 7, 8), np.float32)
PARTICULAR: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("conv2d", {"input": x(c=3)}, ValueError, "weight: 1 groups of 4 channels need an input of 4 channels, got 3"),
    ("conv2d", {"groups": 2}, ValueError, "weight: 2 groups of 4 channels need an input of 8"),
    ("conv2d", {"weight": w(oc=5, c=2), "groups": 2}, ValueError, "groups: 2 does not divide 4 input and 5 output"),
    ("conv2d", {"input": x().astype(np.float64)}, TypeError, "weight: has dtype float32, but input has float64"),
    ("conv2d", {"input": torch.ones(2, 4, 7, 8)}, TypeError, "weight: is a NumPy array on cpu, but input is a torch"),
    ("conv2d", {"weight": torch.ones(6, 4, 3, 3)}, TypeError, "weight: is a torch array on cpu, but input is a NumPy"),
    ("conv2d", {"weight": np.ones((6, 4, 8, 3), np.float32)}, ValueError, "weight: a kernel of 8 .* spans 8"),
    ("conv2d", {"dilation": 4}, ValueError, "weight: a kernel of 3 with dilation 4 spans 9"),
    ("conv2d", {"weight": np.ones((6, 4, 0, 3), np.float32)}, ValueError, "weight: must not be empty"),
    ("conv2d", {"weight": np.ones((0, 4, 3, 3), np.float32)}, ValueError, "weight: must not be empty"),
    ("conv2d", {"input": np.ones((2, 4, 0, 8), np.float32)}, ValueError, "input: only the batch may be empty"),
    ("conv2d", {"input": x(c=0), "weight": w(c=0)}, ValueError, "input: only the batch may be empty"),
    ("conv2d", {"padding": 7, "padding_mode": "reflect"}, ValueError, "padding: 7 is too wide .*reflect"),
    ("conv2d", {"padding": 8, "padding_mode": "circular"}, ValueError, "padding: 8 is too wide .*circular"),
    ("conv2d", {"input": UNBATCHED, "residual": np.ones((1, 6, 5, 6), np.float32)}, ValueError, "residual: expected"),
    ("conv2d", {"input": UNBATCHED, "out": np.ones((1, 6, 5, 6), np.float32)}, ValueError, "out: expected shape"),
    ("conv2d", {"out": np.ones((2, 6, 5, 6))}, TypeError, "out: expected dtype float32, got float64"),
    ("conv2d", {"out": np.ones((2, 6, 5, 6), ">f4")}, TypeError, "out: expected dtype float32, got >f4"),
    ("conv2d", {"out": read_only(np.ones((2, 6, 5, 6), np.float32))}, ValueError, "out: is read-only"),
    ("conv2d", {"backend": "naive", "algorithm": "einsum"}, ValueError, "no algorithm for conv2d"),
    ("conv_transpose2d", {"weight": w(oc=5)}, ValueError, "weight: expected 4 filters"),
    ("conv_transpose2d", {"groups": 3}, ValueError, "groups: 3 does not divide 18 input and 4 output|groups: 3"),
    ("conv_transpose2d", {"input": x(c=0), "weight": w(oc=0)}, ValueError, "input: only the batch may be empty"),
    ("conv_transpose2d", {"padding": 9}, ValueError, r"padding: \(9, 9\) leaves an output"),
    ("conv_transpose2d", {"output_padding": 2, "stride": 2}, ValueError, "output_padding: must be smaller than"),
    (
        "conv_transpose2d",
        {"output_padding": 1, "stride": 2, "padding": "same"},
        ValueError,
        "output_padding: must be 0",
    ),
    ("locally_connected2d", {"stride": 2}, ValueError, r"weight: expected shape \(3, 3, 6, 4, 3, 3\)"),
    ("locally_connected2d", {"bias": np.ones((6, 5, 6), np.float32)}, ValueError, "bias: expected shape"),
    ("locally_connected2d", {"input": x(c=3)}, ValueError, "weight: 1 groups of 4 channels need an input of 4"),
    ("linear", {"input": np.ones((2, 4), np.float32)}, ValueError, "input: expected 5 features"),
    ("linear", {"input": np.ones((), np.float32)}, ValueError, "input: expected 5 features"),
    (
        "linear",
        {"input": np.ones((2, 0), np.float32), "weight": np.ones((3, 0), np.float32)},
        ValueError,
        "input: only",
    ),
    ("max_pool2d", {"padding": 2}, ValueError, "padding: 2 is more than half of the kernel's span of 3"),
    ("avg_pool2d", {"padding": ((0, 2), (0, 0))}, ValueError, "padding: 2 is more than half"),
    ("max_pool2d", {"kernel_size": 8}, ValueError, "kernel_size: 8 .* spans 8, more than the padded input of 7"),
    ("lp_pool2d", {"kernel_size": (1, 9)}, ValueError, "kernel_size: 9"),
    ("max_pool2d", {"input": x(c=0)}, ValueError, "input: only the batch may be empty"),
    ("max_pool2d", {"out": read_only(np.ones((2, 4, 2, 2), np.float32))}, ValueError, "out: is read-only"),
    ("adaptive_avg_pool2d", {"output_size": (1, 2, 3)}, ValueError, "output_size: expected an integer or 2"),
    ("adaptive_avg_pool2d", {"input": np.ones((2, 4, 0, 8), np.float32)}, ValueError, "input: only the batch"),
    ("max_unpool2d", {"indices": np.full(x().shape, 14 * 16)}, ValueError, "indices: expected values from 0 to 223"),
    ("max_unpool2d", {"indices": np.full(x().shape, -1)}, ValueError, "indices: expected values from 0 to 223"),
    ("max_unpool2d", {"output_size": (14, 18)}, ValueError, "output_size: expected each size within"),
    (
        "max_unpool2d",
        {"input": x()[:, :, :1, :1], "indices": np.zeros((2, 4, 1, 1), np.int64), "padding": 1},
        ValueError,
        r"padding: \(1, 1\) leaves an output of \(0, 0\) from an input of \(1, 1\)",
    ),
    ("conv2d", {"padding": 10**9}, ValueError, "padding.*: y of shape .* is more than a process can address"),
    ("conv2d", {"padding": 10**10}, ValueError, "padding: must be at most 2147483647"),
    ("conv_transpose2d", {"stride": 2**31 - 1}, ValueError, "stride, dilation: .* give an output of"),
    ("adaptive_avg_pool2d", {"output_size": 2**30}, ValueError, "output_size.*: y of shape .* is more than"),
    ("fold", {"output_size": 2**31}, ValueError, "output_size: must be at most"),
    ("lp_pool2d", {"norm_type": 10**400}, ValueError, "norm_type"),
    ("lp_pool2d", {"norm_type": np.True_}, TypeError, "norm_type: expected a number"),
    ("unfold", {"kernel_size": (1, 2, 3, 4)}, ValueError, "kernel_size: expected an integer or 1 to 3"),
    ("unfold", {"kernel_size": (3,)}, ValueError, "input: expected 3 dimensions"),
    ("unfold", {"kernel_size": 9}, ValueError, "kernel_size: 9"),
    ("fold", {"output_size": (7, 9)}, ValueError, "input: expected 35 columns for output_size"),
    ("fold", {"kernel_size": (3, 2)}, ValueError, "input: 9 rows are no multiple of the kernel's 6"),
    ("fold", {"input": np.ones((2, 0, 30), np.float32)}, ValueError, "input: 0 rows"),
    ("grad.conv2d_input", {"input_size": (2, 4, 7, 9)}, ValueError, "grad_output: expected shape"),
    ("grad.conv2d_input", {"input_size": (2, 5, 7, 8)}, ValueError, "weight: expected shape"),
    (
        "grad.conv2d_input",
        {"residual": np.ones((2, 4, 7, 9), np.float32)},
        ValueError,
        "residual: expected the input's",
    ),
    ("grad.conv2d_weight", {"weight_size": (6, 3, 3, 3)}, ValueError, "weight_size: expected shape"),
    ("grad.conv2d_weight", {"weight_size": (6, 4, 4, 3)}, ValueError, "grad_output: expected shape"),
]


@pytest.mark.parametrize(
    ("op", "changes", "error", "message"),
    PARTICULAR,
    ids=[f"{op}-{message}" for op, _, _, message in PARTICULAR],
)
def test_invalid_call_says_what_is_wrong(op, changes, error, message):
    with pytest.raises(error, match=message) as raised:
        VALID.with_(op, **changes)
    assert type(raised.value) in (ValueError, TypeError, fc.NoAlgorithmError)


@pytest.mark.parametrize("op", VALID.calls)
def test_unknown_argument_is_named(op):
    with pytest.raises(TypeError, match="bogus"):
        VALID.with_(op, bogus=1)


@pytest.mark.parametrize("op", ["conv2d", "max_pool2d"])
def test_refusal_does_not_hang_on_what_was_called_before(op):
    """1, True and 1.0 are equal as keys of a cache."""
    VALID.with_(op, stride=1)
    VALID.with_(op, stride=(1, 1))
    for stride in (True, 1.0, (1.0, 1), (1, True)):
        with pytest.raises(TypeError, match="stride"):
            VALID.with_(op, stride=stride)


@pytest.mark.parametrize("stride", [np.int64(2), np.array([2, 2]), np.array(2), [2, 2], (2,), range(2, 4)])
def test_whatever_is_an_integer_will_do(stride):
    shape = VALID.with_("conv2d", stride=stride).shape
    assert shape[:3] == (2, 6, 3)


@pytest.mark.parametrize(
    ("op", "argument", "value", "plain"),
    [
        ("adaptive_avg_pool2d", "output_size", np.array([2, 3]), (2, 3)),
        ("adaptive_avg_pool2d", "output_size", (2,), 2),
        ("adaptive_max_pool2d", "output_size", [None, np.int32(3)], (None, 3)),
        ("adaptive_avg_pool2d", "output_size", None, (None, None)),
        ("lp_pool2d", "norm_type", np.float32(2), 2),
        ("lp_pool2d", "norm_type", np.int64(2), 2.0),
        ("max_pool2d", "ceil_mode", np.True_, True),
        ("avg_pool2d", "count_include_pad", np.False_, False),
        ("unfold", "kernel_size", np.array([3, 2]), (3, 2)),
        ("max_unpool2d", "output_size", np.array([2, 4, 14, 16]), (14, 16)),
    ],
)
def test_scalars_and_arrays_of_numpy_will_do(op, argument, value, plain):
    assert np.array_equal(VALID.with_(op, **{argument: value}), VALID.with_(op, **{argument: plain}))


def test_gradients_with_respect_to_one_name():
    y, pullback = fc.vjp(fc.conv2d, x(), w())
    dx, dw, db = pullback(y, wrt="weight")
    assert dx is None
    assert db is None
    assert np.array_equal(dw, pullback(y, wrt=("weight",))[1])
    assert pullback(y, wrt=()) == (None, None, None)
    with pytest.raises(ValueError, match="wrt: expected names among input, weight, bias, got 'wei'"):
        pullback(y, wrt="wei")
    with pytest.raises(TypeError, match="wrt: expected a name or several, got 1"):
        pullback(y, wrt=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bogus": 1}, TypeError, "options: unknown option 'bogus'"),
        ({"backend": 1}, TypeError, "backend: expected str"),
        ({"algorithm": b"gemm"}, TypeError, "algorithm: expected str"),
        ({"max_workspace": -1}, ValueError, "max_workspace: must be at least 0"),
        ({"max_workspace": 1.5}, TypeError, "max_workspace: expected int"),
        ({"threads": 0}, ValueError, "threads: must be at least 1"),
        ({"threads": True}, TypeError, "threads: expected int"),
        ({"deterministic": 1}, TypeError, "deterministic: expected bool"),
        ({"strict": "yes"}, TypeError, "strict: expected bool"),
        ({"autotune": None}, TypeError, "autotune: expected bool"),
    ],
)
def test_options_refuse(options, error, message):
    with pytest.raises(error, match=message), fc.options(**options):
        pass


def test_options_that_leave_nothing():
    with fc.options(backend="bogus"), pytest.raises(fc.NoAlgorithmError, match="backend: no 'bogus'; registered are"):
        VALID.with_("conv2d")
    with (
        fc.options(backend="im2col", max_workspace=0),
        pytest.raises(fc.NoAlgorithmError, match=r"im2col/gemm: .*max_workspace"),
    ):
        VALID.with_("conv2d", padding=1)


# ------------------------------------------------------------------------------------------------- anything at all

NUMBERS = st.one_of(st.integers(-3, 12), st.booleans(), st.floats(), st.none(), st.sampled_from(["same", "", "x"]))
ANYTHING = st.one_of(
    NUMBERS,
    st.lists(NUMBERS, max_size=4),
    st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 3)), max_size=4).map(tuple),
    st.dictionaries(st.text(max_size=2), NUMBERS, max_size=2),
    st.sampled_from(
        ["valid", "reflect", "replicate", "circular", "relu", "tanh", "naive", "einsum", object(), Ellipsis]
    ),
    st.sampled_from([np.int64(2), np.float32(1), np.arange(2), np.ones((2, 2)), range(3), b"ab", slice(2)]),
)
SHAPES = st.lists(st.integers(0, 5), max_size=6).map(tuple)
KINDS = st.sampled_from([np.float32] * 6 + [np.float64, np.float16, np.int64, np.complex64, np.bool_, np.dtype(">f4")])


@st.composite
def any_arrays(draw: Any) -> Any:
    array = np.ones(draw(SHAPES), draw(KINDS))
    return torch.from_numpy(array) if draw(st.integers(0, 9)) == 0 and array.dtype.isnative else array


@given(data=st.data())
@settings(max_examples=1000)
def test_garbage_gives_a_result_or_a_clear_refusal(data):
    """Some arguments of a valid call become anything at all."""
    op = data.draw(st.sampled_from(list(VALID.calls)))
    parameters = list(inspect.signature(function(op)).parameters)
    changed = data.draw(st.lists(st.sampled_from(parameters), min_size=1, max_size=3, unique=True))
    garbage = {
        name: data.draw(any_arrays() if name in VALID.calls[op] and data.draw(st.booleans()) else ANYTHING)
        for name in changed
    }
    try:
        results = VALID.with_(op, **garbage)
    except (ValueError, TypeError) as error:
        message = str(error)
    else:
        results = results if isinstance(results, tuple) else (results,)
        assert all(isinstance(a, np.ndarray | torch.Tensor) for a in results)
        return
    assert any(name in message for name in (*parameters, "no algorithm")), message
