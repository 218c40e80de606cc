"""Problems as records, and their text form."""

from __future__ import annotations

import io
import json
import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest
from fresh import python
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv import registry, testing
from fastconv.notation import format_problem, parse_problem
from fastconv.problem import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    ConvProblem,
    PoolProblem,
)
from fastconv.sizes import conv_output_size, pool_output_size, same_padding
from fastconv.testing import CONV_SHAPES, POOL_SHAPES, problems

SMALL = st.integers(1, 5)


@st.composite
def windows(draw, ndim: int, max_padding: int | None = None) -> dict[str, tuple]:
    """Draw sizes of windows that fit their padded input; padding up to half of the span, as pools have it."""
    sizes: dict[str, list] = {name: [] for name in ("input_size", "kernel_size", "stride", "padding", "dilation")}
    for _ in range(ndim):
        kernel, stride, dilation = draw(SMALL), draw(SMALL), draw(st.integers(1, 3))
        span = dilation * (kernel - 1) + 1
        limit = span // 2 if max_padding is None else max_padding
        pad = draw(st.tuples(st.integers(0, limit), st.integers(0, limit)))
        size = draw(st.integers(max(span - sum(pad), max(pad) + 1), span + 20))
        for name, value in zip(sizes, (size, kernel, stride, pad, dilation), strict=True):
            sizes[name].append(value)
    return {name: tuple(values) for name, values in sizes.items()}


@st.composite
def conv_problems(draw) -> ConvProblem:
    op = draw(st.sampled_from(ConvProblem.OPS))
    direction = draw(st.sampled_from(["fprop", "dgrad", "wgrad", "bgrad"]))
    local = op == "locally_connected2d"
    ndim = 0 if op == "linear" else int(op[-2])
    groups = 1 if local or not ndim else draw(st.integers(1, 4))
    forward = direction in ("fprop", "dgrad")
    return ConvProblem(
        op=op,
        direction=direction,
        n=draw(st.integers(0, 3)),
        ic=groups * draw(SMALL),
        oc=groups * draw(SMALL),
        groups=groups,
        **draw(windows(ndim, max_padding=4)),
        padding_mode=draw(st.sampled_from(PADDING_MODES)),
        bias=draw(st.sampled_from(["none", "channel", *["position"] * local])),
        activation=draw(st.sampled_from([None, *ACTIVATIONS])) if forward else None,
        residual=forward and draw(st.booleans()),
        prepacked=forward and draw(st.booleans()),
        dtype=draw(st.sampled_from(list(DTYPES))),
        layout=draw(st.sampled_from(LAYOUTS)),
        device=draw(st.sampled_from(["cpu", "cuda"])),
    )


@st.composite
def pool_problems(draw) -> PoolProblem:
    kind = draw(st.sampled_from(PoolProblem.KINDS))
    ndim = draw(st.integers(1, 3))
    fields = draw(windows(ndim))
    if kind.startswith("adaptive") or kind == "max_unpool":
        fields = {
            "input_size": fields["input_size"],
            "output_size": draw(st.tuples(*[SMALL] * ndim)),
            "kernel_size": (1,) * ndim,
            "stride": (1,) * ndim,
            "padding": ((0, 0),) * ndim,
            "dilation": (1,) * ndim,
        }
    elif kind != "unfold":
        fields["ceil_mode"] = draw(st.booleans())
    if kind == "avg_pool":
        fields["count_include_pad"] = draw(st.booleans())
        fields["divisor_override"] = draw(st.none() | st.integers(-9, 9).filter(bool))
    if kind == "lp_pool":
        fields["norm_type"] = draw(st.floats(1e-3, 1e9) | st.integers(1, 9).map(float))
    if kind in ("max_pool", "adaptive_max_pool"):
        fields["return_indices"] = draw(st.booleans())
    return PoolProblem(
        op=kind if kind == "unfold" else f"{kind}{ndim}d",
        direction=draw(st.sampled_from(["fprop", "dgrad"])),
        n=draw(st.integers(0, 3)),
        c=draw(SMALL),
        **fields,
        dtype=draw(st.sampled_from(list(DTYPES))),
        layout=draw(st.sampled_from(LAYOUTS)),
        device=draw(st.sampled_from(["cpu", "cuda"])),
    )


# ------------------------------------------------------------------------------------------- output sizes


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "padding", "expected"),
    [
        (7, 3, 1, 1, (0, 0), 5),
        (7, 3, 2, 1, (0, 0), 3),
        (7, 3, 3, 1, (0, 0), 2),
        (224, 7, 2, 1, (3, 3), 112),
        (28, 5, 3, 1, (2, 2), 10),
        (10, 3, 1, 4, (0, 0), 2),
        (5, 5, 1, 1, (0, 0), 1),
        (1, 1, 9, 1, (0, 0), 1),
        (4, 4, 1, 1, (1, 2), 4),
        (7, 3, 1, 2, (1, -1), 3),
    ],
)
def test_convolution_output_size(size, kernel, stride, dilation, padding, expected):
    assert conv_output_size(size, kernel, stride, dilation, padding) == expected


@given(SMALL, SMALL, SMALL, st.integers(1, 3), st.tuples(SMALL, SMALL))
def test_convolution_output_size_counts_windows_that_fit(extra, kernel, stride, dilation, padding):
    size = dilation * (kernel - 1) + extra
    starts = range(0, size + sum(padding) - dilation * (kernel - 1), stride)
    assert conv_output_size(size, kernel, stride, dilation, padding) == len(starts)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "floor", "ceil"),
    [
        (8, 2, 2, (0, 0), 4, 4),
        (9, 2, 2, (0, 0), 4, 5),
        (55, 3, 2, (0, 0), 27, 27),
        (56, 3, 2, (0, 0), 27, 28),
        (112, 3, 2, (1, 1), 56, 57),
        # The window that rounding up would add begins in the padding after the input, and is dropped.
        (2, 2, 2, (1, 1), 2, 2),
        (3, 2, 2, (1, 1), 2, 2),
        (4, 1, 3, (0, 0), 2, 2),
        (5, 1, 3, (0, 0), 2, 2),
        (6, 3, 5, (0, 0), 1, 2),
    ],
)
def test_pool_output_size(size, kernel, stride, padding, floor, ceil):
    assert pool_output_size(size, kernel, stride, 1, padding, ceil_mode=False) == floor
    assert pool_output_size(size, kernel, stride, 1, padding, ceil_mode=True) == ceil


@given(st.integers(1, 99), SMALL, SMALL, st.integers(1, 3))
def test_same_padding_gives_the_input_size_over_the_stride(size, kernel, stride, dilation):
    before, after = same_padding(size, kernel, stride, dilation)
    assert after - before in (0, 1)
    assert conv_output_size(size, kernel, stride, dilation, (before, after)) >= -(-size // stride)
    if before or after:
        assert conv_output_size(size, kernel, stride, dilation, (before, after)) == -(-size // stride)


@given(pool_problems())
def test_rounding_up_adds_a_window_only_if_it_starts_in_the_input(problem):
    if "ceil_mode" in problem.fields_of(problem.op):
        problem = problem.replace(ceil_mode=True)
    floor = problem.replace(ceil_mode=False)
    for axis, (o, least) in enumerate(zip(problem.output_size, floor.output_size, strict=True)):
        assert o - least in (0, 1)
        start = (o - 1) * problem.stride[axis] - problem.padding[axis][0]
        assert problem.given_output or start < problem.input_size[axis]


# ----------------------------------------------------------------------------------------- names and counts


def test_short_names():
    p = parse_problem("conv3d ic4 id9 ih10 iw11 oc6 kd1 kh2 kw3 sd1 sh2 sw3 pd0 ph1 pw2 dd1 dh2 dw3 g2")
    assert (p.id, p.ih, p.iw) == (9, 10, 11)
    assert (p.kd, p.kh, p.kw) == (1, 2, 3)
    assert (p.sd, p.sh, p.sw) == (1, 2, 3)
    assert (p.pd, p.ph, p.pw) == (0, 1, 2)
    assert (p.dd, p.dh, p.dw) == (1, 2, 3)
    assert (p.od, p.oh, p.ow) == p.output_size == (9, 5, 3)


def test_short_names_by_dimension():
    plane, row = parse_problem("conv2d ic1 i5 oc1 k3"), parse_problem("max_pool1d c1 i6 k2")
    assert (plane.kh, row.iw, row.ow) == (3, 6, 3)
    for problem, name in ((plane, "kd"), (row, "ih"), (plane, "kx"), (plane, "height")):
        with pytest.raises(AttributeError, match=name):
            getattr(problem, name)


def test_short_name_of_asymmetric_padding_is_refused():
    p = parse_problem("conv2d ic1 i5 oc1 k3 ph1 pw0:2")
    assert p.ph == 1
    with pytest.raises(AttributeError, match=r"pw: padding is asymmetric here: 0, 2"):
        _ = p.pw


@pytest.mark.parametrize(
    ("text", "macs", "bytes_", "parameters"),
    [
        # y is (1, 4, 6, 6), 27 products each; x has 192, w 108 and y 144 elements
        ("conv2d n1 c3 i8 oc4 k3", 144 * 27, 4 * (192 + 108 + 144), 108),
        ("conv2d n1 c3 i8 oc4 k3 bias f64", 144 * 27, 8 * (192 + 108 + 4 + 144), 112),
        ("conv2d:dgrad n1 c3 i8 oc4 k3 f16", 144 * 27, 2 * (144 + 108 + 192), 108),
        ("conv2d:wgrad n1 c3 i8 oc4 k3", 144 * 27, 4 * (192 + 144 + 108), 108),
        ("conv2d:bgrad n1 c3 i8 oc4 k3 bias", 144, 4 * (144 + 4), 112),
        ("conv2d n2 c4 i8 oc6 k3 g2 residual", 2 * 6 * 36 * 18, 4 * (512 + 108 + 432 + 432), 108),
        ("linear n5 c7 oc9 bias bf16", 5 * 7 * 9, 2 * (35 + 63 + 9 + 45), 72),
        ("locally_connected2d n1 c2 i4 oc3 k3 bias_per_position", 12 * 18, 4 * (32 + 216 + 12 + 12), 228),
    ],
)
def test_counts_of_convolutions(text, macs, bytes_, parameters):
    p = parse_problem(text)
    assert (p.macs, p.flops, p.bytes, p.parameters) == (macs, 2 * macs, bytes_, parameters)


@pytest.mark.parametrize(
    ("text", "macs", "bytes_"),
    [
        ("max_pool2d n1 c2 i6 k3 s1", 2 * 16 * 9, 4 * (72 + 32)),
        ("max_pool2d n1 c2 i6 k3 s1 indices", 2 * 16 * 9, 4 * (72 + 32) + 8 * 32),
        ("max_pool2d:dgrad n1 c2 i6 k3 s1", 2 * 16 * 9, 4 * (32 + 72) + 8 * 32),
        ("lp_pool1d:dgrad n1 c1 i6 k2 f64", 3 * 2, 8 * (3 + 6 + 3 + 6)),
        ("adaptive_avg_pool1d n1 c1 i7 o2", 2 * 4, 4 * (7 + 2)),
        ("max_unpool1d n1 c1 i3 o6 f16", 3, 2 * (3 + 6) + 8 * 3),
        ("unfold n1 c2 i4 k3", 8 * 9, 4 * (32 + 72)),
    ],
)
def test_counts_of_window_operations(text, macs, bytes_):
    p = parse_problem(text)
    assert (p.macs, p.flops, p.bytes) == (macs, macs, bytes_)


@pytest.mark.parametrize(
    ("direction", "terms"), [("fprop", 2 * 9), ("dgrad", 3 * 9), ("wgrad", 5 * 6 * 6), ("bgrad", 5 * 6 * 6)]
)
def test_reduction_is_the_number_of_terms(direction, terms):
    assert parse_problem(f"conv2d:{direction} n5 ic4 i8 oc6 k3 g2 bias").reduction == terms


# ------------------------------------------------------------------------------------------------ text form


@settings(max_examples=300)
@given(conv_problems() | pool_problems())
def test_text_form_round_trip(problem):
    text = format_problem(problem)
    again = parse_problem(text)
    assert again == problem
    assert hash(again) == hash(problem)
    assert format_problem(again) == text


@given(pool_problems(), st.data())
def test_text_form_of_whatever_record_is_valid(problem, data):
    """A field that the text would not tell cannot be set."""
    anything = {
        "kernel_size": (2,) * problem.ndim,
        "stride": (3,) * problem.ndim,
        "padding": ((0, 1),) * problem.ndim,
        "dilation": (2,) * problem.ndim,
        "ceil_mode": True,
        "count_include_pad": False,
        "divisor_override": 3,
        "norm_type": 5,
        "return_indices": True,
    }
    name = data.draw(st.sampled_from(list(anything)))
    try:
        changed = problem.replace(**{name: anything[name]})
    except ValueError:
        return  # which fields an op refuses is for other tests
    assert parse_problem(format_problem(changed)) == changed


@pytest.mark.parametrize("text", CONV_SHAPES + POOL_SHAPES)
def test_text_form_of_the_shape_sets(text):
    problem = parse_problem(text)
    assert parse_problem(format_problem(problem)) == problem


def test_canonical_text():
    text = "conv2d:fprop n1 ic64 ih56 iw56 oc64 kh3 kw3 p1 f32"
    assert format_problem(parse_problem(text)) == text
    assert format_problem(parse_problem("conv2d c64 oc64 i56 k3 f32 p1 s1 d1 g1")) == text


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("conv2d c1 i5 oc1 k3 psame", "conv2d c1 i5 oc1 k3 p1"),
        ("conv2d c1 i6 oc1 k3 s2 psame", "conv2d c1 i6 oc1 k3 s2 p0:1"),
        ("conv2d c1 i6 oc1 k3 phsame", "conv2d c1 i6 oc1 k3 ph1 pw0"),
        ("conv2d c1 i6 oc1 k3 kw1", "conv2d c1 i6 oc1 kh3 kw1"),
        ("max_pool2d c1 i6 k2", "max_pool2d c1 i6 k2 s2"),
        ("lp_pool2d c1 i6 k2", "lp_pool2d c1 i6 k2 norm2"),
        ("unfold c1 i6 k2", "unfold c1 ih6 iw6 k2"),
    ],
)
def test_abbreviations(short, long):
    assert parse_problem(short) == parse_problem(long)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "''"),
        ("conv4d c1 i5 oc1 k3", "'conv4d'"),
        ("conv2d:sideways c1 i5 oc1 k3", "'sideways'"),
        ("max_pool2d:wgrad c1 i5 k3", "'wgrad'"),
        ("conv2d c1 i5 oc1 k3 fast", "'fast'"),
        ("conv2d c1 i5 oc1 k3 q7", "'q7'"),
        ("conv2d c1 i5 oc1 kx3", "'kx3'"),
        ("conv2d c1 i5 oc1 k3.5", "'k3.5'"),
        ("conv2d c1 i5 oc1 k3 p1:2:3", "'p1:2:3'"),
        ("conv2d c1 i5 oc1 k3 s1:2", "'s1:2'"),
        ("conv2d c1 i5 oc1 ksame", "'ksame'"),
        ("conv2d c1 oc1 k3", "ih"),
        ("conv2d c1 ih5 oc1 k3", "iw"),
        ("conv2d c1 i5 oc1", "kh"),
        ("conv2d i5 oc1 k3", "ic"),
        ("conv2d c1 i5 k3", "oc"),
        ("adaptive_avg_pool2d c1 i5", "oh"),
        ("conv2d c1 i5 oc1 k3 kd3", "kd"),
        ("conv1d c1 i5 oc1 k3 sh2", "sh"),
        ("conv2d c1 i5 oc1 k3 ceil", "'ceil'"),
        ("max_pool2d c1 i5 k3 bias", "'bias'"),
        ("conv2d c1 i5 oc1 k7", "kernel of 7"),
        ("conv2d c3 i5 oc1 k3 g2", "groups: 2"),
        ("conv2d c1 i5 oc1 k3 s0", "stride"),
        ("conv2d c1 i0 oc1 k3", "input_size"),
        ("max_pool2d c1 i5 k3 p2", "padding: 2"),
        ("conv2d c1 i5 oc1 k3 p5 reflect", "padding: 5"),
        ("lp_pool2d c1 i5 k2 norm0", "norm_type"),
        ("avg_pool2d c1 i5 k2 div0", "divisor_override"),
        ("adaptive_avg_pool2d c1 i5 o2 k3", "'k3'"),
        ("adaptive_avg_pool2d c1 i5 o2 s1", "'s1'"),
        ("max_unpool2d c1 i5 o9 norm3", "'norm3'"),
        ("max_pool2d c1 i5 k2 norm5", "'norm5'"),
        ("max_pool2d c1 i5 k2 oc3", "'oc3'"),
        ("max_pool2d c1 i5 k2 o3", "'o3'"),
        ("conv2d c1 i5 oc1 k2 o4", "'o4'"),
        ("linear n5 c17 oc9 k3", "'k3'"),
        ("linear n5 c17 oc9 s2", "'s2'"),
        ("linear n5 c17 oc9 p1", "'p1'"),
        ("linear n5 c17 oc9 i4", "'i4'"),
        ("unfold c1 i5 k2 ceil", "'ceil'"),
        ("avg_pool2d c1 i5 k2 indices", "'indices'"),
        ("max_pool2d c1 i5 k2 exclude_pad", "'exclude_pad'"),
        ("conv2d n1 n2 c1 i5 oc1 k3", "'n2'.*'n1'"),
        ("conv2d c3 ic4 i5 oc1 k3", "'ic4'.*'c3'"),
        ("conv2d c1 i5 oc1 k3 k5", "'k5'.*'k3'"),
        ("conv2d c1 i5 oc1 k3 f32 f64", "'f64'.*'f32'"),
        ("conv2d c1 i5 oc1 k3 relu tanh", "'tanh'.*'relu'"),
        ("conv2d c1 i5 oc1 k3 kh3 kw3", "'k3'"),
        ("conv2d c1 i5 oc1 k3 s9223372036854775808", "stride"),
    ],
)
def test_errors_name_the_word(text, word):
    with pytest.raises(ValueError, match=re.sub(r"\.(?!\*)", r"\.", word)):
        parse_problem(text)


# -------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"op": "conv7d"}, "op"),
        ({"direction": "upward"}, "direction"),
        ({"dtype": "int32"}, "dtype"),
        ({"layout": "diagonal"}, "layout"),
        ({"padding_mode": "mirror"}, "padding_mode"),
        ({"activation": "gelu"}, "activation"),
        ({"bias": "yes"}, "bias"),
        ({"bias": "position"}, "bias"),
        ({"n": -1}, "n: "),
        ({"ic": 0}, "ic"),
        ({"oc": 0}, "oc"),
        ({"groups": 0}, "groups"),
        ({"groups": 3}, "groups"),
        ({"kernel_size": (3, 0)}, "kernel_size"),
        ({"kernel_size": (3,)}, "kernel_size"),
        ({"input_size": (8, 8, 8)}, "input_size"),
        ({"stride": (1, 1, 1)}, "stride"),
        ({"stride": (0, 1)}, "stride"),
        ({"dilation": (1, 0)}, "dilation"),
        ({"padding": ((0, 0),)}, "padding"),
        ({"padding": ((-1, 0), (0, 0))}, "padding"),
    ],
)
def test_invalid_convolutions_name_the_argument(changes, named):
    valid = parse_problem("conv2d c4 i8 oc6 k3 g2")
    with pytest.raises(ValueError, match=rf"^{named}"):
        valid.replace(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"op": "min_pool2d"}, "op"),
        ({"direction": "wgrad"}, "direction"),
        ({"c": 0}, "c: "),
        ({"kernel_size": (9, 9)}, "kernel_size"),
        ({"kernel_size": (2,)}, "kernel_size"),
        ({"padding": ((-1, 0), (0, 0))}, "padding"),
        ({"padding": ((2, 0), (0, 0))}, "padding"),
        ({"norm_type": float("inf")}, "norm_type"),
    ],
)
def test_invalid_window_operations_name_the_argument(changes, named):
    valid = parse_problem("lp_pool2d c4 i8 k2")
    with pytest.raises(ValueError, match=rf"^{named}"):
        valid.replace(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"n": 1.5}, TypeError, "n: "),
        ({"n": True}, TypeError, "n: "),
        ({"ic": 4.0}, TypeError, "ic: "),
        ({"groups": "2"}, TypeError, "groups: "),
        ({"kernel_size": 3}, TypeError, "kernel_size: "),
        ({"kernel_size": (3.0, 3)}, TypeError, "kernel_size: "),
        ({"stride": {1, 2}}, TypeError, "stride: "),
        ({"stride": (2**31, 1)}, ValueError, "stride: "),
        ({"padding": (1, 1)}, TypeError, "padding: "),
        ({"padding": ((1, 1, 1), (1, 1, 1))}, TypeError, "padding: "),
        ({"padding": ((0.5, 0), (0, 0))}, TypeError, "padding: "),
        ({"padding": ((10**9, 10**9),) * 2}, ValueError, ".*padding.*: y of shape .* more than a process can address"),
        ({"bias": True}, TypeError, "bias: "),
        ({"residual": 1}, TypeError, "residual: "),
        ({"op": ["conv2d"]}, TypeError, "op: "),
        ({"dtype": []}, TypeError, "dtype: "),
        ({"dtype": None}, TypeError, "dtype: "),
        ({"device": "tpu"}, ValueError, "device: expected one of cpu, cuda, got 'tpu'"),
        ({"device": 0}, TypeError, "device: "),
    ],
)
def test_fields_of_a_record_are_checked(changes, error, named):
    valid = parse_problem("conv2d c4 i8 oc6 k3 g2")
    with pytest.raises(error, match=rf"^{named}"):
        valid.replace(**changes)


@pytest.mark.parametrize(
    ("text", "changes", "named"),
    [
        ("max_pool2d c1 i5 k2", {"norm_type": 3.0}, "norm_type"),
        ("max_pool2d c1 i5 k2", {"count_include_pad": False}, "count_include_pad"),
        ("avg_pool2d c1 i5 k2", {"return_indices": True}, "return_indices"),
        ("lp_pool2d c1 i5 k2", {"divisor_override": 2}, "divisor_override"),
        ("unfold c1 i5 k2", {"ceil_mode": True}, "ceil_mode"),
        ("adaptive_max_pool2d c1 i5 o2", {"kernel_size": (2, 2)}, "kernel_size"),
        ("max_unpool2d c1 i5 o9", {"stride": (2, 2)}, "stride"),
        ("max_unpool2d c1 i5 o9", {"padding": ((0, 0), (1, 0))}, "padding"),
    ],
)
def test_field_that_means_nothing_stays_at_its_default(text, changes, named):
    valid = parse_problem(text)
    with pytest.raises(ValueError, match=rf"^{named}: means nothing to {valid.op}"):
        valid.replace(**changes)


def test_records_turn_what_is_like_a_tuple_or_an_integer_into_one():
    plain = parse_problem("conv2d n2 c4 i8 oc6 k3 p1")
    same = plain.replace(
        n=np.int64(2), input_size=[8, 8], kernel_size=np.array([3, 3]), padding=[[1, 1], (1, 1)], residual=np.False_
    )
    assert same == plain
    assert hash(same) == hash(plain)
    assert type(same.n) is int
    pool = parse_problem("lp_pool2d c4 i8 k2 norm3")
    assert type(pool.replace(norm_type=np.float32(3)).norm_type) is float


def test_records_have_defaults():
    sizes = {"direction": "fprop", "n": 1, "input_size": (8, 9)}
    conv = ConvProblem(op="conv2d", ic=1, oc=1, kernel_size=(2, 3), **sizes)
    assert (conv.stride, conv.padding, conv.dilation) == ((1, 1), ((0, 0), (0, 0)), (1, 1))
    assert PoolProblem(op="max_pool2d", kernel_size=(2, 3), **sizes).stride == (2, 3)
    assert PoolProblem(op="unfold", kernel_size=(2, 3), **sizes).stride == (1, 1)
    assert PoolProblem(op="adaptive_avg_pool2d", output_size=(2, 2), **sizes).kernel_size == (1, 1)
    with pytest.raises(ValueError, match=r"^kernel_size: max_pool2d has 2 spatial axes"):
        PoolProblem(op="max_pool2d", **sizes)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("conv2d c1 i5 oc1 k3 p1000000000", "padding"),
        ("adaptive_avg_pool3d c1 i5 o2000000000", "output_size"),
        ("conv3d n1000 c1000 i1000000 oc1 k3", "input_size"),
    ],
)
def test_arrays_that_nothing_can_address(text, named):
    with pytest.raises(ValueError, match=f"{named}.* is more than a process can address"):
        parse_problem(text)


def test_problems_that_differ_in_anything_are_different():
    """Every problem of the shape sets, in four dtypes: as keys of a dictionary none hides another."""
    everything = [p for dtype in DTYPES for p in problems(dtype)]
    texts = {format_problem(p) for p in everything}
    assert len(set(everything)) == len(texts)
    assert len(texts) == len(everything)


def test_problems_are_frozen_and_replace_computes_anew():
    p = parse_problem("conv2d c1 i8 oc1 k3")
    with pytest.raises(AttributeError):
        p.n = 3
    assert hash(p) == hash(p.replace(n=p.n))
    assert p.replace(stride=(2, 2)).output_size == (3, 3)
    assert p.output_size == (6, 6)


@given(conv_problems() | pool_problems())
def test_pickle_round_trip(problem):
    hash(problem)  # is kept in the record, and must not travel
    again = pickle.loads(pickle.dumps(problem))
    assert again == problem
    assert hash(again) == hash(problem)
    assert again.output_size == problem.output_size


@dataclass(frozen=True, kw_only=True)
class Later(ConvProblem):
    """The record as a later version might have it."""

    news: int = 7

    __hash__ = ConvProblem.__hash__


class LaterReader(pickle.Unpickler):
    def find_class(self, module, name):
        return Later if name == "ConvProblem" else super().find_class(module, name)


def test_pickle_made_before_a_field_was_added():
    problem = parse_problem("conv2d c1 i8 oc1 k3 bias")
    later = LaterReader(io.BytesIO(pickle.dumps(problem))).load()
    assert later.news == 7
    assert format_problem(later) == format_problem(problem)


def test_pickle_across_processes():
    """Hashes of strings differ from process to process: an unpickled problem must hash as one made there."""
    made = list(problems())
    sent = pickle.dumps(made).hex()
    code = f"""
import json, pickle
from fastconv.notation import format_problem
from fastconv.testing import problems
known = {{p: format_problem(p) for p in problems()}}
print(json.dumps([known[p] for p in pickle.loads(bytes.fromhex({sent!r}))]))
"""
    assert [hash(p) for p in made]
    answer = python(code, PYTHONHASHSEED="12345").stdout
    assert json.loads(answer) == [format_problem(p) for p in made]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("conv1d n1 c1 iw5 oc2 k3 p2 replicate", 12),
        ("conv1d n1 c1 iw5 oc2 k3 p2 reflect", 10),
        ("conv1d n1 c1 iw3 oc1 k3 p3 circular", 7),
        ("conv1d n1 c1 iw9 oc2 k3 p1", 6),
    ],
)
def test_sums_behind_a_gradient_have_no_more_terms_than_said(text, terms):
    """Counted by sums of ones."""
    problem = parse_problem(text).replace(direction="dgrad")
    ones = tuple(np.ones(operand.shape, np.float32) for operand in problem.inputs)
    (dx,) = testing.run(registry.find("reference/einsum"), problem, ones)
    assert dx.max() == terms <= problem.reduction


def test_an_element_is_in_many_windows_where_an_adaptive_pool_enlarges():
    problem = parse_problem("adaptive_avg_pool1d c1 iw1 o1000")
    assert problem.replace(direction="dgrad").reduction >= 1000
    assert problem.reduction == 2


def test_indices_are_as_narrow_as_the_map_lets_them():
    def pool(text, **changes):
        return parse_problem(text).replace(**changes)

    assert pool("max_pool2d:dgrad c1 ih128 iw256 k2").index_dtypes == ("int64", "int32", "int16")
    assert pool("max_pool2d:dgrad c1 ih128 iw257 k2").index_dtypes == ("int64", "int32")
    assert pool("max_pool2d c1 i8 k2").index_dtypes == pool("avg_pool2d:dgrad c1 i8 k2").index_dtypes == ("int64",)
    problem = pool("max_pool2d c1 i8 k2", return_indices=True, index_dtype="int16")
    assert problem.outputs[1].dtype == "int16" and problem.bytes == 4 * (64 + 16) + 2 * 16
    assert format_problem(problem).split()[-3:] == ["indices", "int16_indices", "f32"]
    assert parse_problem(format_problem(problem)) == problem
    for text in ("max_pool2d c1 i8 k2", "max_pool2d:dgrad c1 i182 k2"):
        with pytest.raises(ValueError, match="index_dtype: expected one of int64"):
            pool(text, index_dtype="int16")
    with pytest.raises(ValueError, match="means nothing to avg_pool2d"):
        pool("avg_pool2d:dgrad c1 i8 k2", index_dtype="int16")
