"""What fastconv.nn does with what it should not get: errors that name it before any work, and no changed state."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from test_nn_layers import F64, LAYERS, V, X, shaken

from fastconv import nn

torch = pytest.importorskip("torch")

every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_a_gradient_of_another_shape_is_refused_and_changes_nothing(name):
    make, _, x = LAYERS[name]
    layer = shaken(make())
    y = layer.forward(x)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    for wrong in (dy[:-1], dy[..., :0], np.concatenate([dy, dy]), dy[None], dy.reshape(-1)):
        with pytest.raises(ValueError, match=re.escape(f"dy: expected shape {y.shape}, got {wrong.shape}")):
            layer.backward(wrong)
    with pytest.raises(TypeError, match="dy: expected a NumPy or CuPy array, got list"):
        layer.backward(dy.tolist())
    assert all(parameter.gradient is None for parameter in layer.parameters().values())
    assert layer.backward(dy).shape == x.shape


@every_layer
def test_a_gradient_of_another_dtype_is_refused_and_changes_nothing(name):
    make, _, x = LAYERS[name]
    layer = shaken(make())
    y = layer.forward(x)
    for dtype in (np.float32, np.float16):
        with pytest.raises(TypeError, match=f"dy: expected dtype float64, got {np.dtype(dtype)}"):
            layer.backward(y.astype(dtype))
    assert all(parameter.gradient is None for parameter in layer.parameters().values())
    assert layer.backward(y).shape == x.shape


@pytest.mark.parametrize("layer", [lambda: nn.BatchNorm2d(3), lambda: nn.Scale(0.5), lambda: nn.PReLU(3)])
def test_images_in_the_field_of_a_record_are_those_of_a_copy(layer):
    records = np.zeros(4, [("x", "f4", (3, 5, 5)), ("label", "u1")])  # each begins a byte further from whole elements
    records["x"] = np.random.default_rng(0).standard_normal((4, 3, 5, 5), np.float32)
    one, other = layer(), layer()
    y = one(records["x"])
    assert np.array_equal(y, other(records["x"].copy()))
    assert np.array_equal(one.backward(y), other.backward(y))


def test_a_seed_gives_the_layers_of_a_gate_numbers_of_their_own():
    first, second = (
        p.value.reshape(-1) for n, p in nn.SqueezeExcite(16, 2, random=0).parameters().items() if "weight" in n
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5


def tied():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    return nn.Sequential(one, other)


@every_layer
def test_what_is_no_array_of_floats_is_refused(name):
    make, _, x = LAYERS[name]
    layer = make()
    for wrong in (x.tolist(), None, torch.from_numpy(x), x.astype(int), x.astype(bool), x.astype(complex),
                  x.astype(x.dtype.newbyteorder())):  # fmt: skip
        with pytest.raises(TypeError, match=r"^x: "):
            layer(wrong)


ANY_AXES = {"flatten", "relu", "relu6", "leaky relu", "sigmoid", "tanh"}


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - ANY_AXES))
def test_one_axis_is_no_batch(name):
    make, _, x = LAYERS[name]
    with pytest.raises(ValueError, match=r"x: .* takes a batch, of .* axes, got shape"):
        make()(x.reshape(-1))


@every_layer
def test_arrays_on_disk_are_arrays(name, tmp_path):
    make, _, x = LAYERS[name]
    mapped = np.memmap(tmp_path / "x", x.dtype, "w+", shape=x.shape)
    mapped[...] = x
    one, other = make(), make()
    assert np.array_equal(one(mapped), other(x))
    dy = np.ones_like(other(x))
    one(mapped)
    assert np.array_equal(one.backward(dy), other.backward(dy))


@every_layer
def test_a_batch_of_nothing(name):
    make, _, x = LAYERS[name]
    layer = make().eval()
    assert layer(x[:0]).shape == (0, *layer.output_shape(x.shape[1:]))


BODIES = {
    "convolution": lambda: nn.Conv2d(8, 16, 3, padding=1, **F64),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, **F64), nn.BatchNorm2d(16, dtype=np.float64)),
    "scale": lambda: nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, **F64), nn.Scale(0.5)),
    "gate": lambda: nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, **F64), nn.SqueezeExcite(16, 4, dtype=np.float64)),
    "pool": lambda: nn.MaxPool2d(2),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 2, 2, **F64),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("activations", [(), (nn.ReLU,)])
def test_a_forgotten_shortcut_is_told(name, activations):
    network = nn.Sequential(nn.Residual(BODIES[name]()), *(kind() for kind in activations))
    with pytest.raises(ValueError, match=r"residual: .*\(3, 8, 9, 7\)"):
        network(X)
    with pytest.raises(ValueError, match=r"shape: the body makes .* the shortcut \(8, 9, 7\)"):
        nn.Inference(network, X)


def test_what_cannot_stand_side_by_side_is_told():
    for branch in (nn.MaxPool2d(2), nn.ConvTranspose2d(8, 8, 2, 2, **F64), nn.Flatten()):
        network = nn.Concat(nn.Sequential(), other=branch)
        with pytest.raises(ValueError, match="branch other makes float64 of shape"):
            network(X)
        with pytest.raises(ValueError, match="cannot stand side by side"):
            nn.Inference(network, X)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(4, dtype=np.float64),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1, **F64), nn.BatchNorm2d(1, dtype=np.float64)),
        lambda: nn.GroupNorm(2, 4, dtype=np.float64),
        lambda: nn.PReLU(4, dtype=np.float64),
        lambda: nn.Gate(nn.Sequential(nn.GlobalAvgPool(), nn.Flatten(), nn.Linear(8, 4, **F64))),
    ],
)
def test_another_number_of_channels_is_told(make):
    with pytest.raises(ValueError, match=r"^(x|gate): .*(channels|shape)"):
        make()(X)
    with pytest.raises(ValueError, match=r"shape: .*channels"):
        nn.Inference(make(), X)
    with pytest.raises(ValueError, match=r"shape: .*channels"):
        nn.summary(make(), X.shape[1:])


@pytest.mark.parametrize("order", ["Fortran", "broadcast", "transposed"])
@pytest.mark.parametrize("optimiser", [lambda p: nn.SGD(p, 0.1, 0.9), lambda p: nn.Adam(p, 0.1)])
def test_weights_in_any_order_learn(order, optimiser):
    values = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    values = {"Fortran": np.asfortranarray(values), "broadcast": np.broadcast_to(values[:1], (6, 4)),
              "transposed": np.ascontiguousarray(values.T).T}[order]  # fmt: skip
    plain = nn.Linear(4, 6, initialisation=lambda *_: np.array(values, order="C"))
    given = nn.Linear(4, 6, initialisation=lambda *_: values)
    converted = nn.Linear(4, 6).convert(lambda array: np.array(array, order="F"))
    converted.weight.value[...] = values
    x, dy = np.ones((2, 4), np.float32), np.ones((2, 6), np.float32)
    for layer in (plain, given, converted):
        steps = optimiser(layer)
        for _ in range(3):
            layer(x)
            layer.backward(dy)
            steps.step()
    assert not np.array_equal(plain.weight.value, values)
    assert np.array_equal(given.weight.value, plain.weight.value)
    assert np.array_equal(converted.weight.value, plain.weight.value)


def test_one_array_for_two_layers_ties_neither():
    values = np.ones((4, 4), np.float32)
    one, other = (nn.Linear(4, 4, initialisation=lambda *_: values) for _ in range(2))
    one.weight.value += 1
    assert np.array_equal(other.weight.value, np.ones((4, 4)))


def test_optimisers_change_all_or_nothing():
    good, bad = nn.Parameter(V.copy()), nn.Parameter(V.copy())
    good.gradient, bad.gradient = V, V[:2]
    with pytest.raises(ValueError, match=r"bad: gradient: expected shape \(5, 12\), got \(2, 12\)"):
        nn.SGD({"good": good, "bad": bad}, 0.1).step()
    bad.gradient, bad.value.flags.writeable = V, False
    with pytest.raises(ValueError, match="bad: value is read-only"):
        nn.SGD({"good": good, "bad": bad}, 0.1).step()
    assert np.array_equal(good.value, V)


@pytest.mark.parametrize(
    ("layer", "seen", "axes"),
    [
        (lambda: nn.Conv2d(4, 6, 3, groups=2, **F64), None, (1, 2, 3)),
        (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, **F64), (2, 2, 3, 3, 3), (1, 3, 4)),
        (lambda: nn.LocallyConnected2d(2, 3, 5, 3, **F64), None, (3, 4, 5)),
        (lambda: nn.Linear(7, 5, **F64), None, (1,)),
    ],
)
def test_max_norm_limits_filters(layer, seen, axes):
    layer, largest = layer(), 0.7
    before = layer.weight.value.copy()
    for parameter in layer.parameters().values():
        parameter.gradient = np.zeros_like(parameter.value)
    layer.bias.value += 10
    nn.SGD(layer, 0.1, max_norm=largest).step()
    filters = before.reshape(seen or before.shape)
    norms = np.sqrt((filters**2).sum(axis=axes, keepdims=True))
    assert (norms > largest).any()
    expected = (filters / np.maximum(norms / largest, 1)).reshape(before.shape)
    assert np.allclose(layer.weight.value, expected, rtol=1e-14)
    assert (layer.bias.value == 10).all()


def test_max_norm_leaves_normalisations_alone():
    layer = nn.LayerNorm((9, 7))
    layer.weight.gradient = np.zeros((9, 7), np.float32)
    nn.SGD(layer, 0.1, max_norm=0.1).step()
    assert (layer.weight.value == 1).all()


def test_state_is_loaded_whole_or_not_at_all():
    layer = nn.Linear(2, 3, random=0)
    before = {name: array.copy() for name, array in layer.state().items()}
    for wrong in (np.full(3, "a"), np.zeros(3, complex), np.zeros(3, int), [0.0, 0.0, 0.0]):
        with pytest.raises(TypeError, match="state: bias: expected"):
            layer.load_state({"weight": np.zeros((3, 2)), "bias": wrong})
    assert all(np.array_equal(array, before[name]) for name, array in layer.state().items())
    layer.load_state({"weight": np.zeros((3, 2)), "bias": np.ones(3, np.float16)})
    assert layer.weight.value.dtype == np.float32
    assert (layer.bias.value == 1).all()


def test_npz_does_not_hold_bfloat16(tmp_path):
    kind = pytest.importorskip("ml_dtypes").bfloat16
    layer = nn.Linear(2, 3, dtype=kind, random=0)
    with pytest.raises(ValueError, match=r"\.npz cannot hold bfloat16"):
        nn.save(layer, tmp_path / "layer.npz")
    assert not list(tmp_path.iterdir())
    nn.save(layer, tmp_path / "layer.safetensors")
    other = nn.Linear(2, 3, dtype=kind)
    nn.load(other, tmp_path / "layer.safetensors")
    assert np.array_equal(other.weight.value, layer.weight.value)


def test_a_header_as_deep_as_the_sea_is_no_header(tmp_path):
    text = b"[" * 100_000
    (tmp_path / "deep.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"cannot be read as \.safetensors"):
        nn.load(nn.Linear(2, 3), tmp_path / "deep.safetensors")


def test_an_auxiliary_output_without_a_gradient_leaves_none_behind():
    auxiliary = nn.Auxiliary(nn.Sequential(nn.Conv2d(8, 2, 1, **F64)))
    for given in (True, False):
        y = auxiliary(X)
        auxiliary.gradient = np.ones_like(auxiliary.output) if given else None
        auxiliary.backward(np.ones_like(y))
        assert (auxiliary.branch[0].weight.gradient is not None) == given


def test_every_epoch_trains():
    modes = []

    def augment(x):
        modes.append(network.training)
        return x

    network = nn.Sequential(nn.Linear(4, 3, random=0))
    x, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    given = network, nn.SoftmaxCrossEntropy(), nn.SGD(network, 0.1), x, labels
    nn.fit(*given, epochs=3, batch=4, score=lambda trained: len(trained.eval().parameters()), augment=augment)
    assert modes == [True] * 3


def linear():
    return nn.Linear(4, 3, random=0)


BAD = [
    (lambda: nn.Conv2d(8, 6, 3, groups=4), ValueError, "groups: 8 and 6 channels"),
    (lambda: nn.Dropout(1.0), ValueError, r"share: expected a number in \[0, 1\), got 1.0"),
    (lambda: nn.GroupNorm(3, 8), ValueError, "groups: 8 channels"),
    (lambda: nn.BatchNorm2d(4)(X.astype(np.float32)), ValueError, "for 4 channels"),
    (lambda: nn.BatchNorm2d(8, dtype=np.float64)(X[:1, :, :1, :1]), ValueError, "more than one value"),
    (lambda: nn.Sequential(3), TypeError, "expected a layer"),
    (lambda: nn.SoftmaxCrossEntropy()(V, np.full(5, 12)), ValueError, "classes from 0 to 11"),
    (lambda: nn.SoftmaxCrossEntropy()(V, V), ValueError, "class numbers"),
    (lambda: nn.SoftmaxCrossEntropy()(V, V[:, 0]), TypeError, "targets: expected integers"),
    (lambda: nn.MeanSquaredError()(V, V[0]), ValueError, r"targets: expected shape \(5, 12\)"),
    (lambda: nn.SGD({}, -1), ValueError, "rate"),
    (lambda: nn.SGD({}, 1, nesterov=True), ValueError, "nesterov"),
    (lambda: nn.Residual(nn.Conv2d(8, 4, 1)).output_shape((8, 5, 5)), ValueError, "the body makes"),
    (lambda: nn.Linear(3, 2, initialisation="best"), ValueError, "initialisation"),
    (lambda: nn.build("resnet5"), ValueError, "unknown network"),
    (lambda: nn.LeakyReLU(-1), ValueError, "slope"),
    (lambda: nn.Conv2d(0, 4, 3), ValueError, "in_channels: must be at least 1, got 0"),
    (lambda: nn.Conv2d(4, 2.5, 3), TypeError, "out_channels: expected an integer, got 2.5"),
    (lambda: nn.Conv2d(4, 4, 3, groups=0), ValueError, "groups: must be at least 1"),
    (lambda: nn.Conv2d(4, 4, 3, padding=-1), ValueError, "padding: must be at least 0"),
    (lambda: nn.Conv2d(4, 4, 3, padding="sme"), ValueError, "padding: expected 'same', 'valid'"),
    (lambda: nn.Conv2d(4, 4, 3, padding_mode="mirror"), ValueError, "padding_mode: expected zeros, .* got 'mirror'"),
    (lambda: nn.Conv2d(4, 4, 3, dtype=int), TypeError, "dtype: expected dtype float32"),
    (lambda: nn.Conv2d(8, 4, 3, **F64)(X[0]), ValueError, "x: Conv2d takes a batch, of 4 axes, got shape"),
    (lambda: nn.Conv2d(3, 8, 7).output_shape((3, 4, 4)), ValueError, "does not fit into"),
    (lambda: nn.MaxPool2d(5).output_shape((3, 4, 4)), ValueError, "does not fit into"),
    (lambda: nn.MaxPool2d(2, padding="sme"), ValueError, "padding"),
    (lambda: nn.MaxPool2d(2, ceil_mode="yes"), TypeError, "ceil_mode: expected True or False"),
    (lambda: nn.ConvTranspose2d(4, -2, 3), ValueError, "out_channels"),
    (lambda: nn.ConvTranspose2d(4, 2, 3, 2, output_padding=2), ValueError, "output_padding: must be smaller than"),
    (lambda: nn.ConvTranspose2d(4, 2, 3, 2, "same", 1), ValueError, "output_padding: must be 0 with padding='same'"),
    (lambda: nn.ConvTranspose2d(4, 2, 3, padding=4).output_shape((4, 3, 3)), ValueError, "leaves an output of"),
    (lambda: nn.Linear(0, 3), ValueError, "in_features: must be at least 1"),
    (lambda: nn.LocallyConnected2d(1, 1, 3, 5), ValueError, "kernel_size: .* does not fit"),
    (lambda: nn.LocallyConnected2d(1, 1, "big", 5), TypeError, "input_size"),
    (lambda: nn.BatchNorm2d(0), ValueError, "channels: must be at least 1"),
    (lambda: nn.BatchNorm2d(4, epsilon=-1), ValueError, r"epsilon: expected a number in \[0, inf\), got -1"),
    (lambda: nn.BatchNorm2d(4, momentum=1.5), ValueError, r"momentum: expected a number in \[0, 1\]"),
    (lambda: nn.BatchNorm2d(8, dtype=np.float16)(X), TypeError, "x: expected dtype float16, got float64"),
    (lambda: nn.LayerNorm(0), ValueError, "shape: expected positive integers"),
    (lambda: nn.LocalResponseNorm(0), ValueError, "size: must be at least 1"),
    (lambda: nn.LeakyReLU(math.nan), ValueError, "slope: expected a number in"),
    (lambda: nn.Scale("2"), TypeError, "factor: expected a number"),
    (lambda: nn.SqueezeExcite(8), ValueError, "reduction: 8 channels cannot be made 16 times fewer"),
    (lambda: nn.SqueezeExcite(8, 0), ValueError, "reduction: must be at least 1"),
    (lambda: nn.Concat(), ValueError, "takes one layer or more"),
    (lambda: nn.Sequential(nn.ReLU(), **{"0": nn.Tanh()}), ValueError, r"named: \['0'\]"),
    (lambda: nn.Sequential(**{"a.b": nn.Tanh()}), ValueError, r"named: 'a\.b' is part of paths"),
    (lambda: nn.Concat(**{"a/b": nn.Tanh()}), ValueError, "named: 'a/b' is part of paths"),
    (lambda: nn.Sequential(**{"": nn.Tanh()}), ValueError, "named: '' is part of paths"),
    (lambda: nn.SGD(tied(), 0.1), ValueError, "parameters: 0.weight and 1.weight are one parameter"),
    (lambda: nn.SGD({}, math.nan), ValueError, r"rate: expected a number in \[0, inf\), got nan"),
    (lambda: nn.SGD({}, math.inf), ValueError, "rate"),
    (lambda: nn.SGD({}, 0.1, weight_decay=-1), ValueError, "weight_decay"),
    (lambda: nn.SGD({}, 0.1, max_norm=0), ValueError, "max_norm"),
    (lambda: nn.Adam({}, betas=0.9), ValueError, "betas: expected two numbers"),
    (lambda: nn.Adam({}, betas=(0.9,)), ValueError, "betas: expected two numbers"),
    (lambda: nn.Adam({}, epsilon=0), ValueError, "epsilon"),
    (lambda: setattr(nn.SGD({}, 0.1), "rate", -1), ValueError, "rate"),
    (lambda: nn.limit_norm(V.astype(int), 1), TypeError, "weight: expected dtype"),
    (lambda: nn.MeanSquaredError()(V.astype(int), V), TypeError, "outputs: expected dtype"),
    (lambda: nn.MeanSquaredError()(V[:0], V[:0]), ValueError, "outputs: there is no mean of nothing"),
    (lambda: nn.SoftmaxCrossEntropy()(V[:0], np.zeros(0, int)), ValueError, "outputs: there is no mean"),
    (lambda: nn.SoftmaxCrossEntropy()(X, np.zeros(3, int)), ValueError, "outputs: expected shape"),
    (lambda: nn.SoftmaxCrossEntropy()(V, [0] * 5), ValueError, "targets: expected class numbers"),
    (lambda: nn.SoftmaxCrossEntropy()(V, np.full(5, -1)), ValueError, "from 0 to 11, got -1 to -1"),
    (lambda: nn.accuracy(linear(), np.eye(4, dtype=np.float32), [0] * 4), ValueError, "labels: expected an array"),
    (lambda: nn.accuracy(linear(), np.eye(4, dtype=np.float32), np.zeros((4, 1), int)), ValueError, "labels"),
    (lambda: nn.predict(linear(), np.eye(4, dtype=np.float32), 0), ValueError, "size: must be at least 1"),
    (lambda: nn.minibatches(V, V, 0), ValueError, "size: must be at least 1"),
    (lambda: nn.summary(linear(), 4), TypeError, "input_shape: expected a tuple"),
    (lambda: nn.to_conv(linear(), (4,)), TypeError, "network: expected a Sequential"),
    (lambda: nn.to_conv(nn.Sequential(nn.Flatten(), linear()), (1, 3, 3)), ValueError, "Linear takes 4 features"),
    (
        lambda: nn.to_conv(nn.Sequential(nn.Residual(nn.Flatten(), nn.Flatten())), (1, 2, 2)),
        ValueError,
        "0.body is a Flatten inside a block",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_predictions_for_nothing():
    assert nn.predict(linear(), np.zeros((0, 4), np.float32)).shape == (0, 3)
