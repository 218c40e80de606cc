"""Kernels on arrays as long vectors, whose unit is a block of elements: activations, sums, dropout, updates."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from fastconv.nn.native.compiling import kernel, run

# Activations as kernels know them.
KINDS = {None: 0, "relu": 1, "leaky_relu": 2, "relu6": 3, "sigmoid": 4, "tanh": 5}
_RELU, _LEAKY, _RELU6, _SIGMOID, _TANH = 1, 2, 3, 4, 5

# Elements of a unit: a whole number of them, whatever the number of threads.
_BLOCK = 1 << 14


@njit
def finish(value, kind, slope):
    """Return an activation's value; those that need an exponential are not done here. NaN stays NaN."""
    if kind == _RELU:
        return type(slope)(0) if value <= 0 else value
    if kind == _LEAKY:
        return value * slope if value < 0 else value
    if kind == _RELU6:
        low = type(slope)(0) if value <= 0 else value
        return type(slope)(6) if low >= 6 else low
    return value


@njit
def slope_at(output, kind, slope):
    """Return an activation's derivative, as a function of its output. NaN lets the gradient pass."""
    one, zero = type(slope)(1), type(slope)(0)
    if kind == _RELU:
        return zero if output <= 0 else one
    if kind == _LEAKY:
        return one if output > 0 else slope
    if kind == _RELU6:
        return zero if output <= 0 or output >= 6 else one
    if kind == _SIGMOID:
        return output * (one - output)
    if kind == _TANH:
        return one - output * output
    return one


@njit
def _part(line, start, stop):
    """Return the elements of units: a slice, whose indices LLVM sees to be no negative ones, and so vectorises."""
    return line[start * _BLOCK : min(stop * _BLOCK, len(line))]


def _run(body: Any, size: int, *arguments: Any) -> None:
    run(body, -(-size // _BLOCK), size, *arguments)


@cache
def _add(kind: int) -> Any:
    @kernel()
    def blocks(start, stop, a, b, y, slope):
        low = a.dtype.type(slope)
        first, second, target = _part(a, start, stop), _part(b, start, stop), _part(y, start, stop)
        for i in range(len(target)):
            target[i] = finish(first[i] + second[i], kind, low)

    return blocks


def add(a: Any, b: Any, activation: str | None = None, slope: float = 0.0, out: Any = None) -> Any:
    """Add two arrays and apply an activation."""
    y = _target(a, out)
    _run(_add(KINDS[activation]), y.size, _line(a), _line(b), y.reshape(-1), slope)
    return _stored(y, out)


@cache
def _activate(kind: int) -> Any:
    @kernel()
    def blocks(start, stop, x, y, slope):
        low = x.dtype.type(slope)
        source, target = _part(x, start, stop), _part(y, start, stop)
        for i in range(len(target)):
            target[i] = finish(source[i], kind, low)

    return blocks


def activate(x: Any, activation: str, slope: float = 0.0, out: Any = None) -> Any:
    """Apply an activation that takes no more than a comparison."""
    y = _target(x, out)
    _run(_activate(KINDS[activation]), y.size, _line(x), y.reshape(-1), slope)
    return _stored(y, out)


@cache
def _activation_gradient(kind: int) -> Any:
    @kernel()
    def blocks(start, stop, dy, y, dx, slope):
        low = dy.dtype.type(slope)
        gradient, output, target = _part(dy, start, stop), _part(y, start, stop), _part(dx, start, stop)
        for i in range(len(target)):
            target[i] = gradient[i] * slope_at(output[i], kind, low)

    return blocks


def activation_gradient(dy: Any, y: Any, activation: str, slope: float = 0.0) -> Any:
    """Return the gradient before an activation, of which y is the output."""
    dx = np.empty(y.shape, y.dtype)
    _run(_activation_gradient(KINDS[activation]), dx.size, _line(dy), _line(y), dx.reshape(-1), slope)
    return dx


@njit
def _kept(key, index, limit):
    """Whether dropout keeps an element: a hash of the key and its index, so that no mask need be stored."""
    mixed = key + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)) >= limit


@kernel()
def _dropout(start, stop, x, y, key, limit, factor):
    scale = x.dtype.type(factor)
    zero = x.dtype.type(0)
    source, target = _part(x, start, stop), _part(y, start, stop)
    for i in range(len(target)):
        target[i] = source[i] * scale if _kept(key, start * _BLOCK + i, limit) else zero


def dropout(x: Any, key: int, share: float) -> Any:
    """Set a share of the elements to zero and scale the others up; the same ones for the same key."""
    y = np.empty(x.shape, x.dtype)
    limit = np.uint64(round(share * 2**32))
    _run(_dropout, y.size, _line(x), y.reshape(-1), np.uint64(key), limit, 1 / (1 - share))
    return y


@kernel()
def _sgd(start, stop, value, gradient, velocity, rate, momentum, nesterov, decay):
    r, m, d = value.dtype.type(rate), value.dtype.type(momentum), value.dtype.type(decay)
    weight, slope = _part(value, start, stop), _part(gradient, start, stop)
    if len(velocity) == 0:
        for i in range(len(weight)):
            weight[i] -= r * (slope[i] + d * weight[i])
        return
    moving = _part(velocity, start, stop)
    for i in range(len(weight)):
        step = slope[i] + d * weight[i]
        v = m * moving[i] + step
        moving[i] = v
        weight[i] -= r * (step + m * v if nesterov else v)


def sgd(value: Any, gradient: Any, velocity: Any, rate: float, momentum: float, nesterov: bool, decay: float) -> None:
    """Take one step of gradient descent, in place; ``velocity`` is None without momentum."""
    moving, weight = np.empty(0, value.dtype) if velocity is None else velocity.reshape(-1), _line(value)
    _run(_sgd, value.size, weight, _line(gradient), moving, rate, momentum, nesterov, decay)
    _put_back(weight, value)


@kernel()
def _adam(start, stop, value, gradient, first, second, rate, beta1, beta2, epsilon, decay, decoupled, scale, shrinkage):
    kind = value.dtype.type
    r, e, d, s, shrink = kind(rate), kind(epsilon), kind(decay), kind(scale), kind(shrinkage)
    b1, b2, c1, c2 = kind(beta1), kind(beta2), kind(1 - beta1), kind(1 - beta2)
    weight, slope = _part(value, start, stop), _part(gradient, start, stop)
    mean, square = _part(first, start, stop), _part(second, start, stop)
    for i in range(len(weight)):
        g, v = slope[i], weight[i]
        if decoupled:
            v -= shrink * v
        else:
            g += d * v
        mean[i] = b1 * mean[i] + c1 * g
        square[i] = b2 * square[i] + c2 * g * g
        weight[i] = v - r * mean[i] / (np.sqrt(square[i]) * s + e)


def adam(
    value: Any, gradient: Any, first: Any, second: Any, rate: float, beta1: float, beta2: float, epsilon: float,
    decay: float, decoupled: bool, step: int,
) -> None:  # fmt: skip
    """Take step number ``step`` (from 1) of Adam, in place."""
    shrinkage = rate * decay
    rate, scale = rate / (1 - beta1**step), 1 / (1 - beta2**step) ** 0.5
    weight = _line(value)
    arrays = weight, _line(gradient), first.reshape(-1), second.reshape(-1)
    _run(_adam, value.size, *arrays, rate, beta1, beta2, epsilon, decay, decoupled, scale, shrinkage)
    _put_back(weight, value)


def _target(like: Any, out: Any) -> Any:
    """Return an array to compute into: ``out`` if that is one vector in memory."""
    return out if out is not None and out.flags.c_contiguous else np.empty(like.shape, like.dtype)


def _stored(y: Any, out: Any) -> Any:
    """Return what was computed, in ``out`` if there is one."""
    if out is None or out is y:
        return y
    out[...] = y
    return out


def _line(array: Any) -> Any:
    """Return an array as one vector, copied only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1)


def _put_back(line: Any, array: Any) -> None:
    """Write a vector that `_line` made, and that has changed, back to where it came from."""
    if not array.flags.c_contiguous:
        array[...] = line.reshape(array.shape)
