"""What several nodes become: one step of the evaluator that computes them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.onnx.convolution import Convolution, TransposedConvolution
from fastconv.onnx.packed import Packed
from fastconv.ops import conv1d, linear


class Step:
    """Stands where nodes stood, as far as the evaluator looks at nodes.

    Attributes
    ----------
    op_type : str
        The types of the nodes it stands for, joined by +.
    input, output : list of str
    """

    has_linked_attribute = False

    def __init__(self, nodes: Sequence[Any], inputs: Sequence[str], compute: Callable[..., Any]) -> None:
        self.op_type = "+".join(node.op_type for node in nodes)
        self.domain = "fastconv"
        self.input = list(inputs)
        self.output = [nodes[-1].output[0]]
        self._names = [node.onnx_node.name for node in nodes]
        self._compute = compute

    def need_context(self) -> bool:
        """Whether it looks at results other than its inputs: no."""
        return False

    def run(self, *inputs: Any) -> tuple[Any, ...]:
        """Return the outputs."""
        try:
            return (self._compute(*inputs),)
        except (TypeError, ValueError) as error:
            error.add_note(f"in the nodes {self._names} ({self.op_type}) that make {self.output[0]}")
            raise


class FusedConvolution:
    """A convolution whose weight and bias hold what followed it, with a residual and an activation.

    Parameters
    ----------
    convolution : Convolution or TransposedConvolution
        With the activation.
    plain : Convolution or TransposedConvolution
        The same without.
    weight, bias : ndarray; bias may be None
    activation : str or None
    """

    def __init__(
        self,
        convolution: Convolution | TransposedConvolution,
        plain: Convolution | TransposedConvolution,
        weight: Any,
        bias: Any,
        activation: str | None,
    ) -> None:
        self._convolution, self._plain = convolution, plain
        self._weight, self._bias = weight, bias
        self._activation = activation
        self._shapes: tuple[Any, Any] = (None, None)

    def __call__(self, x: Any, residual: Any = None) -> Any:
        """Compute. A residual of another shape than the result is broadcast as ONNX's Add does."""
        weight, bias = self._weight, self._bias
        if residual is None or (residual.dtype == x.dtype and residual.shape == self._output_shape(x)):
            return self._convolution(x, weight, bias, residual)
        if residual.dtype != x.dtype:
            raise TypeError(f"Add: expected {x.dtype}, got {residual.dtype}")
        result = self._plain(x, weight, bias) + residual
        epilogue.apply(self._activation, result)
        return result

    def _output_shape(self, x: Any) -> Any:
        of, shape = self._shapes
        if of != x.shape:
            shape = self._convolution.output_shape(x, self._weight)
            self._shapes = x.shape, shape
        return shape


class FusedLinear:
    """``x @ weight.T + bias`` with an activation, the weight packed."""

    def __init__(self, weight: Any, bias: Any, activation: str | None, transposed: bool = False) -> None:
        self._constants = weight, bias
        self._arguments = lambda: {"activation": activation}
        self._transposed = transposed
        self._linear = Packed(linear)

    def __call__(self, x: Any) -> Any:
        if self._transposed:
            x = x.T
        return self._linear(x, self._constants, None, self._arguments)


class ScaleShift:
    """``x * scale + shift`` for every channel, with an activation: a convolution of every channel with one number.

    Parameters
    ----------
    scale, shift : ndarray, shape (C,)
    activation : str or None
    otherwise : callable
        Computes the same node by node, for an input that is empty, of another dtype than the constants, or has not as
        many dimensions as they assume.
    ndim : int or None
        That number of dimensions; None if any will do.
    """

    def __init__(
        self, scale: Any, shift: Any, activation: str | None, ndim: int | None, otherwise: Callable[[Any], Any]
    ) -> None:
        self._constants = scale.reshape(-1, 1, 1), shift
        self._ndim, self._otherwise = ndim, otherwise
        self._arguments = lambda: {"groups": len(scale), "activation": activation}
        self._convolve = Packed(conv1d)

    def __call__(self, x: Any) -> Any:
        scale, shift = self._constants
        other = x.ndim < 3 or (self._ndim is not None and x.ndim != self._ndim) or x.shape[1] != len(shift)
        if other or not x.size or x.dtype != scale.dtype:
            return self._otherwise(x)
        lines = x.reshape(*x.shape[:2], -1)
        return self._convolve(lines, self._constants, None, self._arguments).reshape(x.shape)


def rectified(x: Any) -> Any:
    """Return the larger of each element and zero."""
    return np.maximum(x, x.dtype.type(0))


def total(*terms: Any) -> Any:
    """Return the sum of one or more arrays."""
    first, *others = terms
    for other in others:
        first = np.add(first, other)
    return first
