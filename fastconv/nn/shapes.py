"""Layers without weights that are no activation: flattening, scaling by a constant, dropout."""

from __future__ import annotations

import math

import numpy as np

from fastconv import arguments
from fastconv.arrays import Array
from fastconv.nn import checks, plain
from fastconv.nn.activations import OP_SLOPE, SIMPLE
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Value
from fastconv.nn.initialisation import Random
from fastconv.nn.layer import Ending, Layer, Shape


class Flatten(Layer):
    """A map as one vector."""

    def forward(self, x: Array) -> Array:
        checks.batch(self, x, least=1)
        y: Array = x.reshape(len(x), math.prod(x.shape[1:]))
        self._keep(y, x.shape)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (shape,) = self._take(dy)
        return dy.reshape(shape) if wanted else None

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)

    def trace(self, graph: Graph, value: Value) -> Value:
        return graph.write("reshape", [value], self.output_shape(value.shape[1:]), layer=self)


class Scale(Ending):
    """Multiplication by a constant.

    Parameters
    ----------
    factor : float
    """

    def __init__(self, factor: float) -> None:
        self.factor = arguments.number("factor", factor)

    @property
    def fuses(self) -> frozenset[str]:
        return SIMPLE

    @property
    def adds(self) -> bool:
        return True

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        checks.batch(self, x)
        if residual is not None:
            checks.alike("residual", residual, x.shape, x.dtype)
        y = self._scaled(x, activation, residual)
        own = None if residual is not None else activation
        self._keep(y, y if own else None, own)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        dz = self._before_activation(dy)
        return self._scaled(dz) if wanted else None

    def backward_onto(self, dy: Array, added: Array) -> Array:
        return self._scaled(self._before_activation(dy), residual=added)

    def _scaled(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        xp, channels = plain.namespace(x), x.shape[1]
        scale, shift = xp.full(channels, self.factor, x.dtype), xp.zeros(channels, x.dtype)
        y: Array = for_array(x).affine(x, scale, shift, activation, OP_SLOPE, residual)
        return y

    def _before_activation(self, dy: Array) -> Array:
        y, activation = self._take(dy)
        return dy if activation is None else for_array(dy).activation_gradient(dy, y, activation, OP_SLOPE)

    def trace(self, graph: Graph, value: Value) -> Value:
        return value if graph.fold(value, self.factor) else super().trace(graph, value)

    def details(self) -> str:
        return f"{self.factor}"


class Dropout(Layer):
    """While training, a share of the elements set to zero at random, and the others scaled up (Hinton et al., 2012).

    Which elements is a hash of a random key and the element's index, so no mask is kept in memory.

    Parameters
    ----------
    share : float
        From 0 to below 1.
    random : numpy.random.Generator or int, optional
        What the keys are drawn from: one for each forward pass.

    Raises
    ------
    ValueError
        If the share is not in that range.
    """

    def __init__(self, share: float = 0.5, *, random: Random = None) -> None:
        self.share = arguments.inside("share", share, "[0, 1)")
        self._generator = np.random.default_rng(random)

    def forward(self, x: Array) -> Array:
        checks.floats("x", x)
        if not self.training or self.share == 0:
            self._keep(x, None)
            return x
        key = int(self._generator.integers(2**63))
        self._keep(x, key)
        return for_array(x).dropout(x, key, self.share)

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (key,) = self._take(dy)
        if not wanted:
            return None
        return dy if key is None else for_array(dy).dropout(dy, key, self.share)

    def trace(self, graph: Graph, value: Value) -> Value:
        return value

    def details(self) -> str:
        return f"{self.share}"
