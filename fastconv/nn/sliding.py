"""Fully connected layers as convolutions, so that a network slides over images larger than it was made for."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from fastconv import arguments
from fastconv.nn.activations import Activation, PReLU, Softmax
from fastconv.nn.containers import Auxiliary, Gate, Sequential
from fastconv.nn.layer import Layer, Parameter, Shape
from fastconv.nn.shapes import Dropout, Flatten
from fastconv.nn.weighted import Conv2d, Linear


def to_conv(network: Sequential, input_shape: Shape) -> Sequential:
    """Return a network in which every fully connected layer has become a convolution with the same weights.

    The first after a `Flatten` has a kernel of the map's size there, the others are 1x1. On an input of
    ``input_shape`` the outputs are the same, as maps of 1x1; on a larger one the network slides: a VGG-16 made for
    224x224 gives 6x6 maps on 384x384, at steps of 32 pixels. One that averages whole maps gives 1x1 on any.

    Parameters
    ----------
    network : Sequential
        It stays as it is. Both have the same weights: to train one changes the other.
    input_shape : tuple of int
        (channels, height, width) that the network was made for.

    Returns
    -------
    Sequential
        In evaluation mode. Its layers have the names that they had; neither a `Flatten` nor an `Auxiliary`, which does
        nothing then, is among them.

    Raises
    ------
    TypeError
        If the network is no `Sequential`.
    ValueError
        If a `Flatten` is followed by something other than fully connected layers, activations and dropout, of which
        one is fully connected, or comes inside a block; or if the network does not take such an input.
    """
    if not isinstance(network, Sequential):
        raise TypeError(f"network: expected a Sequential, got {type(network).__name__}")
    shared = {id(p): p for p in network.parameters().values()} | {id(a): a for a in network.state().values()}
    layers: dict[str, Layer] = {}
    # What was flattened: a map, until a fully connected layer has made a pixel of it.
    flat, shape = None, arguments.shape("input_shape", input_shape)
    for name, layer in _opened(network):
        after = layer.output_shape(shape)
        if isinstance(layer, Auxiliary):
            continue
        if isinstance(layer, Flatten):
            flat = flat or shape
            if len(flat) != 3:
                raise ValueError(f"network: {name} flattens {shape}, which is no map of (channels, height, width)")
        elif flat is None:
            _check_not_flat(name, layer)
            layers[name] = copy.deepcopy(layer, shared.copy())
        elif isinstance(layer, Linear):
            # What one output saw of the map before becomes the kernel; from then on a pixel has all features.
            layers[name] = _as_conv(layer, flat)
            flat = (layer.weight.value.shape[0], 1, 1)
        elif isinstance(layer, Activation | Dropout) or (isinstance(layer, PReLU | Softmax) and flat[1:] == (1, 1)):
            layers[name] = copy.deepcopy(layer, shared.copy())
        else:
            raise ValueError(f"network: {name} is a {type(layer).__name__} after a Flatten, and does not slide")
        shape = after
    if flat is not None and flat[1:] != (1, 1):
        raise ValueError("network: nothing fully connected follows its Flatten, so that nothing slides")
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


def _check_not_flat(name: str, layer: Layer) -> None:
    """Check that a layer is for maps, and so is all inside, but for the gates of squeeze and excitation."""
    if isinstance(layer, Linear):
        raise ValueError(f"network: {name} is fully connected, with no Flatten before it")
    if isinstance(layer, Flatten):
        raise ValueError(f"network: {name} is a Flatten inside a block, which does not slide")
    if not isinstance(layer, Gate):
        for inner, child in layer.children().items():
            _check_not_flat(f"{name}.{inner}", child)


def _as_conv(layer: Linear, shape: Shape) -> Conv2d:
    w = layer.weight.value
    conv = Conv2d(shape[0], len(w), (shape[1], shape[2]), bias=layer.bias is not None, initialisation=_zeros)
    conv.weight = Parameter(w.reshape(len(w), *shape), conv.weight.filters)
    conv.bias = None if layer.bias is None else Parameter(layer.bias.value)
    return conv


def _zeros(shape: Shape, *others: object) -> object:
    return np.broadcast_to(np.float32(0), shape)
