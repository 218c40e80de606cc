"""Layers made of layers: one after the other, side by side, around a shortcut, and as a factor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv import arguments
from fastconv.arrays import Array
from fastconv.nn import checks
from fastconv.nn.activations import OP_SLOPE, SIMPLE, Activation, ReLU, Sigmoid
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Value
from fastconv.nn.initialisation import Random
from fastconv.nn.layer import Ending, Layer, Shape
from fastconv.nn.pools import GlobalAvgPool
from fastconv.nn.shapes import Flatten
from fastconv.nn.weighted import Linear


def _named(unnamed: tuple[Layer, ...], named: dict[str, Layer]) -> dict[str, Layer]:
    """Return layers by name: those without one get their number."""
    for name, layer in (*enumerate(unnamed), *named.items()):
        if not isinstance(layer, Layer):
            raise TypeError(f"{name}: expected a layer, got {layer!r}")
    for name in named:
        if not name or "." in name or "/" in name:
            raise ValueError(f"named: {name!r} is part of paths, and must be no empty word and have no '.' and no '/'")
    found = {str(i): layer for i, layer in enumerate(unnamed)}
    taken = sorted(found.keys() & named.keys())
    if taken:
        raise ValueError(f"named: {taken} are the numbers of layers without names")
    return {**found, **named}


def _beside(shape: Shape) -> Shape:
    """Return the sizes in which arrays agree that stand side by side along the channels."""
    return (*shape[:1], *shape[2:])


class Sequential(Ending):
    """One layer after the other; without layers, the identity.

    An activation that follows a layer able to apply it (a convolution, a normalisation, a sum) is done by that one.

    Parameters
    ----------
    *unnamed, **named : Layer
        In this order. A layer's name is part of the paths of its parameters; one without has its number.
    """

    def __init__(self, *unnamed: Layer, **named: Layer) -> None:
        self._layers = _named(unnamed, named)
        # Which activation each layer does for the one after it, in the last forward pass.
        self._skipped: set[int] = set()

    def children(self) -> dict[str, Layer]:
        return self._layers

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int | str) -> Layer:
        return self._layers[index] if isinstance(index, str) else list(self)[index]

    def _last(self) -> Layer | None:
        return list(self)[-1] if self._layers else None

    @property
    def fuses(self) -> frozenset[str]:
        last = self._last()
        return last.fuses if isinstance(last, Ending) else frozenset()

    @property
    def adds(self) -> bool:
        last = self._last()
        return isinstance(last, Ending) and last.adds

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        layers, at = list(self), 0
        self._skipped = set()
        while at < len(layers):
            layer, following = layers[at], layers[at + 1] if at + 1 < len(layers) else None
            if isinstance(layer, Ending):
                fused = following.fused if isinstance(following, Activation) else None
                if fused is not None and fused in layer.fuses:
                    x = layer.forward(x, fused)
                    at += 1
                    self._skipped.add(at)
                elif following is None:
                    x = layer.forward(x, activation, residual)
                else:
                    x = layer.forward(x)
            else:
                x = layer.forward(x)
            at += 1
        return x

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        layers = list(self)
        gradient = self._back_to_first(layers, dy)
        return layers[0].backward(gradient, wanted) if layers else gradient

    def backward_onto(self, dy: Array, added: Array) -> Array:
        layers = list(self)
        gradient = self._back_to_first(layers, dy)
        return layers[0].backward_onto(gradient, added) if layers else for_array(dy).add(gradient, added)

    def _back_to_first(self, layers: list[Layer], gradient: Any) -> Any:
        """Return the gradient of what the first layer made."""
        for at in range(len(layers) - 1, 0, -1):
            if at not in self._skipped:
                gradient = layers[at].backward(gradient)
        return gradient

    def output_shape(self, shape: Shape) -> Shape:
        for layer in self:
            shape = layer.output_shape(shape)
        return shape

    def trace(self, graph: Graph, value: Value) -> Value:
        for name, layer in self._layers.items():
            with graph.within(name):
                value = layer.trace(graph, value)
        return value


class Residual(Ending):
    """The sum of a body's output and of a shortcut's, or of the input itself (He et al., 2015).

    Parameters
    ----------
    body : Layer
    shortcut : Layer, optional
        By default the identity.
    """

    def __init__(self, body: Layer, shortcut: Layer | None = None) -> None:
        self.body, self.shortcut = body, shortcut

    def children(self) -> dict[str, Layer]:
        return {"body": self.body} | ({"shortcut": self.shortcut} if self.shortcut is not None else {})

    @property
    def fuses(self) -> frozenset[str]:
        body = self.body
        return (SIMPLE & body.fuses) if isinstance(body, Ending) and body.adds else SIMPLE

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        # The shortcut last: its output is read while it is in the caches.
        body = self.body
        skip = x if self.shortcut is None else self.shortcut.forward(x)
        if isinstance(body, Ending) and body.adds:
            y = body.forward(x, activation, skip)
        else:
            along = body.forward(x)
            checks.alike("residual", skip, along.shape, along.dtype)
            y = for_array(along).add(along, skip, activation, OP_SLOPE)
        self._keep(y, y if activation else None, activation)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        y, activation = self._take(dy)
        dz = dy if activation is None else for_array(dy).activation_gradient(dy, y, activation, OP_SLOPE)
        across = dz if self.shortcut is None else self.shortcut.backward(dz, wanted)
        return self.body.backward_onto(dz, across) if wanted else self.body.backward(dz, wanted)

    def output_shape(self, shape: Shape) -> Shape:
        result = self.body.output_shape(shape)
        across = shape if self.shortcut is None else self.shortcut.output_shape(shape)
        if result != across:
            raise ValueError(f"shape: the body makes {result} of {shape}, the shortcut {across}")
        return result

    def trace(self, graph: Graph, value: Value) -> Value:
        self.output_shape(value.shape[1:])
        value.shared = True
        with graph.within("body"):
            along = self.body.trace(graph, value)
        across = value
        if self.shortcut is not None:
            with graph.within("shortcut"):
                across = self.shortcut.trace(graph, value)
        return graph.add(along, across, SIMPLE)


class Concat(Layer):
    """The outputs of several layers, side by side along the channels (Inception, DenseNet).

    Parameters
    ----------
    *unnamed, **named : Layer
        One or more. An empty `Sequential` passes the input on.

    Raises
    ------
    ValueError
        If there is none.
    """

    def __init__(self, *unnamed: Layer, **named: Layer) -> None:
        self._branches = _named(unnamed, named)
        if not self._branches:
            raise ValueError("unnamed: Concat takes one layer or more")

    def children(self) -> dict[str, Layer]:
        return self._branches

    def forward(self, x: Array) -> Array:
        outputs = [branch.forward(x) for branch in self._branches.values()]
        first = outputs[0]
        for name, output in zip(self._branches, outputs, strict=True):
            if output.ndim < 2 or output.dtype != first.dtype or _beside(output.shape) != _beside(first.shape):
                raise ValueError(
                    f"x: branch {name} makes {output.dtype} of shape {output.shape}, which cannot stand beside "
                    f"{first.dtype} of shape {first.shape}"
                )
        y: Array = for_array(first).concatenate(outputs)
        self._keep(y, [output.shape[1] for output in outputs])
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        return self._back(dy, None, wanted)

    def backward_onto(self, dy: Array, added: Array) -> Array:
        return self._back(dy, added, True)

    def _back(self, dy: Array, total: Array | None, wanted: bool) -> Any:
        """Return the gradient of the input, with another if there is one."""
        (channels,) = self._take(dy)
        stop = 0
        for branch, width in zip(self._branches.values(), channels, strict=True):
            start, stop = stop, stop + width
            part = dy[:, start:stop]
            total = branch.backward_onto(part, total) if total is not None else branch.backward(part, wanted)
        return total

    def output_shape(self, shape: Shape) -> Shape:
        first, *others = [branch.output_shape(shape) for branch in self._branches.values()]
        if any(other[1:] != first[1:] for other in others):
            raise ValueError(f"shape: outputs of {[first, *others]} cannot stand side by side")
        return first[0] + sum(other[0] for other in others), *first[1:]

    def trace(self, graph: Graph, value: Value) -> Value:
        shape = self.output_shape(value.shape[1:])
        value.shared = True
        outputs = []
        for name, branch in self._branches.items():
            with graph.within(name):
                outputs.append(branch.trace(graph, value))
        return graph.write("concat", outputs, shape)


class Gate(Ending):
    """Every channel times a number that a layer computes from the whole map.

    Parameters
    ----------
    gate : Layer
        From maps (N, C, H, W) to factors (N, C).
    """

    def __init__(self, gate: Layer) -> None:
        self.gate = gate

    def children(self) -> dict[str, Layer]:
        return {"gate": self.gate}

    @property
    def fuses(self) -> frozenset[str]:
        return frozenset({"relu", "relu6"})

    @property
    def adds(self) -> bool:
        return True

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        checks.batch(self, x)
        factors = self.gate.forward(x)
        checks.alike("gate", factors, x.shape[:2], x.dtype)
        if residual is not None:
            checks.alike("residual", residual, x.shape, x.dtype)
        y = for_array(x).gate(x, factors, activation, residual)
        own = None if residual is not None else activation
        self._keep(y, x, factors, y if own else None, own)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        x, factors, y, activation = self._take(dy)
        compute = for_array(dy)
        if activation is not None:
            dy = compute.activation_gradient(dy, y, activation)
        dx, dgate = compute.gate_gradient(dy, x, factors)
        return self.gate.backward_onto(dgate, dx) if wanted else self.gate.backward(dgate, wanted)

    def output_shape(self, shape: Shape) -> Shape:
        factors = self.gate.output_shape(shape)
        if factors != shape[:1]:
            raise ValueError(f"shape: {shape[0]} channels take as many factors, got {factors}")
        return shape

    def trace(self, graph: Graph, value: Value) -> Value:
        self.output_shape(value.shape[1:])
        value.shared = True
        with graph.within("gate"):
            factors = self.gate.trace(graph, value)
        return graph.write("gate", [value, factors], value.shape[1:], fuses=self.fuses, adds=self.adds)


class SqueezeExcite(Gate):
    """Squeeze and excitation (Hu et al., 2017): factors from every channel's mean, by two fully connected layers.

    Parameters
    ----------
    channels : int
    reduction : int
        The first layer has this many times fewer outputs.
    random, dtype
        As in `Conv2d`.

    Raises
    ------
    ValueError
        If there are fewer channels than ``reduction``.
    """

    def __init__(self, channels: int, reduction: int = 16, *, random: Random = None, dtype: Any = "float32") -> None:
        narrow = arguments.integer("channels", channels, 1) // arguments.integer("reduction", reduction, 1)
        random = np.random.default_rng(random)  # a seed would give both layers the same numbers
        if narrow < 1:
            raise ValueError(f"reduction: {channels} channels cannot be made {reduction} times fewer")
        super().__init__(
            Sequential(
                squeeze=GlobalAvgPool(),
                flatten=Flatten(),
                fc1=Linear(channels, narrow, random=random, dtype=dtype),
                relu=ReLU(),
                fc2=Linear(narrow, channels, initialisation="xavier", random=random, dtype=dtype),
                sigmoid=Sigmoid(),
            )
        )


class Auxiliary(Layer):
    """A second output, for training only; what follows gets this layer's input (GoogLeNet).

    Attributes
    ----------
    output : array or None
        What the branch made of the last input in training mode.
    gradient : array or None
        Set it to the gradient of the loss with respect to `output` before the backward pass, if it counts.

    Parameters
    ----------
    branch : Layer
    """

    def __init__(self, branch: Layer) -> None:
        self.branch = branch
        self.output: Array | None = None
        self.gradient: Array | None = None

    def children(self) -> dict[str, Layer]:
        return {"branch": self.branch}

    def forward(self, x: Array) -> Array:
        self._keep(x)
        self.output = self.branch.forward(x) if self.training else None
        self.gradient = None
        return x

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        self._take(dy)
        gradient, self.gradient, self.output = self.gradient, None, None
        if gradient is None:
            for parameter in self.branch.parameters().values():
                parameter.gradient = None
            return dy
        return self.branch.backward_onto(gradient, dy) if wanted else self.branch.backward(gradient, wanted)

    def trace(self, graph: Graph, value: Value) -> Value:
        return value
