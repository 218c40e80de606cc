"""Every layer of fastconv.nn against PyTorch's namesake, its kernels against array expressions, and its rules."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

import fastconv as fc
from fastconv import arrays, nn
from fastconv.algorithm import EPSILON, ERROR_CONSTANT
from fastconv.nn import native, plain
from fastconv.nn.native.compiling import kernel, run

torch = pytest.importorskip("torch")
tnn = torch.nn

RNG = np.random.default_rng(7)
X = RNG.standard_normal((3, 8, 9, 7))
V = RNG.standard_normal((5, 12))


def assert_near(result, expected, terms=1, dtype=None):
    """Within the error bound of a sum of so many terms, as a share of the largest element."""
    assert result.shape == tuple(expected.shape)
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    bound = ERROR_CONSTANT * EPSILON[dtype or result.dtype.name] * math.sqrt(terms)
    assert np.abs(result - expected).max() <= bound * max(1.0, np.abs(expected).max())


F64 = {"dtype": np.float64, "random": 1}
# name: (layer, PyTorch's module, input)
LAYERS = {
    "conv": (lambda: nn.Conv2d(8, 6, 3, 2, 1, groups=2, **F64), lambda: tnn.Conv2d(8, 6, 3, 2, 1, groups=2), X),
    "conv reflect": (
        lambda: nn.Conv2d(8, 4, 3, padding=1, dilation=1, bias=False, padding_mode="reflect", **F64),
        lambda: tnn.Conv2d(8, 4, 3, padding=1, bias=False, padding_mode="reflect"),
        X,
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, 2, **F64),
        lambda: tnn.ConvTranspose2d(8, 6, 3, 2, 1, 1, 2),
        X,
    ),
    "linear": (lambda: nn.Linear(12, 7, **F64), lambda: tnn.Linear(12, 7), V),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), lambda: tnn.MaxPool2d(3, 2, 1, ceil_mode=True), X),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), lambda: tnn.AvgPool2d(3, 2, 1), X),
    "lp pool": (lambda: nn.LpPool2d(2, 2), lambda: tnn.LPPool2d(2, 2), X),
    "global average": (lambda: nn.GlobalAvgPool(), lambda: tnn.AdaptiveAvgPool2d(1), X),
    "flatten": (lambda: nn.Flatten(), lambda: tnn.Flatten(), X),
    "relu": (lambda: nn.ReLU(), lambda: tnn.ReLU(), X),
    "relu6": (lambda: nn.ReLU6(), lambda: tnn.ReLU6(), 5 * X),
    "leaky relu": (lambda: nn.LeakyReLU(0.2), lambda: tnn.LeakyReLU(0.2), X),
    "prelu": (lambda: nn.PReLU(8, dtype=np.float64), lambda: tnn.PReLU(8), X),
    "prelu of one slope": (lambda: nn.PReLU(dtype=np.float64), lambda: tnn.PReLU(), X),
    "sigmoid": (lambda: nn.Sigmoid(), lambda: tnn.Sigmoid(), X),
    "tanh": (lambda: nn.Tanh(), lambda: tnn.Tanh(), X),
    "softmax": (lambda: nn.Softmax(), lambda: tnn.Softmax(1), V),
    "softmax of maps": (lambda: nn.Softmax(), lambda: tnn.Softmax(1), X),
    "batch norm": (lambda: nn.BatchNorm2d(8, dtype=np.float64), lambda: tnn.BatchNorm2d(8), X),
    "layer norm": (lambda: nn.LayerNorm((9, 7), dtype=np.float64), lambda: tnn.LayerNorm((9, 7)), X),
    "layer norm of vectors": (lambda: nn.LayerNorm(12, dtype=np.float64), lambda: tnn.LayerNorm(12), V),
    "instance norm": (lambda: nn.InstanceNorm(8, dtype=np.float64), lambda: tnn.InstanceNorm2d(8, affine=True), X),
    "group norm": (lambda: nn.GroupNorm(4, 8, dtype=np.float64), lambda: tnn.GroupNorm(4, 8), X),
    "local response norm": (
        lambda: nn.LocalResponseNorm(5, 0.3, 0.75, 2.0),
        lambda: tnn.LocalResponseNorm(5, 0.3, 0.75, 2.0),
        X,
    ),
    "local response norm, even": (
        lambda: nn.LocalResponseNorm(4, 0.3, 0.6),
        lambda: tnn.LocalResponseNorm(4, 0.3, 0.6),
        X,
    ),
}


def shaken(layer):
    """Return a layer with parameters that are neither zero nor one."""
    for parameter in layer.parameters().values():
        parameter.value += 0.3 * np.random.default_rng(3).standard_normal(parameter.value.shape)
    return layer


def load(module, layer):
    module.double()
    state = {name: torch.from_numpy(array.copy()) for name, array in layer.state().items()}
    module.load_state_dict(state, strict=False)
    return module


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_pytorchs(name):
    make, module, x = LAYERS[name]
    layer = shaken(make())
    module = load(module(), layer)
    theirs = torch.tensor(x, requires_grad=True)
    expected = module(theirs)
    y = layer.forward(x)
    assert_near(y, expected, x.size)
    assert layer.output_shape(x.shape[1:]) == y.shape[1:]
    dy = np.random.default_rng(5).standard_normal(y.shape)
    expected.backward(torch.from_numpy(dy))
    assert_near(layer.backward(dy), theirs.grad, x.size)
    gradients = dict(module.named_parameters())
    assert layer.parameters().keys() == gradients.keys()
    for path, parameter in layer.parameters().items():
        assert_near(parameter.gradient, gradients[path].grad, x.size)
    for path, array in layer.state().items():
        assert_near(array, module.state_dict()[path], x.size)  # running statistics, too
    with torch.no_grad():
        assert_near(layer.eval().forward(x), module.eval()(torch.tensor(x)), x.size)


def test_locally_connected_is_its_op():
    layer = shaken(nn.LocallyConnected2d(8, 5, (9, 7), 3, 2, 1, **F64))
    arrays = layer.weight.value, layer.bias.value
    y, pullback = fc.vjp(fc.locally_connected2d, X, *arrays, stride=2, padding=1)
    dy = RNG.standard_normal(y.shape)
    dx, dw, db = pullback(dy)
    assert np.array_equal(layer.forward(X), y)
    assert np.array_equal(layer.backward(dy), dx)
    assert np.array_equal(layer.weight.gradient, dw)
    assert np.array_equal(layer.bias.gradient, db)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize(
    "first",
    [
        lambda: nn.Conv2d(8, 8, 3, padding=1, **F64),
        lambda: nn.BatchNorm2d(8, dtype=np.float64),
        lambda: nn.Scale(0.3),
    ],
)
def test_fusing_changes_nothing(first, activation):
    together = nn.Sequential(shaken(first()), activation())
    layer, then = shaken(first()), activation()
    dy = RNG.standard_normal(X.shape)
    assert_near(together(X), then(layer(X)), X.size)
    assert_near(together.backward(dy), layer.backward(then.backward(dy)), X.size)
    for one, other in zip(together.parameters().values(), layer.parameters().values(), strict=True):
        assert_near(one.gradient, other.gradient, X.size)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda kind: nn.LeakyReLU(), lambda: tnn.LeakyReLU()),
        (lambda kind: nn.PReLU(8, 0.25, dtype=kind), lambda: tnn.PReLU(8, 0.25)),
        (lambda kind: nn.Sequential(nn.Scale(1.0), nn.LeakyReLU()), lambda: tnn.LeakyReLU()),
        (lambda kind: nn.Sequential(identity(kind), nn.LeakyReLU()), lambda: tnn.LeakyReLU()),
        (lambda kind: nn.Sequential(nn.ReLU()), lambda: tnn.ReLU()),
        (lambda kind: nn.Sequential(nn.Scale(1.0), nn.ReLU6()), lambda: tnn.ReLU6()),
    ],
)
def test_slopes_at_zero_are_pytorchs(make, other, dtype):
    x = np.where(X > 0, X, 0).astype(dtype)
    x[0] = np.minimum(X[0], 0)
    tensor = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    dy = np.ones(x.shape, dtype)
    layer = make(dtype)
    layer(x)
    other().double()(tensor).backward(torch.from_numpy(dy.astype(np.float64)))
    assert_near(layer.backward(dy), tensor.grad)


def identity(dtype):
    layer = nn.Conv2d(8, 8, 1, bias=True, random=0, dtype=dtype)
    layer.weight.value[...] = np.eye(8)[:, :, None, None]
    return layer


@pytest.mark.parametrize("activations", [(), (nn.ReLU,)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(8, 8, 3, padding=1, **F64),
        lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, **F64),
        lambda: nn.BatchNorm2d(8, dtype=np.float64),
        lambda: nn.Scale(0.3),
        lambda: nn.MaxPool2d(2),
        lambda: nn.Sequential(),
        lambda: nn.Concat(nn.Conv2d(8, 3, 1, **F64), nn.Sequential(), nn.MaxPool2d(3, 1, 1)),
    ],
)
def test_a_gradient_comes_back_added_to_another(make, activations):
    one, other = (nn.Sequential(shaken(make()), *(kind() for kind in activations)) for _ in range(2))
    y = one.forward(X)
    assert_near(other.forward(X), y, 1)
    dy, added = RNG.standard_normal(y.shape), RNG.standard_normal(X.shape)
    before = added.copy(), dy.copy()
    assert_near(one.backward_onto(dy, added), other.backward(dy) + added, X.size)
    assert np.array_equal(added, before[0]) and np.array_equal(dy, before[1])
    for mine, theirs in zip(one.parameters().values(), other.parameters().values(), strict=True):
        assert_near(mine.gradient, theirs.gradient, X.size)


def test_blocks():
    """Residual, concatenation, squeeze and excitation, auxiliary output: against PyTorch's autograd on the same ops."""
    body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False, **F64), shaken(nn.BatchNorm2d(8, dtype=np.float64)))
    gate = nn.SqueezeExcite(8, 2, dtype=np.float64, random=2)
    auxiliary = nn.Auxiliary(nn.Sequential(nn.Conv2d(8, 2, 1, **F64), nn.Flatten()))
    network = nn.Sequential(
        nn.Sequential(nn.Residual(nn.Sequential(body, gate), nn.Conv2d(8, 8, 1, **F64)), nn.ReLU()),
        auxiliary,
        nn.Concat(nn.Sequential(), wide=nn.Conv2d(8, 4, 3, padding=1, **F64)),
        nn.Residual(nn.MaxPool2d(3, 1, 1)),
    )
    p = {name: torch.tensor(parameter.value, requires_grad=True) for name, parameter in network.parameters().items()}
    x = torch.tensor(X, requires_grad=True)
    f = torch.nn.functional
    bn = f.batch_norm(f.conv2d(x, p["0.0.body.0.0.weight"], padding=1), None, None, p["0.0.body.0.1.weight"],
                      p["0.0.body.0.1.bias"], True)  # fmt: skip
    hidden = f.relu(f.linear(bn.mean((2, 3)), p["0.0.body.1.gate.fc1.weight"], p["0.0.body.1.gate.fc1.bias"]))
    factors = f.sigmoid(f.linear(hidden, p["0.0.body.1.gate.fc2.weight"], p["0.0.body.1.gate.fc2.bias"]))
    z = f.conv2d(x, p["0.0.shortcut.weight"], p["0.0.shortcut.bias"])
    z = f.relu(bn * factors[:, :, None, None] + z)
    aux = f.conv2d(z, p["1.branch.0.weight"], p["1.branch.0.bias"]).flatten(1)
    z = torch.cat([z, f.conv2d(z, p["2.wide.weight"], p["2.wide.bias"], padding=1)], 1)
    z = f.max_pool2d(z, 3, 1, 1) + z
    y = network(X)
    assert_near(y, z, X.size)
    assert_near(auxiliary.output, aux, X.size)
    dy, da = RNG.standard_normal(y.shape), RNG.standard_normal(aux.shape)
    torch.autograd.backward([z, aux], [torch.from_numpy(dy), torch.from_numpy(da)])
    auxiliary.gradient = da
    assert_near(network.backward(dy), x.grad, X.size**2)
    for name, parameter in network.parameters().items():
        assert_near(parameter.gradient, p[name].grad, X.size**2)
    assert network.output_shape(X.shape[1:]) == y.shape[1:]
    network.eval()
    assert auxiliary.output is None or network(X) is not None and auxiliary.output is None
    assert_near(nn.Inference(network, X)(X), network(X), X.size)


def test_dropout_scales_what_it_keeps_and_backs_through_the_same():
    layer = nn.Dropout(0.3, random=4)
    x = np.ones((50, 40, 10), np.float32)
    y = layer(x)
    kept = y != 0
    assert np.array_equal(np.unique(y), np.float32([0, 1 / 0.7]))
    # A share of 20,000 fair draws lies within five standard deviations.
    assert abs(kept.mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / x.size)
    assert np.array_equal(layer.backward(x) != 0, kept)
    assert not np.array_equal(layer(x) != 0, kept)
    again = nn.Dropout(0.3, random=4)
    assert np.array_equal(again(x), y)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("loss", ["mse", "cross entropy"])
def test_losses_are_pytorchs(loss):
    ours, theirs = {
        "mse": (nn.MeanSquaredError(), tnn.MSELoss()),
        "cross entropy": (nn.SoftmaxCrossEntropy(), tnn.CrossEntropyLoss()),
    }[loss]
    targets = RNG.standard_normal(V.shape) if loss == "mse" else np.array([0, 3, 11, 5, 5])
    outputs = torch.tensor(30 * V, requires_grad=True)
    expected = theirs(outputs, torch.tensor(targets))
    expected.backward()
    assert_near(np.array(ours(30 * V, targets)), expected, V.size)
    assert_near(ours.backward(), outputs.grad, V.size)
    with pytest.raises(RuntimeError, match="no loss has been computed"):
        ours.backward()


OPTIMISERS = {
    "sgd": (lambda p: nn.SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (
        lambda p: nn.SGD(p, 0.1, 0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
    ),
    "nesterov": (lambda p: nn.SGD(p, 0.1, 0.95, True), lambda p: torch.optim.SGD(p, 0.1, 0.95, nesterov=True)),
    "adam": (
        lambda p: nn.Adam(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    ),
    "adamw": (
        lambda p: nn.Adam(p, 0.01, weight_decay=0.1, decoupled=True),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_are_pytorchs(name):
    ours, theirs = OPTIMISERS[name]
    parameter = nn.Parameter(V.copy())
    tensor = torch.tensor(V, requires_grad=True)
    mine, other = ours({"v": parameter}), theirs([tensor])
    steps = 10
    for step in range(steps):
        gradient = np.random.default_rng(step).standard_normal(V.shape)
        parameter.gradient, tensor.grad = gradient, torch.from_numpy(gradient)
        mine.step()
        other.step()
    assert_near(parameter.value, tensor, steps**2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", [lambda p: nn.Adam(p, 0.01), lambda p: nn.SGD(p, 0.01, 0.9)])
def test_half_types_are_changed_as_single_ones_are(make, dtype):
    """Gradients of zero, and small ones whose squares float16 has not."""
    half_type = arrays.dtype_named(dtype)
    start = (2.0 ** RNG.integers(-3, 3, 64)).astype(np.float32)
    gradient = (RNG.standard_normal(64) * 2.0 ** RNG.integers(-14, 0, 64)).astype(half_type).astype(np.float32)
    gradient[::4] = 0
    parameters = [nn.Parameter(start.astype(half_type)), nn.Parameter(start.copy())]
    optimisers = [make({"v": parameter}) for parameter in parameters]
    for _ in range(5):
        for parameter, optimiser in zip(parameters, optimisers, strict=True):
            parameter.gradient = gradient.astype(parameter.value.dtype)
            optimiser.step()
            parameter.value[...] = parameter.value.astype(half_type)
    half, single = (parameter.value.astype(np.float32) for parameter in parameters)
    assert np.abs(half - single).max() <= 5 * 2 * EPSILON[dtype] * np.abs(single).max()
    assert np.array_equal(half[::4], start[::4])


def test_a_parameter_whose_first_gradient_comes_late_begins_then():
    early, late, alone = (nn.Parameter(V.copy()) for _ in range(3))
    optimiser = nn.Adam({"early": early, "late": late}, 0.01)
    early.gradient = V
    for _ in range(20):
        optimiser.step()
    late.gradient = alone.gradient = V[::-1].copy()
    early.gradient = V[:, :1]
    with pytest.raises(ValueError, match="early: gradient"):
        optimiser.step()  # refused, and so no step
    early.gradient = None
    optimiser.step()
    nn.Adam({"alone": alone}, 0.01).step()
    assert np.array_equal(late.value, alone.value)


def test_max_norm():
    parameter = nn.Parameter(V.copy())
    parameter.gradient = np.zeros_like(V)
    nn.SGD({"v": parameter}, 0.1, max_norm=1.0).step()
    norms = np.linalg.norm(V, axis=1, keepdims=True)
    assert_near(parameter.value, V / np.maximum(norms, 1), V.shape[1])


# ------------------------------------------------------------------------------------------------- kernels

CHANNELS = np.linspace(0.5, 1.5, 8)
KERNELS = {
    "affine": (X, CHANNELS, CHANNELS - 1, "relu6", 0.0, X[::-1].copy()),
    "batch_norm": (X, CHANNELS, CHANNELS - 1, 1e-5, "leaky_relu", 0.01, X[::-1].copy()),
    "batch_norm_gradient": (X, X[::-1].copy(), CHANNELS, CHANNELS, CHANNELS, CHANNELS - 1, 1e-5, "relu", 0.0, X * X),
    "bias_gradient": (X, np.tanh(X), "tanh", 0.0),
    "concatenate": ((X, X[::-1, 2:5].copy(), X[:, :1].copy()),),
    "gate": (X, X[:, :, 0, 0].copy(), "relu", X[::-1].copy()),
    "gate_gradient": (X, X[::-1].copy(), X[:, :, 0, 0].copy()),
    "prelu": (X, CHANNELS),
    "prelu_gradient": (X, X[::-1].copy(), CHANNELS),
    "add": (X, X[::-1].copy(), "relu", 0.0),
    "activate": (X, "leaky_relu", 0.1),
    "activation_gradient": (X, 1 / (1 + np.exp(-X)), "sigmoid", 0.0),
    "dropout": (X, 12345, 0.4),
    "normalise": (X, CHANNELS, CHANNELS - 1, 6, 2, 4, 1e-5),
    "normalise_gradient": (X, X[::-1].copy(), CHANNELS, np.zeros(6), np.ones(6), 2, 4),
    "softmax": (V,),
    "softmax_gradient": (V, V[::-1].copy()),
    "cross_entropy": (V, np.array([0, 3, 11, 5, 5])),
    "neighbours": (X, 5, 0.1, 0.75, 1.0),
    "neighbours_gradient": (X, X[::-1].copy(), X, X * X + 1, 4, 0.1, 0.6),
}
IN_PLACE = {
    "accumulate": (X.copy(), X[::-1].copy()),
    "sgd": (V, V[::-1].copy(), V + 1, 0.1, 0.9, True, 0.01),
    "adam": (V, V[::-1].copy(), V * 0.1, V * V, 0.1, 0.9, 0.999, 1e-8, 0.01, False, 3),
}


def arrays_of(results):
    return [a for a in (results if isinstance(results, tuple) else (results,)) if isinstance(a, np.ndarray)]


def as_type(value, dtype):
    """Return an argument with the floating-point arrays in it of another dtype."""
    if isinstance(value, tuple):
        return tuple(as_type(part, dtype) for part in value)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    return value.astype(dtype)


def called(module, name, dtype):
    """Return what a function makes of its example: the results, or for one in place the arguments."""
    given = as_type((KERNELS | IN_PLACE)[name], dtype)
    if name == "batch_norm_gradient":
        given = tuple(a.astype(np.float64) if i == 3 else a for i, a in enumerate(given))
    results = getattr(module, name)(*given)
    return arrays_of(given if name in IN_PLACE else results)


@kernel()
def _tell(start, stop, floats, doubles, integers, table, count, negative, key, yes, no, real, told):
    for unit in range(start, stop):
        row = told[unit]
        row[0], row[1], row[2], row[3] = floats[unit], doubles[unit], integers[unit], table[unit, 2]
        row[4], row[5], row[6], row[7], row[8] = count, negative, key >> np.uint64(60), 1 if yes else 0, 1 if no else 0
        row[9], row[10], row[11] = real, len(floats), table.shape[0] * 100 + table.shape[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_arguments_of_every_kind_reach_a_kernel(workers):
    units = 50
    floats, doubles, integers = (np.arange(units, dtype=dtype) + 0.5 for dtype in (np.float32, np.float64, np.float64))
    integers, table = integers.astype(np.int64), np.arange(units * 3, dtype=np.float32).reshape(units, 3)
    told = np.zeros((units, 12))
    with fc.options(threads=workers):
        run(
            _tell, units, 1 << 20, floats, doubles, integers, table,
            np.int64(7), -3, np.uint64(0xF << 60), True, np.False_, 2.25, told,
        )  # fmt: skip
        strided, other = np.zeros((12, units)).T, np.repeat(doubles, 2)[::2]
        run(
            _tell, units, 1 << 20, floats[::-1][::-1], other, integers, np.asfortranarray(table),
            np.int32(7), -3, np.uint64(0xF << 60), np.True_, False, np.float32(2.25), strided,
        )  # fmt: skip
        assert np.array_equal(strided, told)
    for unit in range(units):
        expected = [unit + 0.5, unit + 0.5, unit, unit * 3 + 2, 7, -3, 15, 1, 0, 2.25, units, units * 100 + 3]
        assert told[unit].tolist() == expected


def test_every_kernel_has_an_example():
    assert set(native.__all__) == set(KERNELS) | set(IN_PLACE)
    for name in native.__all__:
        assert inspect.signature(getattr(native, name)) == inspect.signature(getattr(plain, name))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*KERNELS, *IN_PLACE])
def test_kernels_are_the_array_expressions(name, dtype):
    for result, expected in zip(called(native, name, dtype), called(plain, name, dtype), strict=True):
        assert_near(result, expected, X.size, dtype)


@pytest.mark.parametrize("name", [*KERNELS, *IN_PLACE])
def test_bits_do_not_depend_on_threads(name, monkeypatch):
    from fastconv.nn.native import compiling, elementwise

    monkeypatch.setattr(compiling, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(compiling, "machine", lambda: type("Several", (), {"threads": staticmethod(lambda: 3)}))
    several = called(native, name, "float32")
    monkeypatch.setattr(compiling, "machine", lambda: type("One", (), {"threads": staticmethod(lambda: 1)}))
    for result, expected in zip(several, called(native, name, "float32"), strict=True):
        assert np.array_equal(result, expected)
    assert elementwise._BLOCK


def test_nan_stays_nan_and_infinity_infinity():
    x = np.full((2, 8, 3, 3), np.nan, np.float32)
    assert np.isnan(nn.ReLU()(x)).all()
    assert np.isnan(nn.Sequential(nn.BatchNorm2d(8).eval(), nn.ReLU())(x)).all()
    x[:] = -np.inf
    assert (nn.ReLU()(x) == 0).all()
    assert (nn.LeakyReLU()(x) == -np.inf).all()


@pytest.mark.parametrize("layout", ["channels last", "every other image", "reversed"])
def test_strides(layout):
    x = {
        "channels last": np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "every other image": np.repeat(X, 2, 0)[::2],
        "reversed": np.ascontiguousarray(X[::-1])[::-1],
    }[layout]
    assert np.array_equal(x, X)
    for make in (lambda: nn.BatchNorm2d(8, dtype=np.float64), lambda: nn.PReLU(8, dtype=np.float64), lambda: nn.ReLU(),
                 lambda: nn.GroupNorm(2, 8, dtype=np.float64), lambda: nn.LocalResponseNorm()):  # fmt: skip
        straight, strided = make(), make()
        assert np.array_equal(straight(X), strided(x))
        assert np.array_equal(straight.backward(X), strided.backward(x))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["conv", "batch norm", "relu", "pool", "nothing", "residual", "concat"])
def test_gradient_onto_another(name, wrapped):
    make = {
        "conv": lambda: nn.Conv2d(8, 8, 3, padding=1, **F64),
        "batch norm": lambda: nn.BatchNorm2d(8, dtype=np.float64),
        "relu": nn.ReLU,
        "pool": lambda: nn.MaxPool2d(3, 1, 1),
        "nothing": nn.Sequential,
        "residual": lambda: nn.Residual(nn.Conv2d(8, 8, 1, **F64)),
        "concat": lambda: nn.Concat(nn.Sequential(), nn.ReLU()),
    }[name]
    layer = nn.Sequential(make()) if wrapped else make()
    dy = np.random.default_rng(3).standard_normal(layer(X).shape)
    dx = layer.backward(dy)
    channels_last = np.moveaxis(np.moveaxis(X, 1, -1).copy(), -1, 1)
    for added in (np.ones_like(X), np.concatenate([X, X], 1)[:, 3:11], channels_last):
        before, given = added.copy(), dy.copy()
        layer(X)
        assert_near(layer.backward_onto(dy, added), dx + added, X.size)
        assert np.array_equal(added, before)
        assert np.array_equal(dy, given)


# --------------------------------------------------------------------------------------------------- rules


def test_backward_takes_a_forward_in_training_mode():
    layer = nn.Conv2d(8, 4, 3, **F64)
    y = layer(X)
    layer.backward(y)
    with pytest.raises(RuntimeError, match="Conv2d has kept nothing"):
        layer.backward(y)
    layer.eval()(X)
    with pytest.raises(RuntimeError, match="training mode"):
        layer.backward(y)
