"""Kernels whose unit is a row: layer, group and instance normalisation, softmax and cross-entropy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from fastconv.nn.native.compiling import kernel, run


@kernel(sums=True)
def _normalise(start, stop, x, weight, bias, y, groups, segments, length, epsilon, mean, inverse):
    count = segments * length
    for row in range(start, stop):
        source, target = x[row * count :][:count], y[row * count :][:count]
        total = 0.0
        for i in range(count):
            total += source[i]
        centre = x.dtype.type(total / count)
        squares = 0.0
        for i in range(count):
            distance = source[i] - centre
            squares += np.float64(distance) * np.float64(distance)
        scale = x.dtype.type(1 / np.sqrt(squares / count + epsilon))
        mean[row], inverse[row] = centre, scale
        first = row % groups * segments
        if length == 1:
            for i in range(count):
                target[i] = (source[i] - centre) * scale * weight[first + i] + bias[first + i]
        else:
            for segment in range(segments):
                a, b = weight[first + segment] * scale, bias[first + segment]
                for i in range(segment * length, (segment + 1) * length):
                    target[i] = (source[i] - centre) * a + b


def normalise(
    x: Any, weight: Any, bias: Any, rows: int, groups: int, segments: int, epsilon: float
) -> tuple[Any, Any, Any]:
    """Normalise rows; row r has ``segments`` segments, which have weights from ``r % groups * segments`` on.

    Returns
    -------
    y, mean, inverse : array
        The result, and for each row the mean and the inverse of the standard deviation.
    """
    x = np.ascontiguousarray(x)
    y = np.empty(x.shape, x.dtype)
    mean, inverse = np.empty(rows, x.dtype), np.empty(rows, x.dtype)
    length = x.size // max(rows * segments, 1)
    arguments = x.reshape(-1), weight, bias, y.reshape(-1), groups, segments, length, epsilon, mean, inverse
    run(_normalise, rows, 3 * x.size, *arguments)
    return y, mean, inverse


@kernel(sums=True)
def _normalise_gradient(start, stop, dy, x, weight, dx, groups, segments, length, mean, inverse):
    count = segments * length
    for row in range(start, stop):
        gradient, source, target = dy[row * count :][:count], x[row * count :][:count], dx[row * count :][:count]
        centre, scale = mean[row], inverse[row]
        first = row % groups * segments
        total, along = 0.0, 0.0
        for segment in range(segments):
            w = weight[first + segment]
            for i in range(segment * length, (segment + 1) * length):
                value = gradient[i] * w
                total += value
                along += np.float64(value) * np.float64((source[i] - centre) * scale)
        a, b = x.dtype.type(total / count), x.dtype.type(along / count)
        for segment in range(segments):
            w = weight[first + segment]
            for i in range(segment * length, (segment + 1) * length):
                target[i] = (gradient[i] * w - a - (source[i] - centre) * scale * b) * scale


@kernel(sums=True)
def _weight_gradient(start, stop, dy, x, rows, groups, segments, length, mean, inverse, dweight, dbias):
    count = segments * length
    for index in range(start, stop):
        along, total = 0.0, 0.0
        for row in range(index // segments, rows, groups):
            centre, scale = mean[row], inverse[row]
            place = row * count + index % segments * length
            gradient, source = dy[place:][:length], x[place:][:length]
            for i in range(length):
                total += gradient[i]
                along += np.float64(gradient[i]) * np.float64((source[i] - centre) * scale)
        dweight[index], dbias[index] = along, total


def normalise_gradient(
    dy: Any, x: Any, weight: Any, mean: Any, inverse: Any, groups: int, segments: int
) -> tuple[Any, Any, Any]:
    """Return the gradients for x, weight and bias of `normalise`."""
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    dx = np.empty(x.shape, x.dtype)
    dweight, dbias = np.empty_like(weight), np.empty_like(weight)
    rows = len(mean)
    sizes = groups, segments, x.size // max(rows * segments, 1)
    given = dy.reshape(-1), x.reshape(-1)
    run(_normalise_gradient, rows, 2 * x.size, *given, weight, dx.reshape(-1), *sizes, mean, inverse)
    run(_weight_gradient, len(weight), x.size, *given, rows, *sizes, mean, inverse, dweight, dbias)
    return dx, dweight, dbias


@njit(fastmath={"reassoc", "contract"})
def _exponentials(source, target):
    """Write the exponentials of a row less its greatest element; return that and their sum."""
    largest = source[0]
    for i in range(len(source)):
        largest = max(largest, source[i])
    total = 0.0
    for i in range(len(source)):
        value = math.exp(source[i] - largest)
        target[i] = value
        total += value
    return largest, total


@kernel(sums=True)
def _softmax(start, stop, x, y):
    for row in range(start, stop):
        target = y[row]
        _, total = _exponentials(x[row], target)
        factor = x.dtype.type(1 / total)
        for i in range(len(target)):
            target[i] *= factor


def softmax(x: Any) -> Any:
    """Return exponentials along the last axis, divided by their sum."""
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    y = np.empty(rows.shape, x.dtype)
    run(_softmax, len(rows), 8 * x.size, rows, y)
    return y.reshape(x.shape)


@kernel(sums=True)
def _softmax_gradient(start, stop, dy, y, dx):
    for row in range(start, stop):
        gradient, output, target = dy[row], y[row], dx[row]
        total = 0.0
        for i in range(len(output)):
            total += np.float64(gradient[i]) * np.float64(output[i])
        mean = y.dtype.type(total)
        for i in range(len(output)):
            target[i] = (gradient[i] - mean) * output[i]


def softmax_gradient(dy: Any, y: Any) -> Any:
    """Return the gradient for x of `softmax`, of which y is the output."""
    rows = np.ascontiguousarray(y).reshape(-1, y.shape[-1])
    dx = np.empty(rows.shape, y.dtype)
    run(_softmax_gradient, len(rows), 2 * y.size, np.ascontiguousarray(dy).reshape(rows.shape), rows, dx)
    return dx.reshape(y.shape)


@kernel(sums=True)
def _cross_entropy(start, stop, logits, labels, losses, gradient):
    n = len(logits)
    for row in range(start, stop):
        source, target = logits[row], gradient[row]
        largest, total = _exponentials(source, target)
        factor = logits.dtype.type(1 / (total * n))
        for i in range(len(source)):
            target[i] *= factor
        label = labels[row]
        losses[row] = math.log(total) - np.float64(source[label] - largest)
        target[label] -= logits.dtype.type(1.0 / n)


def cross_entropy(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return each row's softmax cross-entropy (float64), and the gradient of their mean for the logits."""
    logits = np.ascontiguousarray(logits)
    losses, gradient = np.empty(len(logits), np.float64), np.empty(logits.shape, logits.dtype)
    run(_cross_entropy, len(logits), 8 * logits.size, logits, labels, losses, gradient)
    return losses, gradient


@kernel()
def _neighbours(start, stop, x, y, base, channels, length, size, alpha, beta, k):
    """Local response normalisation; a unit is an image. Windows start ``size // 2`` channels before."""
    kind = x.dtype.type
    a, offset, exponent = kind(alpha / size), kind(k), kind(-beta)
    quick = beta == 0.75
    for image in range(start, stop):
        first = image * channels * length
        for channel in range(channels):
            sums = base[first + channel * length :][:length]
            sums[:] = offset
            low, high = max(0, channel - size // 2), min(channels, channel - size // 2 + size)
            for other in range(low, high):
                source = x[first + other * length :][:length]
                for i in range(length):
                    sums[i] += a * source[i] * source[i]
            source = x[first + channel * length :][:length]
            target = y[first + channel * length :][:length]
            if quick:
                for i in range(length):
                    root = np.sqrt(sums[i])
                    target[i] = source[i] / (root * np.sqrt(root))
            else:
                for i in range(length):
                    target[i] = source[i] * sums[i] ** exponent


def neighbours(x: Any, size: int, alpha: float, beta: float, k: float) -> tuple[Any, Any]:
    """Return ``x / base ** beta`` and base, which is ``k + alpha / size * (sum of squares over size channels)``."""
    x = np.ascontiguousarray(x)
    y, base = np.empty(x.shape, x.dtype), np.empty(x.shape, x.dtype)
    n, c = x.shape[:2]
    lines = x.reshape(-1), y.reshape(-1), base.reshape(-1)
    run(_neighbours, n, 8 * x.size, *lines, c, math.prod(x.shape[2:]), size, float(alpha), float(beta), float(k))
    return y, base


@kernel()
def _neighbours_gradient(start, stop, dy, x, y, base, dx, channels, length, size, alpha, beta):
    kind = x.dtype.type
    factor = kind(2 * alpha * beta / size)
    exponent = kind(-beta)
    quick = beta == 0.75
    for image in range(start, stop):
        first = image * channels * length
        for channel in range(channels):
            target = dx[first + channel * length :][:length]
            sums = base[first + channel * length :][:length]
            gradient = dy[first + channel * length :][:length]
            if quick:
                for i in range(length):
                    root = np.sqrt(sums[i])
                    target[i] = gradient[i] / (root * np.sqrt(root))
            else:
                for i in range(length):
                    target[i] = gradient[i] * sums[i] ** exponent
            source = x[first + channel * length :][:length]
            # The channels whose windows hold this one.
            low, high = max(0, channel + size // 2 - size + 1), min(channels, channel + size // 2 + 1)
            for other in range(low, high):
                place = first + other * length
                gradient, output, sums = dy[place:][:length], y[place:][:length], base[place:][:length]
                for i in range(length):
                    target[i] -= factor * source[i] * gradient[i] * output[i] / sums[i]


def neighbours_gradient(dy: Any, x: Any, y: Any, base: Any, size: int, alpha: float, beta: float) -> Any:
    """Return the gradient for x of `neighbours`."""
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    dx = np.empty(x.shape, x.dtype)
    n, c = x.shape[:2]
    lines = dy.reshape(-1), x.reshape(-1), y.reshape(-1), base.reshape(-1), dx.reshape(-1)
    run(_neighbours_gradient, n, 16 * x.size, *lines, c, math.prod(x.shape[2:]), size, float(alpha), float(beta))
    return dx
