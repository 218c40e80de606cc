"""The worked examples of the textbooks, with their published numbers, through every backend.

The data are small integers, for which every backend must give the very same values.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from fakes import general_backends

import fastconv as fc
from fastconv.notation import parse_problem
from fastconv.problem import ConvProblem
from fastconv.sizes import conv_output_size, pool_output_size

FILTER = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], np.float32)[None, None]
EDGES = np.tile(np.array([-1, 0, 1], np.float32), (1, 1, 3, 1))


@pytest.fixture(params=general_backends())
def backend(request):
    """A backend, which every call within the test goes through."""
    with fc.options(backend=request.param):
        yield request.param


def digits(*rows: str) -> np.ndarray:
    """Return an image of one channel whose rows are spelt out."""
    return np.array([[int(digit) for digit in row] for row in rows], np.float32)[None, None]


def integers(*shape: int, low: int = -3, high: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float32)


# ------------------------------------------------------------------------------------------- convolution


def test_4x4_image_3x3_filter_padding_1(backend):
    y = fc.conv2d(digits("1230", "0123", "3012", "2301"), FILTER, padding=1)
    assert y[0, 0].tolist() == [[7, 12, 10, 2], [4, 15, 16, 10], [10, 6, 15, 6], [8, 10, 4, 3]]


def test_7x7_image_stride_2(backend):
    x = digits("1230123", "0123012", "3012301", "2301230", "1230123", "0123012", "3012301")
    y = fc.conv2d(x, FILTER, stride=2)
    assert y[0, 0].tolist() == [[15, 17, 15], [17, 15, 17], [15, 17, 15]]


def test_28x31_image_5x5_filter_padding_2_stride_3(backend):
    x, w = integers(1, 1, 28, 31), integers(1, 1, 5, 5)
    assert fc.conv2d(x, w, padding=2, stride=3).shape == (1, 1, 10, 11)


@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 3), (3, 2)])
def test_7x7_image_by_stride(backend, stride, size):
    """At stride 3 the filter does not fit evenly, and the last column is not read."""
    x = integers(1, 1, 7, 7)
    y = fc.conv2d(x, FILTER, stride=stride)
    assert y.shape == (1, 1, size, size)
    assert np.array_equal(y, fc.conv2d(x, FILTER)[:, :, ::stride, ::stride])


@pytest.mark.parametrize("filter_size", [1, 3, 5, 7])
def test_same_size_at_stride_1(backend, filter_size):
    x, w = integers(1, 2, 9, 8), integers(3, 2, filter_size, filter_size)
    assert fc.conv2d(x, w, padding=(filter_size - 1) // 2).shape == (1, 3, 9, 8)


def test_sizes_that_do_not_fit_are_rounded_down():
    assert conv_output_size(10, 3, 2, 1, (0, 0)) == math.floor(4.5)
    assert conv_output_size(7, 3, 3, 1, (0, 0)) == 2
    assert pool_output_size(10, 3, 2, 1, (0, 0), ceil_mode=True) == math.ceil(4.5)


def test_vertical_edge_filter(backend):
    x = np.zeros((1, 1, 5, 6), np.float32)
    x[..., 3:] = 100
    assert fc.conv2d(x, EDGES)[0, 0].tolist() == [[0, 300, 300, 0]] * 3


def test_32x32x3_image_ten_5x5_filters(backend):
    x, w, b = integers(1, 3, 32, 32), integers(10, 3, 5, 5), integers(10)
    assert fc.conv2d(x, w, b, padding=2).shape == (1, 10, 32, 32)
    layer = fc.explain(fc.conv2d, x, w, b, padding=2).problem
    assert layer.parameters == 760
    assert layer.replace(oc=1).parameters == 76


def test_227x227x3_image_96_11x11_filters_stride_4(backend):
    """AlexNet's first layer, as convolution and as the one matrix product that im2col makes of it."""
    x, w, b = integers(1, 3, 227, 227), integers(96, 3, 11, 11, seed=1), integers(96, seed=2)
    y = fc.conv2d(x, w, b, stride=4)
    assert y.shape == (1, 96, 55, 55)
    columns = fc.unfold(x, 11, stride=4)
    assert columns.shape == (1, 363, 3025)
    rows = w.reshape(96, 363)
    assert np.array_equal(y, (rows @ columns[0] + b[:, None]).reshape(1, 96, 55, 55))


def test_parameters_of_227x227x3_with_and_without_sharing():
    shared = parse_problem("conv2d ic3 i227 oc96 k11 s4 bias")
    assert shared.output_size == (55, 55)
    assert shared.parameters == 96 * (363 + 1) == 34_944
    alone = parse_problem("locally_connected2d ic3 i227 oc96 k11 s4 bias_per_position")
    assert alone.parameters == 290_400 * 364 == 105_705_600


def test_locally_connected_with_shared_weights_is_convolution(backend):
    x, w, b = integers(2, 3, 8, 9), integers(4, 3, 3, 3, seed=1), integers(4, seed=2)
    y = fc.conv2d(x, w, b, stride=2, padding=1)
    everywhere = np.ascontiguousarray(np.broadcast_to(w, (*y.shape[2:], *w.shape)))
    assert np.array_equal(fc.locally_connected2d(x, everywhere, b, stride=2, padding=1), y)
    each = np.ascontiguousarray(np.broadcast_to(b, (*y.shape[2:], 4)))
    assert np.array_equal(fc.locally_connected2d(x, everywhere, each, stride=2, padding=1), y)


def test_1x1_convolution_mixes_channels(backend):
    x, w = integers(2, 6, 5, 7), integers(4, 6, seed=1)
    assert np.array_equal(fc.conv2d(x, w[:, :, None, None]), np.tensordot(w, x, (1, 1)).swapaxes(0, 1))


def test_depthwise_separable_is_a_plane_at_a_time_and_then_1x1(backend):
    x, depth, point = integers(2, 3, 6, 6), integers(3, 1, 3, 3, seed=1), integers(5, 3, 1, 1, seed=2)
    separable = fc.conv2d(fc.conv2d(x, depth, padding=1, groups=3), point)
    assert np.array_equal(separable, fc.conv2d(x, point * depth[:, 0], padding=1))


def test_groups_are_parallel_towers(backend):
    x, w = integers(2, 8, 7, 7), integers(12, 2, 3, 3, seed=1)
    towers = [fc.conv2d(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3]) for g in range(4)]
    assert np.array_equal(fc.conv2d(x, w, groups=4), np.concatenate(towers, axis=1))


def test_dilation_is_a_filter_with_holes(backend):
    x, w = integers(1, 2, 11, 11), integers(3, 2, 3, 3, seed=1)
    holes = np.zeros((3, 2, 7, 7), np.float32)
    holes[:, :, ::3, ::3] = w
    assert np.array_equal(fc.conv2d(x, w, dilation=3), fc.conv2d(x, holes))


# ---------------------------------------------------------------------------------------- fully connected


def test_affine_layer_and_its_gradients(backend):
    x, w, b, dy = integers(5, 7), integers(4, 7, seed=1), integers(4, seed=2), integers(5, 4, seed=3)
    y, pullback = fc.vjp(fc.linear, x, w, b)
    assert np.array_equal(y, x @ w.T + b)
    dx, dw, db = pullback(dy)
    assert np.array_equal(dx, dy @ w)
    assert np.array_equal(dw, dy.T @ x)
    assert np.array_equal(db, dy.sum(0))


def test_fully_connected_layer_is_a_7x7_convolution(backend):
    """Over 7x7x512; each output has its own filter, so that a few of the 4096 show it for all."""
    x, w, b = integers(1, 512, 7, 7), integers(24, 512, 7, 7, seed=1), integers(24, seed=2)
    y = fc.conv2d(x, w, b)
    assert y.shape == (1, 24, 1, 1)
    assert np.array_equal(y[:, :, 0, 0], fc.linear(x.reshape(1, -1), w.reshape(24, -1), b))


def test_fully_connected_and_7x7_convolution_have_the_same_parameters():
    assert parse_problem("conv2d ic512 i7 oc4096 k7 bias").parameters == (7 * 7 * 512 + 1) * 4096
    assert parse_problem("linear ic25088 oc4096 bias").parameters == (7 * 7 * 512 + 1) * 4096


def test_converted_network_slides(backend):
    """A network for 224x224 images, its first fully connected layer a 7x7 convolution, gives 6x6 scores on 384x384.

    They are those of the 36 crops of 224x224 at steps of 32 exactly if no layer before pads: a crop's border is
    padded with zeros where the large image has pixels. So this one has 1x1 and 2x2 filters up to there.
    """
    layers = [(integers(c, b, 1, 1, low=-1, high=3, seed=c), c) for b, c in itertools.pairwise((3, 2, 3, 4, 3, 5))]
    connected, scores = integers(6, 5, 7, 7, low=-1, high=2, seed=8), integers(10, 6, 1, 1, low=-1, high=2, seed=9)

    def features(x):
        for i, (w, channels) in enumerate(layers):
            x = fc.conv2d(x, w, activation="relu")
            x = (
                fc.max_pool2d(x, 2)
                if i % 2
                else fc.conv2d(x, np.ones((channels, 1, 2, 2), x.dtype), stride=2, groups=channels)
            )
        return x

    def classify(maps):
        return fc.conv2d(fc.conv2d(maps, connected, activation="relu"), scores)

    image = integers(1, 3, 384, 384, low=0, high=3)
    maps = features(image)
    assert maps.shape == (1, 5, 12, 12)
    sliding = classify(maps)
    assert sliding.shape == (1, 10, 6, 6)
    assert len(np.unique(sliding)) > 100
    for i, j in itertools.product(range(6), repeat=2):
        crop = np.ascontiguousarray(image[:, :, 32 * i : 32 * i + 224, 32 * j : 32 * j + 224])
        seen = features(crop)
        assert seen.shape == (1, 5, 7, 7)
        assert np.array_equal(classify(seen)[0, :, 0, 0], sliding[0, :, i, j])


# ------------------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize(("size", "channels", "pooled"), [(32, 12, 16), (224, 64, 112)])
def test_2x2_pooling_halves_the_map_and_keeps_the_depth(backend, size, channels, pooled):
    x = integers(1, channels, size, size)
    blocks = x.reshape(1, channels, pooled, 2, pooled, 2)
    assert np.array_equal(fc.max_pool2d(x, 2), blocks.max((3, 5)))
    assert np.array_equal(fc.avg_pool2d(x, 2), blocks.mean((3, 5)))


def test_3x3_pooling_at_stride_2_overlaps(backend):
    x = integers(1, 2, 55, 55)
    y = fc.max_pool2d(x, 3, 2)
    assert y.shape == (1, 2, 27, 27)
    assert np.array_equal(y, fc.max_pool2d(x, 3, 1)[:, :, ::2, ::2])


def test_l2_pooling_is_the_norm_of_the_window(backend):
    x = np.array([[3, 4, 6, 8], [0, 0, 0, 0]], np.float32)[None, None]
    assert fc.lp_pool2d(x, 2, 2).tolist() == [[[[5, 10]]]]


def test_global_average_pooling(backend):
    x = integers(2, 3, 8, 4)
    assert np.array_equal(fc.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], x.mean((2, 3)))


def test_max_pooling_routes_the_gradient_to_the_recorded_index(backend):
    x = digits("1230", "0193", "3012", "8301")
    (y, indices), pullback = fc.vjp(fc.max_pool2d, x, 2, return_indices=True)
    assert y[0, 0].tolist() == [[2, 9], [8, 2]]
    assert indices[0, 0].tolist() == [[1, 6], [12, 11]]
    (dx,) = pullback(digits("12", "34"))
    assert dx[0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 4], [3, 0, 0, 0]]


# ----------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_gradient_is_a_convolution_with_flipped_filters(backend, padding):
    x, w = integers(2, 3, 8, 7), integers(4, 3, 3, 3, seed=1)
    y, pullback = fc.vjp(fc.conv2d, x, w, padding=padding)
    dy = integers(*y.shape, seed=2)
    dx, dw, db = pullback(dy)
    flipped = np.ascontiguousarray(w[:, :, ::-1, ::-1].swapaxes(0, 1))
    assert np.array_equal(dx, fc.conv2d(dy, flipped, padding=2 - padding))
    images_as_channels = fc.conv2d(x.swapaxes(0, 1), dy.swapaxes(0, 1), padding=padding)
    assert np.array_equal(dw, images_as_channels.swapaxes(0, 1))
    assert db is None


def receptive_field(stack: list[tuple[int, int]], size: int) -> int:
    """Return how many pixels of a row one output of a stack of (filter, stride) layers depends on."""
    pullbacks, x = [], np.ones((1, 1, size, size), np.float32)
    for kernel, stride in stack:
        x, pullback = fc.vjp(fc.conv2d, x, np.ones((1, 1, kernel, kernel), x.dtype), stride=stride)
        pullbacks.append(pullback)
    gradient = np.zeros_like(x)
    gradient[0, 0, 1, 1] = 1
    for pullback in reversed(pullbacks):
        gradient, _, _ = pullback(gradient)
    rows, columns = gradient[0, 0].any(1), gradient[0, 0].any(0)
    assert rows.sum() == columns.sum() == np.ptp(np.flatnonzero(rows)) + 1
    return int(rows.sum())


@pytest.mark.parametrize(
    ("stack", "seen"),
    [
        ([(5, 1)], 5),
        ([(3, 1)] * 2, 5),
        ([(3, 1)] * 3, 7),
        ([(7, 2), (3, 2), (3, 1)], 7 + 2 * 2 + 2 * 4),
        ([(3, 1), (2, 2), (3, 1), (2, 2)], 10),
    ],
)
def test_receptive_field_of_a_stack(backend, stack, seen):
    strides = [1, *itertools.accumulate((s for _, s in stack), int.__mul__)]
    assert seen == 1 + sum((k - 1) * before for (k, _), before in zip(stack, strides, strict=False))
    assert receptive_field(stack, size=41) == seen


# ------------------------------------------------------------------------------------------------ counting


def weights(text: str) -> int:
    return parse_problem(text).parameters


def test_weights_of_stacks_against_one_large_filter():
    for c in (1, 64):
        three, seven = 3 * weights(f"conv2d ic{c} i32 oc{c} k3"), weights(f"conv2d ic{c} i32 oc{c} k7")
        assert (three, seven) == (27 * c * c, 49 * c * c)
    assert (2 * weights("conv2d ic1 i32 oc1 k3"), weights("conv2d ic1 i32 oc1 k5")) == (18, 25)
    assert weights("conv2d ic3 i32 oc1 k5") == 75
    assert weights("conv2d ic3 i32 oc1 k3") + weights("conv2d ic1 i30 oc1 k3") == 36


def test_weights_of_a_fully_connected_neuron():
    assert weights(f"linear ic{32 * 32 * 3} oc1") == 3_072
    assert weights(f"linear ic{200 * 200 * 3} oc1") == 120_000


@pytest.mark.parametrize("size", [8, 224, 1024])
def test_weights_of_a_convolution_do_not_depend_on_the_image(size):
    layer = parse_problem(f"conv2d ic16 i{size} oc32 k3 p1")
    assert layer.parameters == 3 * 3 * 16 * 32 == 4_608
    assert layer.output_size == (size, size)


def test_parameters_memory_and_flops_of_a_layer():
    """Of VGG-16's second: k * k * c_in * c_out weights, m * m * c_out outputs, the product of both but one c_out."""
    layer = parse_problem("conv2d ic64 i224 oc64 k3 p1 bias")
    assert isinstance(layer, ConvProblem)
    assert layer.parameters == 36_864 + 64
    assert math.prod(layer.y_shape) == 3_211_264
    assert layer.macs == 1_849_688_064
    assert layer.flops == 2 * layer.macs


def test_a_bottleneck_costs_less():
    direct = parse_problem("conv2d ic256 i28 oc256 k3 p1").macs
    bottleneck = ("conv2d ic256 i28 oc64 k1", "conv2d ic64 i28 oc64 k3 p1", "conv2d ic64 i28 oc256 k1")
    assert direct == 462_422_016
    assert sum(parse_problem(text).macs for text in bottleneck) == 54_591_488
