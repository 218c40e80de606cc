"""The same networks as PyTorch modules, from the same descriptions; their state has the same names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastconv import networks
from fastconv.networks import description
from fastconv.networks.description import Network, Node, Shape

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Residual(nn.Module):
    """The sum of a body and a shortcut."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        if shortcut is not None:
            self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class Concat(nn.Module):
    """The outputs of several modules along the channels."""

    def __init__(self, branches: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


class Gate(nn.Module):
    """Every channel times a number computed from the whole map."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x)[:, :, None, None]


class Auxiliary(nn.Module):
    """A second output for training, kept in ``output``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.output: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.output = self.branch(x) if self.training else None
        return x


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def build(network: str | Network, input_shape: Shape | None = None) -> nn.Module:
    """Return a network as a module, in training mode; arguments as in `fastconv.nn.build`."""
    described = networks.described(network) if isinstance(network, str) else network
    return _node(described.body, described.input_shape if input_shape is None else input_shape)[0]


def load(module: nn.Module, state: dict[str, Any]) -> None:
    """Copy the state of a network of `fastconv.nn` into its namesake."""
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    missing, unknown = module.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ValueError(f"state: missing {missing}, unknown {unknown}")


@contextmanager
def plain() -> Iterator[None]:
    """PyTorch as it is: the context under which modules run unless another is given."""
    yield


def _node(node: Node, shape: Shape) -> tuple[nn.Module, Shape]:
    if isinstance(node, description.Auxiliary):
        return Auxiliary(_node(node.node, shape)[0]), shape
    if isinstance(node, description.Leaf):
        return _leaf(node, shape), node.output_shape(shape)
    assert isinstance(node, description.Inner)
    made: dict[str, nn.Module] = {}
    shapes = []
    for i, (name, child) in enumerate(node.children):
        made[name or str(i)], result = _node(child, shape)
        shapes.append(result)
        if isinstance(node, description.Sequence):
            shape = result
    if isinstance(node, description.Sequence):
        module = nn.Sequential()
        for name, child_module in made.items():
            module.add_module(name, child_module)
        return module, shape
    assert isinstance(node, description.Branches)
    joined = node.joined(*shapes)
    assert joined is not None
    if isinstance(node, description.Concat):
        return Concat(made), joined
    first, second = made.values()
    if isinstance(node, description.Add):
        return Residual(first, None if _is_identity(second) else second), joined
    return Gate(second), joined


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and not len(module)


def _leaf(leaf: description.Leaf, shape: Shape) -> nn.Module:
    match leaf:
        case description.Conv():
            p = leaf.problem(shape, 1, "float32")
            return nn.Conv2d(p.ic, p.oc, p.kernel_size, p.stride, _before(p.padding), p.dilation, p.groups, leaf.bias)
        case description.Linear(features):
            return nn.Linear(shape[0], features)
        case description.Pool(op="max_pool2d"):
            return nn.MaxPool2d(leaf.kernel, leaf.stride, _before(leaf.padding), ceil_mode=leaf.ceil_mode)
        case description.Pool(op="avg_pool2d"):
            return nn.AvgPool2d(leaf.kernel, leaf.stride, _before(leaf.padding), leaf.ceil_mode, leaf.count_include_pad)
        case description.GlobalAvgPool():
            return nn.AdaptiveAvgPool2d(1)
        case description.BatchNorm():
            return nn.BatchNorm2d(shape[0])
        case description.LocalResponseNorm(size, alpha, beta, k):
            return nn.LocalResponseNorm(size, alpha, beta, k)
        case description.Activation(function):
            return _ACTIVATIONS[function]()
        case description.Dropout(p):
            return nn.Dropout(p)
        case description.Scale(factor):
            return Scale(factor)
        case description.Flatten():
            return nn.Flatten()
    raise TypeError(f"leaf: there is no module for {type(leaf).__name__}")


def _before(padding: Any) -> Any:
    assert all(before == after for before, after in padding)
    return tuple(before for before, _ in padding)
