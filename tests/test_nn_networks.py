"""Every network: parameters as published; outputs and every gradient as PyTorch's, by fastconv.nn and within `use`."""

from __future__ import annotations

import ctypes
import gc
from typing import NamedTuple

import numpy as np
import pytest
from test_networks import PARAMETERS

import fastconv as fc
from fastconv import networks, nn
from fastconv.algorithm import EPSILON, ERROR_CONSTANT
from fastconv.networks import NETWORKS
from fastconv.problem import ConvProblem

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

ft = pytest.importorskip("fastconv.torch")

# The smallest maps that leave batch normalisation several values to average, and pools that do not fit none.
SIZES = {"lenet5": (1, 32, 32), "inception_resnet_v2": (3, 139, 139), "alexnet": (3, 63, 63)}
SIZES |= dict.fromkeys(["vgg16", "vgg19"], (3, 32, 32))
SIZES |= dict.fromkeys(["googlenet", "googlenet_bn"], (3, 160, 160))
SLOW = {"alexnet", "vgg16", "vgg19", "resnet152", "inception_resnet_v2", "xception", "googlenet", "resnext50"}

every_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NETWORKS]
)


every_of_all = pytest.mark.parametrize("name", NETWORKS)


def shape_of(name):
    return SIZES.get(name, (3, 64, 64))


@pytest.fixture(scope="module")
def modules():
    """Return the networks as PyTorch modules."""
    from benchmarks.networks import torch_modules

    return torch_modules


@pytest.fixture(autouse=True)
def _memory_is_given_back():
    """Allocators keep what is free, and the passes of a large network leave gigabytes: two processes test at a time."""
    yield
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


@pytest.fixture
def built(modules):
    """Return a function that builds a network in float64, without dropout, and its PyTorch namesake."""

    def build(name):
        network = nn.build(name, shape_of(name), random=0, dtype=np.float64)
        for _, layer in network.named_layers():
            if isinstance(layer, nn.Dropout):
                layer.share = 0.0
            if isinstance(layer, nn.BatchNorm2d):  # so that one pass makes the running statistics the batch's
                layer.momentum = 1.0
        module = modules.build(name, shape_of(name)).double()
        for part in module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        modules.load(module, network.state())
        return network, module

    return build


class Passed(NamedTuple):
    """What a pass forward and backward makes: outputs, then gradients by name."""

    outputs: list
    gradients: dict


def images(name):
    return np.random.default_rng(1).standard_normal((2, *shape_of(name)))


def directions(outputs):
    """Return a gradient for each output."""
    return [np.random.default_rng(2 + i).standard_normal(output.shape) for i, output in enumerate(outputs)]


def ours(network, x):
    """Run fastconv.nn forward and backward."""
    y = network.train().forward(x)
    auxiliaries = [layer for _, layer in network.named_layers() if isinstance(layer, nn.Auxiliary)]
    outputs = [y, *(layer.output for layer in auxiliaries)]
    dy, *others = (d.astype(x.dtype) for d in directions(outputs))
    for layer, gradient in zip(auxiliaries, others, strict=True):
        layer.gradient = gradient
    dx = network.backward(dy)
    return Passed(outputs, {"input": dx, **{k: p.gradient for k, p in network.parameters().items()}})


def theirs(module, x):
    """Run PyTorch forward and backward."""
    x = torch.tensor(x, requires_grad=True)
    module.zero_grad()
    y = module.train()(x)
    auxiliaries = [part.output for part in module.modules() if hasattr(part, "branch")]
    outputs = [y, *auxiliaries]
    torch.autograd.backward(outputs, [torch.from_numpy(d).to(x.dtype) for d in directions(outputs)])
    gradients = {"input": x.grad, **{name: p.grad for name, p in module.named_parameters()}}
    return Passed([o.detach().numpy() for o in outputs], {k: g.numpy().copy() for k, g in gradients.items()})


class Seen(TorchDispatchMode):
    """Writes down PyTorch's own operators, forward and backward."""

    def __init__(self):
        super().__init__()
        self.operators = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators.add(function.name())
        return function(*args, **(kwargs or {}))


def within_use(module, x):
    """Run PyTorch forward and backward with every convolution and pool sent to fastconv."""
    ft.stats(reset=True)
    with ft.use(), Seen() as seen:
        passed = theirs(module, x)
    assert not {name for name in seen.operators if "aten::convolution" in name or "aten::mkldnn" in name}
    counted = ft.stats(reset=True)
    layers = [part for part in module.modules() if isinstance(part, torch.nn.Conv2d)]
    assert counted.computed["conv2d"] == len(layers)
    assert not counted.left
    return passed


def unsettled(module, x, epsilon):
    """Return what PyTorch makes in float64 of inputs and parameters that are off by a relative error each.

    How far that is from the exact result is what the network makes of errors: its condition, with the rectifiers and
    maxima that such errors tip over.
    """
    generator = np.random.default_rng(3)

    def off(array):
        return array * (1 + epsilon * generator.choice([-1.0, 1.0], array.shape))

    state = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(off(parameter.numpy())))
    result = theirs(module, off(x))
    module.load_state_dict(state)
    return result


def largest_bound(name, dtype):
    """Return the largest error bound that an algorithm chosen for one of a network's convolutions states."""
    worst = 0.0
    for layer in networks.layers(name, dtype=dtype):
        if isinstance(layer.problem, ConvProblem):
            choice = fc.explain(layer.problem)
            bound = next(c.error_bound for c in choice.candidates if c.algorithm == choice.winner)
            worst = max(worst, bound)
    return worst


def assert_like(result, exact, shaken, error):
    """Every output and gradient is as near to the exact one as with an error of each input and parameter."""
    results, wants, moves = ({**dict(enumerate(p.outputs)), **p.gradients} for p in (result, exact, shaken))
    assert results.keys() == wants.keys() == moves.keys()
    for name, wanted in wants.items():
        got, size = results[name], np.linalg.norm(wanted)
        assert got.shape == wanted.shape
        assert np.isfinite(wanted).all()
        # The gradient of a bias that a normalisation cancels is zero but for rounding: its weight's tells the size.
        size = max(size, np.linalg.norm(wants.get(str(name).replace(".bias", ".weight"), 0)))
        allowed = ERROR_CONSTANT * (np.linalg.norm(moves[name] - wanted) + error * size)
        assert np.linalg.norm(got - wanted) <= allowed


@every_of_all
def test_published_parameter_counts(name, modules):
    with torch.device("meta"):  # no memory, no numbers
        module = modules.build(name)
    sizes = {path: parameter.numel() for path, parameter in module.named_parameters()}
    assert sum(size for path, size in sizes.items() if not path.startswith("aux")) == PARAMETERS[name]
    assert sum(sizes.values()) == networks.parameters(name, auxiliary=True)
    own = nn.build(name, random=0).parameters()
    assert {path: parameter.value.size for path, parameter in own.items()} == sizes


@every_network
def test_outputs_and_gradients_are_pytorchs(name, built):
    network, module = built(name)
    assert {k: p.value.shape for k, p in network.parameters().items()} == {
        k: tuple(p.shape) for k, p in module.named_parameters()
    }
    x = images(name)
    exact = theirs(module, x)
    assert all(output.any() for output in exact.outputs)
    error = EPSILON["float64"]
    shaken = unsettled(module, x, error)
    for passed in (ours(network, x), within_use(module, x)):
        assert_like(passed, exact, shaken, error)
    # The running statistics are the batch's by now; evaluation folds them into the weights.
    state = {k: torch.from_numpy(v.copy()) for k, v in network.state().items()}
    module.load_state_dict(state, strict=False)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    assert expected.any()
    scale = largest_bound(name, "float64") * len(state) * np.linalg.norm(expected)
    predict = nn.Inference(network, x)
    with torch.no_grad():
        compiled = ft.compile_model(module)(torch.from_numpy(x)).numpy()
    for y in (network.eval()(x), predict(x), predict(x), compiled):
        assert np.linalg.norm(y - expected) <= scale
    network.astype(np.float32)
    error = largest_bound(name, "float32")
    shaken, x = unsettled(module, x, error), x.astype(np.float32)
    for passed in (ours(network, x), within_use(module.float(), x)):
        assert_like(passed, exact, shaken, error)
