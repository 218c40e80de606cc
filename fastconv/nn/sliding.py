"""Fully connected layers as convolutions, so that a network slides over images larger than it was made for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastconv.nn.activations import Activation
from fastconv.nn.containers import Sequential
from fastconv.nn.layer import Layer, Parameter, Shape
from fastconv.nn.shapes import Dropout, Flatten
from fastconv.nn.weighted import Conv2d, Linear


def to_conv(network: Sequential, input_shape: Shape) -> Sequential:
    """Return a network in which every fully connected layer has become a convolution with the same weights.

    The first after a `Flatten` has a kernel of the map's size there, the others are 1x1. On an input of
    ``input_shape`` the outputs are the same, as maps of 1x1; on a larger one the network slides: a VGG-16 made for
    224x224 gives 6x6 maps on 384x384, at steps of 32 pixels.

    Parameters
    ----------
    network : Sequential
        It keeps its weights: those of the new network are views of them, until training changes either.
    input_shape : tuple of int
        (channels, height, width) that the network was made for.

    Returns
    -------
    Sequential
        In evaluation mode. Its layers have the names that they had; there is no `Flatten` among them.

    Raises
    ------
    ValueError
        If a `Flatten` is followed by something other than fully connected layers, activations and dropout, or comes
        inside a block.
    """
    layers, flat, shape = {}, None, tuple(input_shape)
    for name, layer in _opened(network):
        if isinstance(layer, Flatten):
            flat = shape
        elif flat is None:
            _check_no_linear(name, layer)
            layers[name] = layer
        elif isinstance(layer, Linear):
            # What one output saw of the map before becomes the kernel; from then on a pixel has all features.
            layers[name] = _as_conv(layer, flat)
            flat = (layer.weight.value.shape[0], 1, 1)
        elif isinstance(layer, Activation | Dropout):
            layers[name] = layer
        else:
            raise ValueError(f"network: {name} is a {type(layer).__name__} after a Flatten, and does not slide")
        shape = layer.output_shape(shape)
    return _nested(layers).eval()


def _opened(network: Sequential, path: str = "") -> Sequence[tuple[str, Layer]]:
    """Return the layers of a sequence and of the sequences in it, by path."""
    found: list[tuple[str, Layer]] = []
    for name, layer in network.children().items():
        inner = f"{path}/{name}" if path else name
        found += _opened(layer, inner) if isinstance(layer, Sequential) else [(inner, layer)]
    return found


def _nested(layers: dict[str, Layer]) -> Sequential:
    """Return layers by path as sequences in sequences again."""
    parts: dict[str, dict[str, Layer]] = {}
    for path, layer in layers.items():
        name, _, rest = path.partition("/")
        parts.setdefault(name, {})[rest] = layer
    return Sequential(**{name: part[""] if "" in part else _nested(part) for name, part in parts.items()})


def _check_no_linear(name: str, layer: Layer) -> None:
    """Check that no block hides a flattening; the gates of squeeze and excitation are no part of the road."""
    if isinstance(layer, Linear):
        raise ValueError(f"network: {name} is fully connected, with no Flatten before it")


def _as_conv(layer: Linear, shape: Shape) -> Conv2d:
    w = layer.weight.value
    conv = Conv2d(shape[0], len(w), (shape[1], shape[2]), bias=layer.bias is not None, initialisation=_zeros)
    conv.weight = Parameter(w.reshape(len(w), *shape))
    conv.bias = None if layer.bias is None else Parameter(layer.bias.value)
    return conv


def _zeros(shape: Shape, *others: object) -> object:
    return np.broadcast_to(np.float32(0), shape)
