"""Kernels on maps, whose unit is a channel or a plane: normalisation, gates, slopes, biases.

Every map is a `Flat`. Sums over a channel are made in float64 by one thread, image after image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from fastconv.nn.native.compiling import kernel, run
from fastconv.nn.native.elementwise import KINDS, finish, slope_at
from fastconv.nn.native.flat import flat, images_are_contiguous, nothing


@cache
def _affine(kind: int, residual: bool) -> Any:
    @kernel()
    def planes(start, stop, x, x_step, scale, shift, r, r_step, y, y_step, length, slope):
        channels = len(scale)
        low = x.dtype.type(slope)
        for unit in range(start, stop):
            image, channel = unit // channels, unit % channels
            source = x[image * x_step + channel * length :][:length]
            added = r[image * r_step + channel * length :][:length] if residual else r
            target = y[image * y_step + channel * length :][:length]
            a, b = scale[channel], shift[channel]
            for i in range(length):
                value = source[i] * a + b
                if residual:
                    value += added[i]
                target[i] = finish(value, kind, low)

    return planes


def affine(
    x: Any, scale: Any, shift: Any, activation: str | None, slope: float, residual: Any = None, out: Any = None
) -> Any:
    """Scale and shift every channel, add the residual, and apply an activation."""
    y = np.empty(x.shape, x.dtype) if out is None else out
    n, c = x.shape[:2]
    added = (nothing(x), 0) if residual is None else flat(residual)
    body = _affine(KINDS[activation], residual is not None)
    run(body, n * c, x.size, *flat(x), scale, shift, *added, *flat(y), _length(x), slope)
    return y


@cache
def _batch_norm(kind: int, residual: bool) -> Any:
    @kernel(sums=True)
    def channels(start, stop, x, x_step, weight, bias, r, r_step, y, y_step, n, length, epsilon, slope, mean, variance):
        low = x.dtype.type(slope)
        count = n * length
        for channel in range(start, stop):
            total = 0.0
            for image in range(n):
                source = x[image * x_step + channel * length :][:length]
                for i in range(length):
                    total += source[i]
            middle = total / count
            centre = x.dtype.type(middle)
            squares = 0.0
            for image in range(n):
                source = x[image * x_step + channel * length :][:length]
                for i in range(length):
                    distance = source[i] - centre
                    squares += np.float64(distance) * np.float64(distance)
            mean[channel] = centre
            variance[channel] = squares / count
            a = x.dtype.type(weight[channel] / np.sqrt(squares / count + epsilon))
            b = bias[channel]
            for image in range(n):
                source = x[image * x_step + channel * length :][:length]
                added = r[image * r_step + channel * length :][:length] if residual else r
                target = y[image * y_step + channel * length :][:length]
                for i in range(length):
                    value = (source[i] - centre) * a + b
                    if residual:
                        value += added[i]
                    target[i] = finish(value, kind, low)

    return channels


def batch_norm(
    x: Any, weight: Any, bias: Any, epsilon: float, activation: str | None, slope: float, residual: Any = None
) -> tuple[Any, Any, Any]:
    """Normalise every channel over the batch, scale, shift, add the residual, activate; return mean and variance too.

    The variance is that of the batch itself (divided by the number of elements), in float64.
    """
    y = np.empty(x.shape, x.dtype)
    n, c = x.shape[:2]
    mean, variance = np.empty(c, x.dtype), np.empty(c, np.float64)
    added = (nothing(x), 0) if residual is None else flat(residual)
    body = _batch_norm(KINDS[activation], residual is not None)
    sizes = n, _length(x)
    run(body, c, 3 * x.size, *flat(x), weight, bias, *added, *flat(y), *sizes, epsilon, slope, mean, variance)
    return y, mean, variance


@cache
def _batch_norm_gradient(kind: int, residual: bool) -> Any:
    @kernel(sums=True)
    def channels(
        start, stop, dy, dy_step, x, x_step, r, r_step, dx, dx_step, n, length, mean, variance, weight, bias,
        epsilon, slope, dweight, dbias,
    ):  # fmt: skip
        low = x.dtype.type(slope)
        count = n * length
        for channel in range(start, stop):
            centre = mean[channel]
            inverse = 1 / np.sqrt(variance[channel] + epsilon)
            # What the forward pass made of an element is made again: to read it would take longer.
            scale, shift = x.dtype.type(weight[channel] / np.sqrt(variance[channel] + epsilon)), bias[channel]
            total, along = 0.0, 0.0
            for image in range(n):
                source = x[image * x_step + channel * length :][:length]
                gradient = dy[image * dy_step + channel * length :][:length]
                for i in range(length):
                    value, distance = gradient[i], source[i] - centre
                    if kind:
                        value *= slope_at(finish(distance * scale + shift, kind, low), kind, low)
                    total += value
                    along += np.float64(value) * np.float64(distance)
            dweight[channel] = along * inverse
            dbias[channel] = total
            a = x.dtype.type(weight[channel] * inverse)
            b = x.dtype.type(total / count)
            c = x.dtype.type(along * inverse * inverse / count)
            for image in range(n):
                source = x[image * x_step + channel * length :][:length]
                gradient = dy[image * dy_step + channel * length :][:length]
                added = r[image * r_step + channel * length :][:length] if residual else r
                target = dx[image * dx_step + channel * length :][:length]
                for i in range(length):
                    value, distance = gradient[i], source[i] - centre
                    if kind:
                        value *= slope_at(finish(distance * scale + shift, kind, low), kind, low)
                    value = (value - b - distance * c) * a
                    if residual:
                        value += added[i]
                    target[i] = value

    return channels


def batch_norm_gradient(
    dy: Any, x: Any, mean: Any, variance: Any, weight: Any, bias: Any, epsilon: float, activation: str | None,
    slope: float, added: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Return the gradients for x, weight and bias of `batch_norm`, without a residual.

    What is ``added`` is another gradient for x.
    """
    dx = np.empty(x.shape, x.dtype)
    n, c = x.shape[:2]
    dweight, dbias = np.empty(c, x.dtype), np.empty(c, x.dtype)
    other = (nothing(x), 0) if added is None else flat(added)
    body = _batch_norm_gradient(KINDS[activation], added is not None)
    maps = *flat(dy), *flat(x), *other, *flat(dx)
    run(body, c, 3 * x.size, *maps, n, _length(x), mean, variance, weight, bias, epsilon, slope, dweight, dbias)
    return dx, dweight, dbias


@kernel()
def _accumulate(start, stop, total, total_step, part, part_step, length):
    for image in range(start, stop):
        target, source = total[image * total_step :][:length], part[image * part_step :][:length]
        for i in range(length):
            target[i] += source[i]


def accumulate(total: Any, part: Any) -> None:
    """Add a part to a total, in place."""
    if not images_are_contiguous(total):
        np.add(total, part, out=total)
        return
    run(_accumulate, len(total), total.size, *flat(total), *flat(part), total.size // max(len(total), 1))


@kernel()
def _copy(start, stop, target, target_step, part, part_step, length):
    for image in range(start, stop):
        target[image * target_step :][:length] = part[image * part_step :][:length]


def concatenate(parts: Sequence[Any]) -> Any:
    """Return maps side by side along the channels."""
    (n, _, *spatial), dtype = parts[0].shape, parts[0].dtype
    y, stop = np.empty((n, sum(part.shape[1] for part in parts), *spatial), dtype), 0
    for part in parts:
        start, stop = stop, stop + part.shape[1]
        run(_copy, n, part.size, *flat(y[:, start:stop]), *flat(part), part.size // max(n, 1))
    return y


@cache
def _bias_gradient(kind: int) -> Any:
    @kernel(sums=True)
    def channels(start, stop, dy, dy_step, y, y_step, dz, dz_step, n, length, slope, dbias):
        low = dy.dtype.type(slope)
        for channel in range(start, stop):
            total = 0.0
            for image in range(n):
                gradient = dy[image * dy_step + channel * length :][:length]
                output = y[image * y_step + channel * length :][:length]
                target = dz[image * dz_step + channel * length :][:length]
                for i in range(length):
                    value = gradient[i]
                    if kind:
                        value *= slope_at(output[i], kind, low)
                        target[i] = value
                    total += value
            dbias[channel] = total

    return channels


def bias_gradient(dy: Any, y: Any, activation: str | None, slope: float) -> tuple[Any, Any]:
    """Return the gradient before the activation, and its sum over each channel."""
    n, c = dy.shape[:2]
    dbias = np.empty(c, dy.dtype)
    dz = dy if activation is None else np.empty(dy.shape, dy.dtype)
    given = flat(dy)
    others = (*given, *given) if activation is None else (*flat(y), *flat(dz))
    run(_bias_gradient(KINDS[activation]), c, dy.size, *given, *others, n, _length(dy), slope, dbias)
    return dz, dbias


@cache
def _gate(kind: int, residual: bool) -> Any:
    @kernel()
    def planes(start, stop, x, x_step, gate, r, r_step, y, y_step, channels, length):
        low = x.dtype.type(0)
        for unit in range(start, stop):
            image, channel = unit // channels, unit % channels
            source = x[image * x_step + channel * length :][:length]
            added = r[image * r_step + channel * length :][:length] if residual else r
            target = y[image * y_step + channel * length :][:length]
            a = gate[unit]
            for i in range(length):
                value = source[i] * a
                if residual:
                    value += added[i]
                target[i] = finish(value, kind, low)

    return planes


def gate(x: Any, factors: Any, activation: str | None, residual: Any = None, out: Any = None) -> Any:
    """Multiply every plane by its factor (N, C), add the residual, and apply an activation."""
    y = np.empty(x.shape, x.dtype) if out is None else out
    n, c = x.shape[:2]
    added = (nothing(x), 0) if residual is None else flat(residual)
    factors = np.ascontiguousarray(factors).reshape(-1)
    body = _gate(KINDS[activation], residual is not None)
    run(body, n * c, x.size, *flat(x), factors, *added, *flat(y), c, _length(x))
    return y


@kernel(sums=True)
def _gate_gradient(start, stop, dy, dy_step, x, x_step, gate, dx, channels, length, dgate):
    for unit in range(start, stop):
        image, channel = unit // channels, unit % channels
        gradient = dy[image * dy_step + channel * length :][:length]
        source = x[image * x_step + channel * length :][:length]
        target = dx[unit * length :][:length]
        a = gate[unit]
        total = 0.0
        for i in range(length):
            target[i] = gradient[i] * a
            total += np.float64(gradient[i]) * np.float64(source[i])
        dgate[unit] = total


def gate_gradient(dy: Any, x: Any, factors: Any) -> tuple[Any, Any]:
    """Return the gradients for x and for the factors of `gate`."""
    n, c = x.shape[:2]
    dx, dgate = np.empty(x.shape, x.dtype), np.empty((n, c), x.dtype)
    factors = np.ascontiguousarray(factors).reshape(-1)
    arguments = *flat(dy), *flat(x), factors, dx.reshape(-1), c, _length(x), dgate.reshape(-1)
    run(_gate_gradient, n * c, 2 * x.size, *arguments)
    return dx, dgate


@kernel()
def _prelu(start, stop, x, slopes, y, channels, length):
    for unit in range(start, stop):
        source, target = x[unit * length :][:length], y[unit * length :][:length]
        slope = slopes[unit % channels % len(slopes)]
        for i in range(length):
            value = source[i]
            target[i] = value * slope if value < 0 else value


def prelu(x: Any, slopes: Any) -> Any:
    """Multiply what is negative by its channel's slope, or by the only one."""
    y = np.empty(x.shape, x.dtype)
    data, _ = flat(x)
    if not x.flags.c_contiguous:
        data = np.ascontiguousarray(x).reshape(-1)
    n, c = x.shape[:2]
    run(_prelu, n * c, x.size, data, slopes, y.reshape(-1), c, _length(x))
    return y


@kernel(sums=True)
def _prelu_gradient(start, stop, dy, dy_step, x, x_step, slopes, dx, n, channels, length, dslopes):
    for channel in range(start, stop):
        slope = slopes[channel % len(slopes)]
        total = 0.0
        for image in range(n):
            gradient = dy[image * dy_step + channel * length :][:length]
            source = x[image * x_step + channel * length :][:length]
            target = dx[(image * channels + channel) * length :][:length]
            for i in range(length):
                positive = source[i] > 0
                target[i] = gradient[i] if positive else gradient[i] * slope
                total += 0.0 if positive else np.float64(gradient[i]) * np.float64(source[i])
        dslopes[channel] = total


def prelu_gradient(dy: Any, x: Any, slopes: Any) -> tuple[Any, Any]:
    """Return the gradients for x and for the slopes of `prelu`."""
    n, c = x.shape[:2]
    dx, dslopes = np.empty(x.shape, x.dtype), np.empty(c, np.float64)
    arguments = *flat(dy), *flat(x), slopes, dx.reshape(-1), n, c, _length(x), dslopes
    run(_prelu_gradient, c, x.size, *arguments)
    if len(slopes) < c:
        dslopes = dslopes.sum(keepdims=True)
    return dx, dslopes.astype(x.dtype)


def _length(x: Any) -> int:
    """Return the elements of a plane."""
    return math.prod(x.shape[2:])
