"""`fastconv.torch.compile_model`: what a trace alone would lose: hooks, what is made anew, what is overwritten."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from test_torch_compiled import Block, Branching, X, check, packed, settled
from torch import nn
from torch.nn import functional as F

import fastconv.torch as ft


def doubled(module, args, output):
    return output * 2


def test_hooks_of_what_is_traced_run():
    model = settled(Block())
    model.register_forward_hook(doubled)
    check(model)
    layer = settled(nn.Conv2d(4, 4, 3))
    layer.register_forward_hook(doubled)
    assert not packed(check(layer))
    branching = settled(Branching())
    branching.inner.register_forward_hook(doubled)
    check(branching)
    branching.inner[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    check(branching)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weights_that_a_hook_makes_are_made():
    """By hooks, `weight_norm` makes the weight in every call: after loading it is still the old one."""
    model, other = (settled(Branching()) for _ in range(2))
    for each in (model, other):
        nn.utils.weight_norm(each.inner[0])
    with torch.no_grad():
        other.inner[0].weight_v.normal_()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(ft.compile_model(model)(X), other(X))


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_functions_of_a_modules_own_are_called(name):
    """Tiling patterns and offloading are often made so."""
    model = settled(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    original = getattr(model[0], name)
    setattr(model[0], name, lambda *args: original(*args) + 1)
    assert not packed(check(model))
    branching = settled(Branching())
    inner = branching.inner.forward
    branching.inner.forward = lambda x: inner(x) - 1
    check(branching)


@pytest.mark.parametrize("make", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_modules_are_left_alone(make):
    layer = settled(make(nn.Conv2d(4, 4, 3)))
    assert ft.compile_model(layer) is layer
    branching = settled(Branching())
    make(branching.inner[0])
    check(branching.eval())


def test_hooks_of_blocks_run_in_every_call():
    model, seen = settled(Nested()), []
    model.block.register_forward_hook(lambda module, args, output: seen.append(output))
    compiled = ft.compile_model(model)
    assert not seen
    for _ in range(2):
        torch.testing.assert_close(compiled(X), model(X))
    assert len(seen) == 4 and all(type(y) is torch.Tensor for y in seen)
    assert len(packed(compiled)) == 2  # within the block, too


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = Remembering(), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.block(x))


class Remembering(Block):
    """Sets an attribute and registers a buffer when it is called."""

    def forward(self, x):
        self.seen = x
        self.register_buffer("also", x.detach(), persistent=False)
        return super().forward(x)


def test_what_is_set_while_tracing_is_set_no_longer():
    model = settled(Nested())
    before = copy.deepcopy(model.state_dict()), {name: set(vars(m)) for name, m in model.named_modules()}
    ft.compile_model(model)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before[1]
    assert not hasattr(model.block, "seen") and not hasattr(model.block, "also")
    assert model.state_dict().keys() == before[0].keys()


class Making(nn.Module):
    """Begins a sum with something new."""

    def __init__(self, change) -> None:
        super().__init__()
        self.conv, self.change = nn.Conv2d(4, 4, 3), change

    def forward(self, x):
        return self.change(torch.zeros(2, 4, 7, 7), self.conv(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda new, y: new.add_(y),
        lambda new, y: operator.iadd(new, y),
        lambda new, y: operator.iadd(new[:, :2], y[:, :2]),
        lambda new, y: torch.add(new, y.detach(), out=new),
        lambda new, y: new.type_as(y).ravel().view_as(y).add_(y),
        lambda new, y: nn.Identity()(new.cpu()).add_(y),
        lambda new, y: new + y,
    ],
)
def test_what_a_call_begins_with_is_made_in_every_call(change):
    model = settled(Making(change))
    before = set(vars(model))
    compiled = check(model)
    assert set(vars(model)) == before
    for _ in range(2):
        torch.testing.assert_close(compiled(X), model(X))


class Late(nn.Module):
    """What the convolution reads is overwritten before its result is used."""

    def __init__(self, activation) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(4, 4, 3, padding=1), activation

    def forward(self, x):
        y = self.conv(x)
        s = self.activation(x)
        return F.relu(y + s)


def overwriting(x):
    return x.mul_(2)


torch.fx.wrap("overwriting")


@pytest.mark.parametrize(
    "activation",
    [lambda x: F.relu(x, True), lambda x: F.leaky_relu(x, 0.2, True), lambda x: F.relu(x, inplace=True), overwriting],
)
def test_convolutions_are_not_moved_behind_what_overwrites_their_input(activation):
    check(settled(Late(activation)))
