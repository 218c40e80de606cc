"""`fastconv.torch.compile_model`: what is fused, what is left alone, and that the result stays the same."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastconv as fc
import fastconv.torch as ft
from benchmarks import torch_models
from fastconv.torch.packed import PackedConv
from fastconv.torch.stretch import Stretch

X = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def settled(model: nn.Module) -> nn.Module:
    """Return a model whose batch norms do something."""
    torch.manual_seed(0)
    for module in model.modules():
        for values in (getattr(module, name, None) for name in ("running_mean", "running_var", "weight", "bias")):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and values is not None:
                nn.init.uniform_(values, 0.5, 1.5)
    return model.eval()


def packed(model: nn.Module) -> list[PackedConv]:
    return [module for module in model.modules() if isinstance(module, PackedConv)]


def calls(model: nn.Module) -> list[torch.fx.Node]:
    """Return what a compiled model does, with the layers that were joined one by one."""
    found = []
    for node in model.graph.nodes:
        joined = node.op == "call_module" and isinstance(model.get_submodule(node.target), Stretch)
        found += calls(model.get_submodule(node.target).inside) if joined else [node]
    return [node for node in found if node.op not in ("placeholder", "output")]


def check(model: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Compare with and without gradients; return the compiled model."""
    compiled = ft.compile_model(model)
    inputs = inputs or (X,)
    expected = model(*[i.clone() for i in inputs])
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(compiled(*[i.clone() for i in inputs]), expected)
    return compiled


class Block(nn.Module):
    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, stride, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(4, 8, 1, stride, bias=False), nn.BatchNorm2d(8))
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.dropout(self.bn2(self.conv2(out)))
        out += self.down(x)
        return self.relu(out)


def test_a_residual_block_becomes_three_convolutions():
    compiled = check(settled(Block(2)))
    convs = packed(compiled)
    assert sorted(str(c.activation) for c in convs) == ["None", "relu", "relu"]
    assert len(calls(compiled)) == 3 and sum(len(node.args) == 2 for node in calls(compiled)) == 1


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norms_fold_into_every_convolution(ndim, groups):
    conv, transposed, norm = (getattr(nn, f"{name}{ndim}d") for name in ("Conv", "ConvTranspose", "BatchNorm"))
    model = nn.Sequential(
        conv(4, 6, 3, 2, 1, groups=groups), norm(6), nn.ReLU6(),
        transposed(6, 4, 2, 2, groups=groups, bias=False), norm(4, affine=False), nn.Sigmoid(),
    )  # fmt: skip
    compiled = check(settled(model), torch.randn(2, 4, *(5,) * ndim))
    assert sorted(c.activation for c in packed(compiled)) == ["relu6", "sigmoid"]
    assert len(calls(compiled)) == 2


class Perceptron(nn.Module):
    """Linear layers: the batch norm is one of the second axis, which the layer before it does not compute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.second, self.third = nn.Linear(6, 9), nn.Linear(9, 9, bias=False)

    def forward(self, x):
        x = F.relu(self.second(self.norm(self.first(x))))
        return torch.tanh(x + self.third(x))


def test_linear_layers_take_what_follows_them():
    compiled = check(settled(Perceptron()), torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert sorted(str(layer.activation) for layer in packed(compiled)) == ["None", "relu", "tanh"]
    assert any(isinstance(module, nn.BatchNorm1d) for module in compiled.modules())
    ft.stats(reset=True)
    x = torch.randn(3, 6)
    with torch.no_grad():
        for shape in ((3, 6), (0, 6), (3, 6, 6)):
            assert compiled(torch.ones(shape)).shape == (*shape[:-1], 9)
    assert ft.stats().computed["linear"] == 9 and not ft.stats().left
    copied = copy.deepcopy(compiled).double()
    torch.testing.assert_close(copied(x.double()).float(), compiled(x))


class Tangled(nn.Module):
    """Nothing here may be fused but the first convolution alone and the last with its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        y = self.a(x)
        z = F.relu(y) + y  # y is used twice
        w = self.b(z)
        z.mul_(2)  # changes what b reads, before the sum that b could wait for
        w = w + z
        return torch.tanh(self.c(w))


def test_what_may_not_be_fused_is_not():
    compiled = check(settled(Tangled()))
    assert {c.activation for c in packed(compiled)} == {None, "tanh"} and len(packed(compiled)) == 3
    assert any(node.target == "mul_" for node in compiled.graph.nodes)


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.hooked = nn.Conv2d(4, 4, 3)
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.circular(self.hooked(self.normed(x))))


def test_modules_that_do_more_are_left_alone():
    assert not packed(check(settled(Hooked())))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x, scale=None):
        if x.sum() > 0:  # cannot be traced
            x = -x
        return self.inner(x) if scale is None else self.inner(x) * scale


def test_what_cannot_be_traced_is_compiled_by_its_parts():
    compiled = check(settled(Branching()))
    assert len(packed(compiled)) == 1
    torch.testing.assert_close(compiled(X, 2.0), 2 * compiled(X))


class Asking(nn.Module):
    """Cannot be traced, and wants more of its parts than to be called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
        self.norm, self.encoder = nn.GroupNorm(2, 4), Encoder()

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        assert len(self.layers) == 3 and self.layers[0].out_channels == 6
        for layer in self.layers:
            x = layer(x)
        return self.encoder.encode(x) * self.norm.eps + self.norm(x) + self.encoder(x) * self.encoder.conv.out_channels


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def encode(self, x):
        return self.conv(x) + 1

    def forward(self, x):
        return F.relu(self.conv(x))


def test_parts_can_still_be_asked_for_what_they_are():
    model = settled(Asking())
    compiled = check(model)
    assert len(packed(compiled)) == 3
    assert type(compiled.norm) is nn.GroupNorm  # nothing in it is fastconv's
    for again in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        torch.testing.assert_close(again(X), model(X))
    torch.testing.assert_close(copy.deepcopy(compiled).double()(X.double()).float(), model(X))
    torch.testing.assert_close(compiled(X), model(X))
    with pytest.raises(AttributeError, match="colour"):
        compiled.encoder.colour  # noqa: B018
    with pytest.raises(TypeError, match="no parts"):
        len(ft.compile_model(settled(Block())))


def test_a_transformer_runs():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    check(nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 5, 16))


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x, shift=0.5):
        return torch.relu(self.conv(x) + shift) + x.shape[0]


def test_numbers_are_added():
    model = settled(Shifted())
    compiled = check(model)
    torch.testing.assert_close(compiled(X, 1.5), model(X, 1.5))
    torch.testing.assert_close(compiled(X.clone().requires_grad_(), 1.5), model(X, 1.5))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x, mask=None):
        return self.conv(x if mask is None else x * mask)


def test_arguments_left_out_are_not_traced_as_given():
    compiled = check(settled(Optional()))
    with pytest.raises(Exception, match="mask"):
        compiled(X, X)


def test_residuals_that_are_broadcast():
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return torch.relu(self.conv(x) + x.mean((2, 3), keepdim=True))

    check(settled(Broadcast()))
    assert "residual" in str(ft.stats(reset=True))  # PyTorch adds it, and that is counted


@pytest.mark.parametrize(("make", "convolutions", "sums"), [("resnet50", 53, 16), ("mobilenet_v2", 52, 10)])
def test_whole_networks_are_fused(make, convolutions, sums):
    """Every batch norm, activation and sum of the networks that benchmarks measure goes into a convolution."""
    compiled = ft.compile_model(getattr(torch_models, make)())
    names = sorted(layer.geometry.name for layer in packed(compiled))
    assert names == ["conv2d"] * convolutions + ["linear"]
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ReLU | nn.Linear) for m in compiled.modules())
    modules = [node for node in calls(compiled) if node.op == "call_module"]
    assert sum(len(node.args) == 2 for node in modules) == sums
    assert compiled(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_gradients_of_inputs():
    model = settled(Block())
    compiled = ft.compile_model(model)
    gradients = []
    for m in (model, compiled):
        x = X.clone().requires_grad_()
        m(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_the_model_stays_as_it_was():
    model = settled(Block())
    before = copy.deepcopy(model.state_dict())
    compiled = ft.compile_model(model)
    compiled(X)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert type(model.conv1) is nn.Conv2d and not packed(model)


def test_copies_dtypes_and_other_programs():
    compiled = ft.compile_model(settled(Block()))
    y = compiled(X)
    torch.testing.assert_close(copy.deepcopy(compiled)(X), y)
    torch.testing.assert_close(pickle.loads(pickle.dumps(compiled))(X), y)
    model = settled(Fork())
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(ft.compile_model(model)))))
    ft.stats(reset=True)
    torch.testing.assert_close(run_all(again, X), run_all(model, X))
    assert {"max_pool2d", "adaptive_avg_pool2d"} <= ft.stats().computed.keys()
    torch.testing.assert_close(copy.deepcopy(compiled).double()(X.double()).float(), y)
    torch.testing.assert_close(torch.func.vmap(compiled)(X[None])[0], y)
    torch.testing.assert_close(torch.compile(compiled, fullgraph=True, backend="aot_eager")(X), y)
    last = X.contiguous(memory_format=torch.channels_last)
    assert compiled(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled(last), y)
    torch.testing.assert_close(compiled(X[:1]), y[:1])


class Fork(nn.Module):
    """Several results leave a stretch, and one is read within it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x):
        first = F.relu(self.a(x))
        second = self.b(self.pool(first))
        third = F.adaptive_avg_pool2d(self.c(second) + first, 2)
        return first.flip(0), second * 2, third


def stretches(model: nn.Module) -> list[Stretch]:
    return [module for module in model.modules() if isinstance(module, Stretch)]


def run_all(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([y.flatten() for y in model(x)])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layers_that_follow_one_another_are_joined(memory_format):
    x, model = X.contiguous(memory_format=memory_format), settled(Fork())
    compiled = ft.compile_model(model)
    (stretch,) = stretches(compiled)
    assert len(calls(stretch.inside)) == 5  # three convolutions, one with the sum, and two pools
    ft.stats(reset=True)
    for _ in range(3):
        for y, expected in zip(compiled(x), model(x), strict=True):
            torch.testing.assert_close(y, expected)
            assert y.is_contiguous(memory_format=memory_format)
    assert not ft.stats().left and ft.stats().computed["conv2d"] >= 9
    kept = compiled(x)
    before = [y.clone() for y in kept]
    compiled(x + 1)
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))  # a result is the caller's own


def test_a_joined_model_serves_several_threads_at_once():
    compiled = ft.compile_model(settled(Fork()))
    inputs = [X + i for i in range(40)]
    expected = [run_all(compiled, x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = pool.map(lambda x: run_all(compiled, x), inputs)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_a_joined_model_sees_weights_that_were_replaced():
    model, other = settled(Fork()), settled(Fork())
    for layer in (other.a, other.b, other.c):
        nn.init.kaiming_uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    compiled = ft.compile_model(model)
    assert not torch.allclose(run_all(compiled, X), run_all(other, X))
    compiled.load_state_dict(ft.compile_model(other).state_dict())
    torch.testing.assert_close(run_all(compiled, X), run_all(other, X))
    (whole,) = stretches(compiled)
    (same,) = stretches(ft.compile_model(model))
    whole.inside.a_fastconv.load_state_dict(same.inside.a_fastconv.state_dict())
    other.a.load_state_dict(model.a.state_dict())
    torch.testing.assert_close(run_all(compiled, X), run_all(other, X))


def test_a_joined_model_leaves_pytorch_what_fastconv_does_not_compute():
    compiled = ft.compile_model(settled(Fork()))
    for y, empty in zip(compiled(X), compiled(X[:0]), strict=True):
        assert empty.shape == (0, *y.shape[1:])
    (stretch,) = stretches(compiled)
    assert [len(free) for free in stretch._free.values()] == [1, 0]
    with pytest.raises(RuntimeError):  # PyTorch's own: the weights are of another dtype
        compiled(X.double())


def test_forms_of_input_that_a_joined_model_remembers_are_few():
    compiled = ft.compile_model(settled(Fork()))
    (stretch,) = stretches(compiled)
    for size in range(9, 30):
        compiled(torch.zeros(1, 4, size, size))
    assert 1 < len(stretch._free) <= 8


def test_bad_models():
    with pytest.raises(ValueError, match=r"model: is in training mode"):
        ft.compile_model(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="model: expected"):
        ft.compile_model(print)


def test_weights_of_a_compiled_model_may_move():
    """A plan may read a weight where it is, which is somewhere else then."""
    net, x = ft.compile_model(nn.Sequential(nn.Conv2d(1024, 2048, 1)).eval()), torch.randn(1, 1024, 7, 7)
    with torch.no_grad(), fc.options(algorithm="pointwise_in_place", backend="numba"):
        y = net(x)
        for buffer in (*net.parameters(), *net.buffers()):
            buffer.share_memory_()
        assert torch.equal(net(x), y)


class Flat(nn.Module):
    """A classifier on a map, flattened in one of the ways that there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(4, 6, 3), nn.MaxPool2d(2)
        self.flatten, self.linear, self.how = nn.Flatten(), nn.Linear(6 * 9, 5), how

    def forward(self, x):
        y = self.pool(F.relu(self.conv(x)))
        ways = {
            "module": lambda: self.flatten(y),
            "function": lambda: torch.flatten(y, 1),
            "method": lambda: y.flatten(1),
            "other axes": lambda: y.flatten(1, 2).flatten(1),
        }
        return self.linear(ways[self.how]())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("how", "parts"), [("module", 1), ("function", 1), ("method", 1), ("other axes", 3)])
def test_a_map_is_flattened_within_a_stretch(how, parts, memory_format):
    x = torch.rand(2, 4, 8, 8).contiguous(memory_format=memory_format)
    compiled = check(settled(Flat(how)), x)
    assert len([node for node in compiled.graph.nodes if node.op not in ("placeholder", "output")]) == parts


def test_what_else_reads_a_flattened_map_gets_it_from_pytorch():
    class Twice(Flat):
        def forward(self, x):
            flat = self.flatten(self.pool(self.conv(x)))
            return self.linear(flat) + flat.sum()

    compiled = check(settled(Twice("module")), torch.rand(2, 4, 8, 8))
    assert any(node.target == "flatten" for node in compiled.graph.nodes)


def test_a_flattening_that_does_more_is_called():
    model, seen = settled(Flat("module")), []
    model.flatten.register_forward_hook(lambda *_: seen.append(1))
    compiled = ft.compile_model(model)
    compiled(torch.rand(2, 4, 8, 8))
    assert seen
