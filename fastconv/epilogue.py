"""The epilogue of a forward pass: bias, residual and activation, and the activation's derivative.

Every activation here has a derivative that its own output determines, so that a backward pass keeps the
output and not what went into the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.problem import ConvProblem

LEAKY_SLOPE = 0.01


def _relu(z: Any) -> None:
    np.maximum(z, 0, out=z)


def _leaky_relu(z: Any) -> None:
    np.multiply(z, LEAKY_SLOPE, out=z, where=z < 0)


def _relu6(z: Any) -> None:
    np.clip(z, 0, 6, out=z)


def _sigmoid(z: Any) -> None:
    # In place: passes over temporaries take longer than the exponential. Where that overflows, 1 / inf is right.
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(z, -1, out=z)  # NumPy's `negative` may be wrong in place, of elements that lie some apart
        np.exp(z, out=z)
        np.add(z, 1, out=z)
        np.divide(1, z, out=z)


def _tanh(z: Any) -> None:
    np.tanh(z, out=z)


_ACTIVATIONS: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any]]] = {
    # name: (in place, derivative as a function of the output; NaN lets the gradient pass, as in PyTorch)
    "relu": (_relu, lambda y: ~(y <= 0)),
    "leaky_relu": (_leaky_relu, lambda y: np.where(y > 0, 1, LEAKY_SLOPE)),
    "relu6": (_relu6, lambda y: ~((y <= 0) | (y >= 6))),
    "sigmoid": (_sigmoid, lambda y: y * (1 - y)),
    "tanh": (_tanh, lambda y: 1 - y * y),
}

# Temporaries that an activation allocates, in arrays of the size it is given; the others work in place.
TEMPORARIES = {"leaky_relu": 1}


def bias_view(problem: ConvProblem, bias: Any) -> Any:
    """Return the bias shaped so that it broadcasts over (N, C, spatial)."""
    if problem.bias == "position":
        return np.moveaxis(bias, -1, 0)
    return bias.reshape(-1, *(1,) * problem.ndim)


def apply(activation: str | None, result: Any, bias: Any = None, residual: Any = None) -> None:
    """Add ``bias`` and ``residual`` and apply the activation, in place.

    Parameters
    ----------
    activation : str or None
    result : ndarray
        In the accumulator's dtype; any part of (N, C, spatial).
    bias, residual : ndarray or None
        Anything that broadcasts against ``result``.
    """
    if bias is not None:
        np.add(result, bias, out=result, casting="same_kind")
    if residual is not None:
        np.add(result, residual, out=result, casting="same_kind")
    if activation is not None:
        _ACTIVATIONS[activation][0](result)


def activation_gradient(activation: str | None, grad_output: Any, output: Any) -> Any:
    """Return the gradient with respect to what went into the activation.

    Parameters
    ----------
    activation : str or None
    grad_output, output : ndarray
        Of one shape. Half types are computed in float32 and rounded once.
    """
    if activation is None:
        return grad_output
    dtype = np.result_type(output.dtype, np.float32)
    slope = _ACTIVATIONS[activation][1](output.astype(dtype, copy=False))
    if slope.dtype == bool:  # nothing passes, be it infinite or NaN
        passed = np.where(slope, grad_output.astype(dtype, copy=False), dtype.type(0))
        return passed.astype(grad_output.dtype, copy=False)
    return np.multiply(grad_output, slope, dtype=dtype).astype(grad_output.dtype, copy=False)
