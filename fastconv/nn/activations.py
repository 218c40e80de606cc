"""Activations as layers. In a `Sequential` they are done by the layer before them where that can."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastconv import arguments
from fastconv.arrays import Array
from fastconv.nn import checks, plain
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Value
from fastconv.nn.initialisation import real
from fastconv.nn.layer import Layer, Parameter, Shape

# The slope of the `leaky_relu` that fastconv's ops know.
OP_SLOPE = 0.01

# What the fused kernels apply: no more than a comparison and a product.
SIMPLE = frozenset({"relu", "leaky_relu", "relu6"})


class Activation(Layer):
    """A function of each element, whose derivative its output determines."""

    function: ClassVar[str]
    slope: float = 0.0

    @property
    def fused(self) -> str | None:
        """The name under which layers before it can do its work; None if they cannot."""
        return self.function

    def apply(self, x: Array, out: Array | None = None) -> Array:
        """Return the function's values."""
        # NumPy's exponentials are vectorised, Numba's are not.
        compute = for_array(x) if self.function in SIMPLE else plain
        y: Array = compute.activate(x, self.function, self.slope, out)
        return y

    def forward(self, x: Array) -> Array:
        checks.floats("x", x)
        y = self.apply(x)
        self._keep(y, y)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (y,) = self._take(dy)
        return for_array(dy).activation_gradient(dy, y, self.function, self.slope) if wanted else None

    def trace(self, graph: Graph, value: Value) -> Value:
        joined = self.fused is not None and graph.activate(value, self.fused)
        return value if joined else super().trace(graph, value)


class ReLU(Activation):
    """``max(x, 0)``."""

    function: ClassVar[str] = "relu"


class ReLU6(Activation):
    """``min(max(x, 0), 6)``."""

    function: ClassVar[str] = "relu6"


class LeakyReLU(Activation):
    """``x`` where it is positive, else ``slope * x``.

    Parameters
    ----------
    slope : float
        Positive.

    Raises
    ------
    ValueError
        If it is not.
    """

    function: ClassVar[str] = "leaky_relu"

    def __init__(self, slope: float = OP_SLOPE) -> None:
        self.slope = arguments.inside("slope", slope, "(0, inf)")

    @property
    def fused(self) -> str | None:
        return self.function if self.slope == OP_SLOPE else None

    def details(self) -> str:
        return f"{self.slope}"


class Sigmoid(Activation):
    """``1 / (1 + exp(-x))``."""

    function: ClassVar[str] = "sigmoid"


class Tanh(Activation):
    """The hyperbolic tangent."""

    function: ClassVar[str] = "tanh"


class PReLU(Layer):
    """``x`` where it is positive, else a learned slope times ``x`` (He et al., 2015).

    Parameters
    ----------
    channels : int
        How many slopes there are: one a channel, or one for all.
    slope : float
        What they begin with.
    dtype : dtype
    """

    def __init__(self, channels: int = 1, slope: float = 0.25, *, dtype: Any = np.float32) -> None:
        count, start = arguments.integer("channels", channels, 1), arguments.number("slope", slope)
        self.weight = Parameter(np.full(count, start, real(dtype)))

    def forward(self, x: Array) -> Array:
        slopes = self.weight.value
        checks.batch(self, x, len(slopes) if len(slopes) > 1 else None, like=slopes)
        y: Array = for_array(x).prelu(x, slopes)
        self._keep(y, x)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (x,) = self._take(dy)
        dx, self.weight.gradient = for_array(dy).prelu_gradient(dy, x, self.weight.value)
        return dx if wanted else None

    def output_shape(self, shape: Shape) -> Shape:
        if len(self.weight.value) > 1:
            checks.channels_of(self, shape, len(self.weight.value))
        return shape

    def details(self) -> str:
        return f"{len(self.weight.value)}"


class Softmax(Layer):
    """Exponentials over the channels (axis 1), divided by their sum."""

    def forward(self, x: Array) -> Array:
        checks.batch(self, x)
        y = _turned(for_array(x).softmax(_turned(x)))
        self._keep(y, y)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (y,) = self._take(dy)
        return _turned(for_array(dy).softmax_gradient(_turned(dy), _turned(y))) if wanted else None


def _turned(array: Array) -> Array:
    """Exchange the channels and the last axis."""
    return array.swapaxes(1, -1)
