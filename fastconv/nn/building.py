"""Networks from their descriptions: `fastconv.networks` says what there is, this makes layers of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import networks
from fastconv.networks import description
from fastconv.networks.description import Network, Node
from fastconv.nn.activations import LeakyReLU, ReLU, ReLU6, Sigmoid, Tanh
from fastconv.nn.containers import Auxiliary, Concat, Gate, Residual, Sequential
from fastconv.nn.initialisation import Random
from fastconv.nn.layer import Layer, Shape
from fastconv.nn.normalisation import BatchNorm2d, LocalResponseNorm
from fastconv.nn.pools import AvgPool2d, GlobalAvgPool, MaxPool2d
from fastconv.nn.shapes import Dropout, Flatten, Scale
from fastconv.nn.weighted import Conv2d, Linear

_ACTIVATIONS: dict[str, type[Layer]] = {
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "relu6": ReLU6,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
}
_SATURATING = {"sigmoid", "tanh"}


def build(
    network: str | Network,
    input_shape: Shape | None = None,
    *,
    random: Random = None,
    dtype: Any = np.float32,
) -> Sequential:
    """Return a network in layers.

    Parameters
    ----------
    network : str or Network
        A name such as ``resnet50`` (see `fastconv.networks.NETWORKS`), or a description.
    input_shape : tuple of int, optional
        (channels, height, width) of the images, by default those the network was published for. Fully connected
        layers after a `Flatten` have as many inputs as this gives.
    random : numpy.random.Generator or int, optional
        What the weights are drawn from: He's initialisation, or Xavier's for networks of sigmoid or tanh.
    dtype : dtype

    Returns
    -------
    Sequential
        In training mode. Paths are those of the description; what has no name there has its number.

    Raises
    ------
    ValueError
        If there is no such network, or its parts do not fit together at this input shape.
    """
    described = networks.described(network) if isinstance(network, str) else network
    shape = described.input_shape if input_shape is None else tuple(input_shape)
    saturating = any(
        isinstance(step.operation, description.Activation) and step.operation.function in _SATURATING
        for step in described.steps()
    ) and not any(isinstance(step.operation, description.BatchNorm) for step in described.steps())
    builder = _Builder(np.random.default_rng(random), dtype, "xavier" if saturating else "he")
    layer, _ = builder.node(described.body, shape)
    assert isinstance(layer, Sequential)
    return layer


class _Builder:
    """Makes layers of nodes, and carries the shape of an image through them."""

    def __init__(self, generator: np.random.Generator, dtype: Any, initialisation: str) -> None:
        self.drawn: dict[str, Any] = {"random": generator, "dtype": dtype, "initialisation": initialisation}
        self.generator, self.dtype = generator, dtype

    def node(self, node: Node, shape: Shape) -> tuple[Layer, Shape]:
        """Return a node's layer, and the shape of what it makes of an image of this shape."""
        match node:
            case description.Sequence():
                return self._sequence(node, shape)
            case description.Branches():
                return self._branches(node, shape)
            case description.Auxiliary(inner):
                return Auxiliary(self.node(inner, shape)[0]), shape
            case description.Leaf():
                return self._leaf(node, shape), node.output_shape(shape)
        raise TypeError(f"node: there is no layer for {type(node).__name__}")

    def _sequence(self, node: description.Sequence, shape: Shape) -> tuple[Sequential, Shape]:
        layers = {}
        for i, (name, child) in enumerate(node.children):
            layers[name or str(i)], shape = self.node(child, shape)
        return Sequential(**layers), shape

    def _branches(self, node: description.Branches, shape: Shape) -> tuple[Layer, Shape]:
        made = [(name or str(i), *self.node(child, shape)) for i, (name, child) in enumerate(node.children)]
        joined = node.joined(*(result for _, _, result in made))
        if joined is None:
            raise ValueError(f"input_shape: branches make {[result for _, _, result in made]}, which do not fit")
        layers = {name: layer for name, layer, _ in made}
        if isinstance(node, description.Concat):
            return Concat(**layers), joined
        first, second = layers.values()
        identities = [isinstance(layer, Sequential) and not len(layer) for layer in (first, second)]
        if isinstance(node, description.Add):
            return Residual(first, None if identities[1] else second), joined
        if not identities[0]:
            raise TypeError("node: there is a layer for the product with the input itself only")
        return Gate(second), joined

    def _leaf(self, leaf: description.Leaf, shape: Shape) -> Layer:
        match leaf:
            case description.Conv():
                p = leaf.problem(shape, 1, "float32")
                settings = p.stride, p.padding, p.dilation, p.groups, leaf.bias
                return Conv2d(p.ic, p.oc, p.kernel_size, *settings, **self.drawn)  # type: ignore[arg-type]
            case description.Linear(features):
                return Linear(shape[0], features, **self.drawn)
            case description.Pool(op="max_pool2d"):
                return MaxPool2d(leaf.kernel, leaf.stride, leaf.padding, ceil_mode=leaf.ceil_mode)
            case description.Pool(op="avg_pool2d"):
                return AvgPool2d(leaf.kernel, leaf.stride, leaf.padding, leaf.ceil_mode, leaf.count_include_pad)
            case description.GlobalAvgPool():
                return GlobalAvgPool()
            case description.BatchNorm():
                return BatchNorm2d(shape[0], dtype=self.dtype)
            case description.LocalResponseNorm(size, alpha, beta, k):
                return LocalResponseNorm(size, alpha, beta, k)
            case description.Activation(function):
                return _ACTIVATIONS[function]()
            case description.Dropout(p):
                return Dropout(p, random=self.generator)
            case description.Scale(factor):
                return Scale(factor)
            case description.Flatten():
                return Flatten()
        raise TypeError(f"node: there is no layer for {type(leaf).__name__}")
