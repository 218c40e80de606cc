"""Normalisations: batch, layer, instance and group normalisation, and that of AlexNet and GoogLeNet."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from fastconv import arguments
from fastconv.arrays import Array
from fastconv.nn import checks, plain
from fastconv.nn.activations import OP_SLOPE, SIMPLE
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Value
from fastconv.nn.initialisation import real
from fastconv.nn.layer import Ending, Layer, Parameter, Shape


class BatchNorm2d(Ending):
    """Batch normalisation (Ioffe and Szegedy, 2015): every channel to mean 0 and variance 1, then scaled and shifted.

    In training mode by the batch's own statistics, which also move the running ones; in evaluation mode by the
    running ones. `Inference` folds it into the convolution before it.

    Parameters
    ----------
    channels : int
    epsilon : float
        Added to the variance.
    momentum : float
        The share of the new statistics in the running ones, from 0 to 1.
    dtype : dtype

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range.
    """

    buffers: ClassVar[tuple[str, ...]] = ("running_mean", "running_var")

    def __init__(self, channels: int, epsilon: float = 1e-5, momentum: float = 0.1, *, dtype: Any = np.float32) -> None:
        count, kind = arguments.integer("channels", channels, 1), real(dtype)
        self.weight = Parameter(np.ones(count, kind))
        self.bias = Parameter(np.zeros(count, kind))
        self.running_mean, self.running_var = np.zeros(count, kind), np.ones(count, kind)
        self.epsilon = arguments.inside("epsilon", epsilon, "[0, inf)")
        self.momentum = arguments.inside("momentum", momentum, "[0, 1]")

    @property
    def fuses(self) -> frozenset[str]:
        return SIMPLE

    @property
    def adds(self) -> bool:
        return True

    def scale_and_shift(self) -> tuple[Array, Array]:
        """Return the factors and summands of evaluation mode: ``y = x * scale + shift``."""
        dtype = self.weight.value.dtype
        scale = plain.wide(self.weight.value) / (plain.wide(self.running_var) + self.epsilon) ** 0.5
        shift = plain.wide(self.bias.value) - plain.wide(self.running_mean) * scale
        return scale.astype(dtype), shift.astype(dtype)

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        w, b = self.weight.value, self.bias.value
        checks.batch(self, x, len(w), like=w)
        if residual is not None:
            checks.alike("residual", residual, x.shape, x.dtype)
        compute = for_array(x)
        if not self.training:
            return compute.affine(x, *self.scale_and_shift(), activation, OP_SLOPE, residual)
        count = x.size // x.shape[1]
        if count < 2:
            raise ValueError(f"x: a variance takes more than one value a channel in training, got shape {x.shape}")
        y, mean, variance = compute.batch_norm(x, w, b, self.epsilon, activation, OP_SLOPE, residual)
        for running, new in ((self.running_mean, mean), (self.running_var, variance * (count / (count - 1)))):
            running *= 1 - self.momentum
            running += (self.momentum * new).astype(running.dtype)
        self._keep(y, x, mean, variance, None if residual is not None else activation)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        dx = self._input_gradient(dy, None)
        return dx if wanted else None

    def backward_onto(self, dy: Array, added: Array) -> Array:
        return self._input_gradient(dy, added)

    def _input_gradient(self, dy: Array, added: Array | None) -> Array:
        x, mean, variance, activation = self._take(dy)
        dx: Array
        dx, self.weight.gradient, self.bias.gradient = for_array(dy).batch_norm_gradient(
            dy, x, mean, variance, self.weight.value, self.bias.value, self.epsilon, activation, OP_SLOPE, added
        )
        return dx

    def output_shape(self, shape: Shape) -> Shape:
        checks.channels_of(self, shape, len(self.weight.value))
        return shape

    def trace(self, graph: Graph, value: Value) -> Value:
        shape, (scale, shift) = self.output_shape(value.shape[1:]), self.scale_and_shift()
        if graph.fold(value, scale, shift):
            return value
        able = {"fuses": self.fuses, "adds": self.adds}
        return graph.write("affine", [value], shape, layer=self, weight=scale, bias=shift, **able)

    def details(self) -> str:
        return f"{len(self.weight.value)}"


class RowNorm(Layer):
    """Normalisation of parts of one image at a time, then a scale and a shift of each segment of it."""

    def __init__(self, shape: Shape, epsilon: float, dtype: Any) -> None:
        kind = real(dtype)
        self.weight = Parameter(np.ones(shape, kind), limited=False)
        self.bias = Parameter(np.zeros(shape, kind), limited=False)
        self.epsilon = arguments.inside("epsilon", epsilon, "[0, inf)")

    def _layout(self, x: Array) -> tuple[int, int, int]:
        """Return rows, the groups of weights that they take in turn, and segments a row."""
        raise NotImplementedError

    def forward(self, x: Array) -> Array:
        rows, groups, segments = self._layout(x)
        weights = self.weight.value.reshape(-1), self.bias.value.reshape(-1)
        y, mean, inverse = for_array(x).normalise(x, *weights, rows, groups, segments, self.epsilon)
        self._keep(y, x, mean, inverse, groups, segments)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        w = self.weight.value
        dx, dw, db = for_array(dy).normalise_gradient(dy, *self._rest(w, self._take(dy)))
        self.weight.gradient, self.bias.gradient = dw.reshape(w.shape), db.reshape(w.shape)
        return dx if wanted else None

    @staticmethod
    def _rest(weight: Array, kept: Any) -> tuple[Any, ...]:
        x, mean, inverse, groups, segments = kept
        return x, weight.reshape(-1), mean, inverse, groups, segments

    def details(self) -> str:
        return f"{len(self.weight.value)}"


class GroupNorm(RowNorm):
    """Group normalisation (Wu and He, 2018): every image's channels in groups, then each channel scaled and shifted.

    Parameters
    ----------
    groups, channels : int
    epsilon : float
        Added to the variance.
    dtype : dtype

    Raises
    ------
    ValueError
        If the channels are no multiple of the groups, or epsilon is negative.
    """

    def __init__(self, groups: int, channels: int, epsilon: float = 1e-5, *, dtype: Any = np.float32) -> None:
        if arguments.integer("channels", channels, 1) % arguments.integer("groups", groups, 1):
            raise ValueError(f"groups: {channels} channels cannot be divided into {groups} groups")
        super().__init__((channels,), epsilon, dtype)
        self.groups = groups

    def _layout(self, x: Array) -> tuple[int, int, int]:
        channels = len(self.weight.value)
        checks.batch(self, x, channels, like=self.weight.value)
        return len(x) * self.groups, self.groups, channels // self.groups

    def output_shape(self, shape: Shape) -> Shape:
        checks.channels_of(self, shape, len(self.weight.value))
        return shape

    def details(self) -> str:
        return f"{self.groups}, {len(self.weight.value)}"


class InstanceNorm(GroupNorm):
    """Instance normalisation (Ulyanov et al., 2016): every channel of every image by itself, then scaled and shifted.

    Parameters
    ----------
    channels : int
    epsilon : float
        Added to the variance.
    dtype : dtype
    """

    def __init__(self, channels: int, epsilon: float = 1e-5, *, dtype: Any = np.float32) -> None:
        super().__init__(channels, channels, epsilon, dtype=dtype)


class LayerNorm(RowNorm):
    """Layer normalisation (Ba et al., 2016) over the last axes, then a scale and a shift for every element of them.

    Parameters
    ----------
    shape : int or tuple of int
        Of the axes that are normalised together.
    epsilon : float
        Added to the variance.
    dtype : dtype
    """

    def __init__(self, shape: int | tuple[int, ...], epsilon: float = 1e-5, *, dtype: Any = np.float32) -> None:
        self.shape = arguments.shape("shape", shape if isinstance(shape, tuple | list) else (shape,))
        if not math.prod(self.shape) or not self.shape:
            raise ValueError(f"shape: expected positive integers, got {shape}")
        super().__init__(self.shape, epsilon, dtype)

    def _layout(self, x: Array) -> tuple[int, int, int]:
        checks.batch(self, x, least=1 + len(self.shape), like=self.weight.value)
        if x.shape[-len(self.shape) :] != self.shape:
            raise ValueError(f"x: LayerNorm is for last axes {self.shape}, got shape {x.shape}")
        size = math.prod(self.shape)
        return x.size // size, 1, size

    def output_shape(self, shape: Shape) -> Shape:
        if shape[-len(self.shape) :] != self.shape:
            raise ValueError(f"shape: LayerNorm is for last axes {self.shape}, got {shape}")
        return shape

    def details(self) -> str:
        return f"{self.shape}"


class LocalResponseNorm(Layer):
    """Division by a power of the squares in neighbouring channels (Krizhevsky et al., 2012).

    ``y = x / (k + alpha / size * sum of x ** 2 over size channels around) ** beta``, as in PyTorch.

    Parameters
    ----------
    size : int
    alpha, beta, k : float

    Raises
    ------
    TypeError, ValueError
        If the size is less than 1, or another is no number.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = arguments.integer("size", size, 1)
        given = {"alpha": alpha, "beta": beta, "k": k}
        self.alpha, self.beta, self.k = (arguments.number(name, value) for name, value in given.items())

    def forward(self, x: Array) -> Array:
        checks.batch(self, x)
        y, base = for_array(x).neighbours(x, self.size, self.alpha, self.beta, self.k)
        self._keep(y, x, y, base)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        kept = self._take(dy)
        return for_array(dy).neighbours_gradient(dy, *kept, self.size, self.alpha, self.beta) if wanted else None

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) < 2:
            raise ValueError(f"shape: LocalResponseNorm takes maps, got {shape}")
        return shape

    def details(self) -> str:
        return f"{self.size}, {self.alpha}, {self.beta}, {self.k}"
