"""`fastconv.onnx.ops()`: each operator's attributes, against plain formulas and fastconv's own functions."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx.reference import ReferenceEvaluator
from onnx_models import integers, model, node

import fastconv as fc
import fastconv.onnx

SIZES = {1: (9,), 2: (7, 8), 3: (5, 6, 4)}
CONV = {1: fc.conv1d, 2: fc.conv2d, 3: fc.conv3d}
CONV_TRANSPOSE = {1: fc.conv_transpose1d, 2: fc.conv_transpose2d, 3: fc.conv_transpose3d}


def run(op, *arrays, outputs="y", opset=18, **attributes):
    """Run one node on fastconv's operator in ONNX's own evaluator; return its outputs, or the only one."""
    names = [f"i{k}" if array is not None else "-" for k, array in enumerate(arrays)]
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    proto = model(
        [node(op, " ".join(names), outputs, **attributes)],
        inputs=tuple(feeds),
        outputs=tuple(name for name in outputs.split() if name != "-"),
        opset=opset,
    )
    results = ReferenceEvaluator(proto, new_ops=fastconv.onnx.ops()).run(None, feeds)
    return results[0] if len(results) == 1 else results


def raises(error, match, op, *arrays, **attributes):
    """Check that a node is refused with a message, and that the message's note names the node."""
    with pytest.raises(error) as caught:
        run(op, *arrays, **attributes)
    assert match in str(caught.value) and any(op in note for note in caught.value.__notes__), caught.value


def windows(x, kernel, stride, dilation, padding, value):
    """Return every window of an input (N, C, spatial): (N, C, *output, *kernel)."""
    ndim = len(kernel)
    padded = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    every = sliding_window_view(padded, spans, tuple(range(2, 2 + ndim)))
    places = tuple(slice(None, None, s) for s in stride)
    return every[(slice(None), slice(None), *places, *(slice(None, None, d) for d in dilation))]


def same_padding(size, kernel, stride, dilation, auto_pad):
    """Return ONNX's padding for SAME, from its formula."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return (total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2)


WINDOWS = [
    {},
    {"strides": 2},
    {"dilations": 2},
    {"pads": (1, 0)},
    {"pads": (1, 1), "strides": 2},
    {"pads": (2, 2), "dilations": 2, "strides": 3},
    {"auto_pad": "SAME_UPPER", "strides": 2},
    {"auto_pad": "SAME_LOWER", "strides": 2},
    {"auto_pad": "SAME_LOWER", "dilations": 2},
    {"auto_pad": "VALID", "strides": 2},
]


def spread(case, ndim, kernel):
    """Return a case's attributes for so many axes, and the same as numbers: stride, dilation, padding."""
    attributes = {"kernel_shape": list(kernel)}
    stride, dilation = ((case.get(name, 1),) * ndim for name in ("strides", "dilations"))
    padding = (case.get("pads", (0, 0)),) * ndim
    if case.get("auto_pad", "").startswith("SAME"):
        rows = zip(SIZES[ndim], kernel, stride, dilation, strict=True)
        padding = tuple(same_padding(*row, case["auto_pad"]) for row in rows)
    for name, value in case.items():
        if name == "pads":
            attributes[name] = [value[0]] * ndim + [value[1]] * ndim
        else:
            attributes[name] = value if isinstance(value, str) else [value] * ndim
    return attributes, stride, dilation, padding


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("case", WINDOWS, ids=str)
class TestWindows:
    kernel = (3, 2, 2)

    def of(self, case, ndim, value=0.0, **more):
        kernel = self.kernel[:ndim]
        attributes, stride, dilation, padding = spread(case, ndim, kernel)
        x = integers((2, 4, *SIZES[ndim]), np.float64) * prod(range(1, 13))  # means of it are whole
        found = windows(x, kernel, stride, dilation, padding, value)
        return x, found.reshape(*found.shape[: 2 + ndim], -1), {**attributes, **more}

    def test_conv(self, case, ndim):
        kernel = self.kernel[:ndim]
        attributes, stride, dilation, padding = spread(case, ndim, kernel)
        x, w, b = integers((2, 4, *SIZES[ndim])), integers((6, 2, *kernel), seed=1), integers(6, seed=2)
        expected = CONV[ndim](x, w, b, stride, padding, dilation, 2, backend="reference")
        assert np.array_equal(run("Conv", x, w, b, group=2, **attributes), expected)
        expected -= b.reshape(-1, *(1,) * ndim)
        assert np.array_equal(run("Conv", x, w, group=2, **attributes), expected)

    def test_max_pool(self, case, ndim):
        x, found, attributes = self.of(case, ndim, -np.inf)
        assert np.array_equal(run("MaxPool", x, **attributes), found.max(-1))

    def test_average_pool(self, case, ndim):
        x, found, attributes = self.of(case, ndim, np.nan, opset=19)
        assert np.array_equal(run("AveragePool", x, **attributes), np.nanmean(found, -1))
        x, found, attributes = self.of(case, ndim, 0, opset=19, count_include_pad=1)
        assert np.array_equal(run("AveragePool", x, **attributes), found.mean(-1))

    def test_lp_pool(self, case, ndim):
        x, found, attributes = self.of(case, ndim)
        assert np.array_equal(run("LpPool", x, p=1, **attributes), np.abs(found).sum(-1))


def test_ceil_mode_counts_what_the_window_holds():
    x = np.arange(1.0, 6.0).reshape(1, 1, 5)
    shared = {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}
    assert run("MaxPool", x, **shared).ravel().tolist() == [2, 4, 5]
    assert run("AveragePool", x, **shared).ravel().tolist() == [1.5, 3.5, 5]
    assert run("LpPool", x, p=1, **shared).ravel().tolist() == [3, 7, 10]  # scaled up, as PyTorch does
    # A window may not start in the padding after the input.
    assert run("MaxPool", x, **{**shared, "pads": [1, 1]}).ravel().tolist() == [1, 3, 5]
    # One window that is larger than the input, because sizes round up.
    assert run("MaxPool", x, kernel_shape=[6], strides=[2], ceil_mode=1).ravel().tolist() == [5]


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_lp_pools_take_absolute_values(p):
    x = integers((1, 2, 6), np.float64)
    x[..., ::2] = 0  # one number in every window
    assert np.allclose(run("LpPool", x, p=p, kernel_shape=[2], strides=[2]), np.abs(x[..., 1::2]))
    whole = np.zeros((1, 2, 2, 3, 2, 2))
    whole[0, :, 1, 1, 0, 0] = -3, 2
    assert np.allclose(run("GlobalLpPool", whole, p=p).ravel(), [3, 2])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integers_are_pooled_as_they_are(dtype):
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max, (1, 2, 5, 6), dtype, endpoint=True)
    result = run("MaxPool", x, kernel_shape=[2, 2], pads=[1, 1, 1, 1])
    assert result.dtype == dtype
    assert np.array_equal(result, windows(x, (2, 2), (1, 1), (1, 1), ((1, 1), (1, 1)), limits.min).max((-2, -1)))


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 1], [2, 2, 2, 2]])
@pytest.mark.parametrize("storage_order", [0, 1])
def test_indices_of_a_max_pool_are_places_in_the_whole_input(pads, storage_order):
    x = np.random.default_rng(0).permutation(2 * 3 * 5 * 7).reshape(2, 3, 5, 7).astype(np.float32)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "storage_order": storage_order}
    maxima, places = run("MaxPool", x, outputs="y i", **attributes)
    flat = (x.swapaxes(2, 3) if storage_order else x).reshape(-1)
    assert places.dtype == np.int64 and np.array_equal(flat[places], maxima)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_max_unpool_is_the_way_back(ndim):
    x = np.random.default_rng(0).permutation(6 * 4**ndim).reshape(2, 3, *(4,) * ndim).astype(np.float32) + 1
    maxima, places = run("MaxPool", x, outputs="y i", kernel_shape=[2] * ndim, strides=[2] * ndim)
    attributes = {"kernel_shape": [2] * ndim, "strides": [2] * ndim}
    back = run("MaxUnpool", maxima, places, **attributes)
    assert np.array_equal(back, np.where(np.isin(x, maxima), x, 0))
    larger = run("MaxUnpool", maxima, places, np.array([2, 3, *(5,) * ndim]), **attributes)
    assert larger.shape == (2, 3, *(5,) * ndim)
    assert np.array_equal(larger[(..., *(slice(4),) * ndim)], back) and larger.sum() == back.sum()
    raises(ValueError, "own channel", "MaxUnpool", maxima, places[::-1], **attributes)


def test_global_pools_take_any_number_of_axes():
    x = integers((2, 3, 2, 2, 2, 2))
    for op, function in (("GlobalAveragePool", np.mean), ("GlobalMaxPool", np.max)):
        for axes in (1, 2, 3, 4):
            lines = x.reshape(2, 3, *(2,) * (axes - 1), -1)
            assert np.array_equal(run(op, lines), function(lines, tuple(range(2, 2 + axes)), keepdims=True))


class TestConvTranspose:
    @staticmethod
    def full(x, w, group, stride, dilation):
        return CONV_TRANSPOSE[x.ndim - 2](x, w, None, stride, 0, 0, group, dilation, backend="reference")

    @pytest.mark.parametrize("ndim", [1, 2, 3])
    @pytest.mark.parametrize("group", [1, 2])
    def test_attributes_cut_and_extend_the_full_result(self, ndim, group):
        x, w = integers((2, 4, *SIZES[ndim])), integers((4, 3, *(3,) * ndim), seed=1)
        full = self.full(x, w, group, 2, 1)
        bias = integers(3 * group, seed=2)
        expected = full + bias.reshape(-1, *(1,) * ndim)
        shared = {"group": group, "strides": [2] * ndim}
        assert np.array_equal(run("ConvTranspose", x, w, bias, **shared), expected)
        cut = (..., *(slice(1, -2),) * ndim)
        assert np.array_equal(run("ConvTranspose", x, w, bias, pads=[1] * ndim + [2] * ndim, **shared), expected[cut])
        grown = run("ConvTranspose", x, w, bias, output_padding=[1] * ndim, **shared)
        assert grown.shape[2:] == tuple(s + 1 for s in full.shape[2:])
        assert np.array_equal(grown[(..., *(slice(-1),) * ndim)], expected)

    def test_output_shape_and_same(self):
        x, w, b = integers((1, 1, 5)), integers((1, 1, 3), seed=1), integers(1, seed=2)
        full = self.full(x, w, 1, 3, 1) + b  # of size 15
        shared = {"strides": [3]}
        for size, start in ((15, 0), (14, 1), (13, 1), (12, 2)):  # what is too much is cut before first
            result = run("ConvTranspose", x, w, b, output_shape=[size], **shared)
            assert np.array_equal(result, full[..., start : start + size])
        longer = run("ConvTranspose", x, w, b, output_shape=[19], **shared)
        assert np.array_equal(longer[..., :15], full) and (longer[..., 15:] == b).all() and longer.shape[-1] == 19
        w = integers((1, 1, 4), seed=1)
        full = self.full(x, w, 1, 3, 1)  # of size 16
        for auto_pad, start in (("SAME_UPPER", 0), ("SAME_LOWER", 1)):
            assert np.array_equal(
                run("ConvTranspose", x, w, auto_pad=auto_pad, **shared), full[..., start : start + 15]
            )

    def test_too_much_is_refused(self):
        raises(ValueError, "to nothing", "ConvTranspose", integers((1, 1, 3)), integers((1, 1, 1)), pads=[2, 2])


@pytest.mark.parametrize("ndim", [1, 2, 3])
class TestDeformConv:
    def case(self, ndim, groups=2, offset_groups=2):
        size = SIZES[ndim]
        x, w = integers((2, 4, *size)), integers((6, 4 // groups, *(2,) * ndim), seed=1)
        output = [s - 1 + 1 for s in size]  # with one element of padding before
        offset = np.zeros((2, offset_groups * 2**ndim * ndim, *output), np.float32)
        return x, w, offset, {"pads": [1] * ndim + [0] * ndim, "group": groups, "offset_group": offset_groups}

    def test_without_offsets_it_is_a_convolution(self, ndim):
        x, w, offset, attributes = self.case(ndim)
        b = integers(6, seed=2)
        expected = CONV[ndim](x, w, b, 1, ((1, 0),) * ndim, 1, 2, backend="reference")
        assert np.array_equal(run("DeformConv", x, w, offset, b, opset=19, **attributes), expected)
        mask = np.full((2, 2 * 2**ndim, *offset.shape[2:]), 2, np.float32)
        expected = 2 * CONV[ndim](x, w, None, 1, ((1, 0),) * ndim, 1, 2, backend="reference")
        assert np.array_equal(run("DeformConv", x, w, offset, None, mask, opset=19, **attributes), expected)

    def test_half_an_element_is_the_mean_of_two(self, ndim):
        x, w, offset, attributes = self.case(ndim, 1, 1)
        offset[:, ndim - 1 :: ndim] = 0.5  # along the last axis
        beyond = np.pad(x, [(0, 0)] * (ndim + 1) + [(0, 1)])
        before = np.pad(x, [(0, 0)] * (ndim + 1) + [(1, 0)])[..., :-1]
        between = (np.concatenate([before[..., :1], x], -1) + beyond) / 2  # from half before the input on
        padded = np.pad(between, [(0, 0)] * 2 + [(1, 0)] * (ndim - 1) + [(0, 0)])
        expected = CONV[ndim](padded, w, None, backend="reference")
        assert np.array_equal(run("DeformConv", x, w, offset, opset=19, **attributes), expected)

    def test_infinity_outside_of_what_is_read_stays_outside(self, ndim):
        x, w, offset, attributes = self.case(ndim)
        offset[...] = 1000
        x[..., -1] = x[..., 0] = np.inf
        assert not run("DeformConv", x, w, offset, opset=19, **attributes).any()

    def test_wrong_shapes_are_refused(self, ndim):
        x, w, offset, attributes = self.case(ndim)
        raises(ValueError, "offset: expected shape", "DeformConv", x, w, offset[:, 1:], opset=19, **attributes)
        mask = np.ones((2, 3, *offset.shape[2:]), np.float32)
        raises(ValueError, "mask: expected shape", "DeformConv", x, w, offset, None, mask, opset=19, **attributes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_col2im_adds_up(ndim, dtype):
    size, kernel = SIZES[ndim], (2,) * ndim
    shared = {"pads": [1] * ndim + [0] * ndim, "strides": [2] * ndim}
    x = integers((2, 3, *size), np.float64)
    columns = fc.unfold(x, kernel, 1, ((1, 0),) * ndim, 2)
    expected = fc.fold(columns, size, kernel, 1, ((1, 0),) * ndim, 2, backend="reference")
    result = run("Col2Im", columns.astype(dtype), np.array(size), np.array(kernel), **shared)
    assert result.dtype == dtype and np.array_equal(result, expected)


def test_col2im_refuses_integers_that_it_cannot_add_exactly():
    columns = np.full((1, 2, 3), 2**53, np.int64)
    raises(ValueError, "2**53", "Col2Im", columns, np.array([4]), np.array([2]))


def integer_sums(x, w, x_zero, w_zero, group, padding, stride):
    """Return the sums of an integer convolution, by integers alone."""
    x = x.astype(np.int64) - x_zero
    w = w.astype(np.int64) - np.reshape(w_zero, (-1, *(1,) * (w.ndim - 1)))
    kernel = w.shape[2:]
    found = windows(x, kernel, stride, (1,) * len(kernel), padding, 0)
    found = np.moveaxis(found, 1, -1).reshape(len(x), -1, prod(kernel), group, w.shape[1])
    w = w.reshape(group, -1, w.shape[1], prod(kernel))
    sums = np.einsum("nptgc,gkct->ngkp", found, w).reshape(len(x), -1, found.shape[1])
    sizes = zip(x.shape[2:], kernel, stride, padding, strict=True)
    return sums.reshape(*sums.shape[:2], *((i + b + a - k) // s + 1 for i, k, s, (b, a) in sizes))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("x_type", "w_type"), list(itertools.product((np.uint8, np.int8), repeat=2)))
class TestIntegers:
    def case(self, ndim, x_type, w_type, channels=4):
        rng = np.random.default_rng(0)
        draw = [(t, np.iinfo(t)) for t in (x_type, w_type)]
        shapes = (2, 2 * channels, *SIZES[ndim]), (6, channels, *(2,) * ndim)
        return [rng.integers(i.min, i.max, s, t, endpoint=True) for (t, i), s in zip(draw, shapes, strict=True)], {
            "group": 2,
            "pads": [1] * ndim + [0] * ndim,
            "strides": [2] * ndim,
        }

    @pytest.mark.parametrize("channels", [4, 150])  # float32 holds the sums of 4 channels, not those of 150
    def test_conv_integer_is_exact(self, ndim, x_type, w_type, channels):
        (x, w), attributes = self.case(ndim, x_type, w_type, channels)
        zeros = np.array([3, 0, 1, 2, 5, 7], w_type)
        expected = integer_sums(x, w, 5, zeros, 2, ((1, 0),) * ndim, (2,) * ndim)
        result = run("ConvInteger", x, w, np.array(5, x_type), zeros, **attributes)
        assert result.dtype == np.int32 and np.array_equal(result, expected)
        expected = integer_sums(x, w, 0, 0, 2, ((1, 0),) * ndim, (2,) * ndim)
        assert np.array_equal(run("ConvInteger", x, w, **attributes), expected)

    @pytest.mark.parametrize("y_type", [np.uint8, np.int8])
    def test_qlinear_conv_rounds_to_even_and_saturates(self, ndim, x_type, w_type, y_type):
        (x, w), attributes = self.case(ndim, x_type, w_type)
        b = np.arange(6, dtype=np.int32)
        scales = np.float32(2.0) ** np.arange(-9, -3)  # powers of two, so that halves come out exactly
        sums = integer_sums(x, w, 5, 3, 2, ((1, 0),) * ndim, (2,) * ndim)
        per_channel = (-1, *(1,) * ndim)
        exact = (sums + b.reshape(per_channel)) * scales.astype(np.float64).reshape(per_channel)
        limits = np.iinfo(y_type)
        expected = np.clip(np.rint(exact) + 7, limits.min, limits.max)
        assert (expected == limits.max).any() and (exact % 1 == 0.5).any()
        result = run(
            "QLinearConv",
            x,
            np.array(0.5, np.float32),
            np.array(5, x_type),
            w,
            scales,
            np.array(3, w_type),
            np.array(0.5, np.float32),
            np.array(7, y_type),
            b,
            **attributes,
        )
        assert result.dtype == y_type and np.array_equal(result, expected)


def test_integer_errors():
    x, w = np.zeros((1, 2, 4), np.uint8), np.zeros((3, 2, 2), np.uint8)
    raises(ValueError, "one per output channel", "ConvInteger", x, w, None, np.zeros(2, np.uint8))
    raises(ValueError, "expected a scalar", "ConvInteger", x, w, np.zeros(2, np.uint8))
    raises(TypeError, "int8 or uint8", "ConvInteger", x.astype(np.int32), w)


def test_float16_is_summed_wide():
    x = np.full((1, 1, 4, 4), 30000, np.float16)
    result = run("AveragePool", x, kernel_shape=[3, 3], dilations=[1, 1], pads=[2, 2, 2, 2], opset=19)
    assert result.dtype == np.float16 and (result == 30000).all()
    assert (run("GlobalAveragePool", x) == 30000).all()


def test_what_makes_no_sense_is_refused():
    x, w = integers((1, 2, 5, 5)), integers((3, 2, 3, 3))
    raises(ValueError, "kernel_shape", "Conv", x, w, kernel_shape=[2, 2])
    raises(ValueError, "auto_pad", "Conv", x, w, auto_pad="SAME")
    raises(ValueError, "pads: expected 4", "Conv", x, w, pads=[1, 1])
    raises(ValueError, "input channels", "Conv", x, w[:, :1])
    raises(ValueError, "1 to 3 spatial axes", "Conv", integers((1, 2, 3, 3, 3, 3)), integers((3, 2, 1, 1, 1, 1)))
    raises(ValueError, "spans", "MaxPool", x, kernel_shape=[6, 6])
    raises(ValueError, "positive", "MaxPool", x, kernel_shape=[0, 1])
    raises(TypeError, "float64", "Conv", x, w.astype(np.float64))
