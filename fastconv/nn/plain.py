"""What `fastconv.nn.native` does, as array expressions: for CuPy arrays, for half types, and to check it by.

Every function has the arguments and results of its namesake there. Half types are computed in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np


def namespace(array: Any) -> ModuleType:
    """Return NumPy or CuPy, whichever the array is of."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def wide(array: Any) -> Any:
    """Return an array in a type to compute in: float32 at least."""
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def _shaped(vector: Any, x: Any) -> Any:
    """Return a vector over channels so that it broadcasts over (N, C, ...)."""
    return wide(vector).reshape(1, -1, *(1,) * (x.ndim - 2))


def _planes(x: Any) -> tuple[int, ...]:
    """Return the axes that are summed over for a number a channel."""
    return (0, *range(2, x.ndim))


def _finish(value: Any, activation: str | None, slope: float) -> Any:
    xp = namespace(value)
    if activation == "relu":
        return xp.where(value <= 0, 0, value)
    if activation == "leaky_relu":
        return xp.where(value < 0, value * slope, value)
    if activation == "relu6":
        return xp.where(value <= 0, 0, xp.where(value >= 6, 6, value))
    if activation == "sigmoid":
        small = xp.exp(-xp.abs(value))
        return xp.where(value >= 0, 1, small) / (1 + small)
    if activation == "tanh":
        return xp.tanh(value)
    return value


def _slope_at(output: Any, activation: str | None, slope: float) -> Any:
    xp = namespace(output)
    if activation == "relu":
        return xp.where(output <= 0, 0, 1)
    if activation == "leaky_relu":
        return xp.where(output > 0, 1, slope)
    if activation == "relu6":
        return xp.where((output <= 0) | (output >= 6), 0, 1)
    if activation == "sigmoid":
        return output * (1 - output)
    return 1 - output * output


def _stored(value: Any, like: Any, out: Any = None) -> Any:
    result = value.astype(like.dtype, copy=False)
    if out is None:
        return result
    out[...] = result
    return out


def affine(
    x: Any, scale: Any, shift: Any, activation: str | None, slope: float, residual: Any = None, out: Any = None
) -> Any:
    value = wide(x) * _shaped(scale, x) + _shaped(shift, x)
    if residual is not None:
        value = value + wide(residual)
    return _stored(_finish(value, activation, slope), x, out)


def batch_norm(
    x: Any, weight: Any, bias: Any, epsilon: float, activation: str | None, slope: float, residual: Any = None
) -> tuple[Any, Any, Any]:
    axes = _planes(x)
    mean = wide(x).mean(axis=axes)
    centred = wide(x) - _shaped(mean, x)
    variance = (centred * centred).mean(axis=axes, dtype=np.float64)
    scale = wide(weight) / (variance + epsilon) ** 0.5
    value = centred * _shaped(scale.astype(centred.dtype), x) + _shaped(bias, x)
    if residual is not None:
        value = value + wide(residual)
    return _stored(_finish(value, activation, slope), x), mean, variance


def batch_norm_gradient(
    dy: Any, x: Any, mean: Any, variance: Any, weight: Any, bias: Any, epsilon: float, activation: str | None,
    slope: float, added: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    axes = _planes(x)
    dz, distance = wide(dy), wide(x) - _shaped(mean, x)
    inverse = (1 / (variance + epsilon) ** 0.5).astype(dz.dtype)
    if activation is not None:
        scale = (wide(weight) / (variance + epsilon) ** 0.5).astype(dz.dtype)
        y = _finish(distance * _shaped(scale, x) + _shaped(bias, x), activation, slope)
        dz = dz * _slope_at(y, activation, slope)
    centred = distance * _shaped(inverse, x)
    dweight, dbias = (dz * centred).sum(axis=axes), dz.sum(axis=axes)
    count = x.size // x.shape[1]
    dx = (dz - _shaped(dbias, x) / count - centred * _shaped(dweight, x) / count) * _shaped(wide(weight) * inverse, x)
    if added is not None:
        dx = dx + wide(added)
    return _stored(dx, x), _stored(dweight, weight), _stored(dbias, weight)


def accumulate(total: Any, part: Any) -> None:
    total[...] = wide(total) + wide(part)


def concatenate(parts: Sequence[Any]) -> Any:
    return namespace(parts[0]).concatenate(parts, axis=1)


def bias_gradient(dy: Any, y: Any, activation: str | None, slope: float) -> tuple[Any, Any]:
    dz = dy if activation is None else activation_gradient(dy, y, activation, slope)
    return dz, _stored(wide(dz).sum(axis=_planes(dy)), dy)


def gate(x: Any, factors: Any, activation: str | None, residual: Any = None, out: Any = None) -> Any:
    value = wide(x) * wide(factors).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
    if residual is not None:
        value = value + wide(residual)
    return _stored(_finish(value, activation, 0.0), x, out)


def gate_gradient(dy: Any, x: Any, factors: Any) -> tuple[Any, Any]:
    dgate = (wide(dy) * wide(x)).sum(axis=tuple(range(2, x.ndim)))
    return gate(dy, factors, None), _stored(dgate, x)


def prelu(x: Any, slopes: Any) -> Any:
    return namespace(x).where(x < 0, _stored(wide(x) * _shaped(slopes, x), x), x)


def prelu_gradient(dy: Any, x: Any, slopes: Any) -> tuple[Any, Any]:
    xp = namespace(x)
    dx = xp.where(x > 0, dy, _stored(wide(dy) * _shaped(slopes, x), x))
    along = xp.where(x > 0, 0, wide(dy) * wide(x))
    dslopes = along.sum(axis=_planes(x)) if len(slopes) > 1 else along.sum().reshape(1)
    return dx, _stored(dslopes, x)


def add(a: Any, b: Any, activation: str | None = None, slope: float = 0.0, out: Any = None) -> Any:
    return _stored(_finish(wide(a) + wide(b), activation, slope), a, out)


def activate(x: Any, activation: str, slope: float = 0.0, out: Any = None) -> Any:
    return _stored(_finish(wide(x), activation, slope), x, out)


def activation_gradient(dy: Any, y: Any, activation: str, slope: float = 0.0) -> Any:
    return _stored(wide(dy) * _slope_at(wide(y), activation, slope), dy)


def dropout(x: Any, key: int, share: float) -> Any:
    xp = namespace(x)
    u64 = np.uint64
    mixed = xp.arange(1, x.size + 1, dtype=np.uint64) * u64(0x9E3779B97F4A7C15) + u64(key)
    mixed = (mixed ^ (mixed >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> u64(27))) * u64(0x94D049BB133111EB)
    kept = ((mixed ^ (mixed >> u64(31))) >> u64(32)) >= u64(round(share * 2**32))
    return _stored(xp.where(kept.reshape(x.shape), wide(x) * (1 / (1 - share)), 0), x)


def sgd(value: Any, gradient: Any, velocity: Any, rate: float, momentum: float, nesterov: bool, decay: float) -> None:
    step = wide(gradient) + decay * wide(value)
    if velocity is not None:
        velocity *= momentum
        velocity += step
        step = step + momentum * velocity if nesterov else velocity
    value[...] = wide(value) - rate * step


def adam(
    value: Any, gradient: Any, first: Any, second: Any, rate: float, beta1: float, beta2: float, epsilon: float,
    decay: float, decoupled: bool, step: int,
) -> None:  # fmt: skip
    gradient, new = wide(gradient), wide(value)
    if decoupled:
        new = new * (1 - rate * decay)
    else:
        gradient = gradient + decay * new
    first *= beta1
    first += (1 - beta1) * gradient
    second *= beta2
    second += (1 - beta2) * gradient * gradient
    rate, scale = rate / (1 - beta1**step), 1 / (1 - beta2**step) ** 0.5
    value[...] = new - rate * first / (second**0.5 * scale + epsilon)


def normalise(
    x: Any, weight: Any, bias: Any, rows: int, groups: int, segments: int, epsilon: float
) -> tuple[Any, Any, Any]:
    values = wide(x).reshape(rows, segments, -1)
    mean = values.mean(axis=(1, 2))
    centred = values - mean[:, None, None]
    inverse = 1 / ((centred * centred).mean(axis=(1, 2)) + epsilon) ** 0.5
    scaled = centred * inverse[:, None, None]
    shape = -1, groups, segments, scaled.shape[2]
    w, b = (wide(v).reshape(1, groups, segments, 1) for v in (weight, bias))
    return _stored((scaled.reshape(shape) * w + b).reshape(x.shape), x), mean, inverse


def normalise_gradient(
    dy: Any, x: Any, weight: Any, mean: Any, inverse: Any, groups: int, segments: int
) -> tuple[Any, Any, Any]:
    rows = len(mean)
    scaled = (wide(x).reshape(rows, segments, -1) - mean[:, None, None]) * inverse[:, None, None]
    shape = -1, groups, segments, scaled.shape[2]
    gradient = wide(dy).reshape(shape)
    dweight = (gradient * scaled.reshape(shape)).sum(axis=(0, 3)).reshape(-1)
    dbias = gradient.sum(axis=(0, 3)).reshape(-1)
    dz = (gradient * wide(weight).reshape(1, groups, segments, 1)).reshape(scaled.shape)
    total, along = dz.mean(axis=(1, 2)), (dz * scaled).mean(axis=(1, 2))
    dx = (dz - total[:, None, None] - scaled * along[:, None, None]) * inverse[:, None, None]
    return _stored(dx.reshape(x.shape), x), _stored(dweight, weight), _stored(dbias, weight)


def softmax(x: Any) -> Any:
    value = namespace(x).exp(wide(x) - wide(x).max(axis=-1, keepdims=True))
    return _stored(value / value.sum(axis=-1, keepdims=True), x)


def softmax_gradient(dy: Any, y: Any) -> Any:
    dz, output = wide(dy), wide(y)
    return _stored((dz - (dz * output).sum(axis=-1, keepdims=True)) * output, y)


def cross_entropy(logits: Any, labels: Any) -> tuple[Any, Any]:
    xp, n = namespace(logits), len(logits)
    shifted = wide(logits) - wide(logits).max(axis=-1, keepdims=True)
    total = xp.exp(shifted).sum(axis=-1, dtype=np.float64)
    rows = xp.arange(n)
    losses = xp.log(total) - shifted[rows, labels]
    gradient = xp.exp(shifted) / (total * n)[:, None]
    gradient[rows, labels] -= 1 / n
    return losses, _stored(gradient, logits)


def _window_sum(values: Any, before: int, after: int) -> Any:
    """Return for every channel the sum over channels from ``before`` before it to ``after`` after it."""
    result, channels = namespace(values).zeros_like(values), values.shape[1]
    for shift in range(-before, after + 1):
        low, high = max(0, -shift), min(channels, channels - shift)
        if low < high:
            result[:, low:high] += values[:, low + shift : high + shift]
    return result


def neighbours(x: Any, size: int, alpha: float, beta: float, k: float) -> tuple[Any, Any]:
    base = k + alpha / size * _window_sum(wide(x) ** 2, size // 2, size - size // 2 - 1)
    return _stored(wide(x) * base**-beta, x), base


def neighbours_gradient(dy: Any, x: Any, y: Any, base: Any, size: int, alpha: float, beta: float) -> Any:
    across = _window_sum(wide(dy) * wide(y) / base, size - size // 2 - 1, size // 2)
    return _stored(wide(dy) * base**-beta - 2 * alpha * beta / size * wide(x) * across, x)
