"""Losses: a number for what a network made, and its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from fastconv.arrays import Array
from fastconv.nn import checks, plain
from fastconv.nn.compute import for_array


class Loss(ABC):
    """A loss. ``value = loss.forward(outputs, targets)``, then ``gradient = loss.backward()``."""

    _gradient: Any = None

    @abstractmethod
    def forward(self, outputs: Array, targets: Array) -> float:
        """Return the loss, and keep its gradient for `backward`."""

    def __call__(self, outputs: Array, targets: Array) -> float:
        return self.forward(outputs, targets)

    def backward(self) -> Array:
        """Return the gradient of the last loss with respect to the outputs.

        Raises
        ------
        RuntimeError
            If no loss was computed before.
        """
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            raise RuntimeError("backward: no loss has been computed since the last backward")
        return gradient


def _check(outputs: Any) -> None:
    """Check what a loss is the mean of."""
    checks.floats("outputs", outputs)
    if not outputs.size:
        raise ValueError(f"outputs: there is no mean of nothing, got shape {outputs.shape}")


class MeanSquaredError(Loss):
    """The mean of all squared differences; targets are numbers of the outputs' shape."""

    def forward(self, outputs: Array, targets: Array) -> float:
        _check(outputs)
        checks.alike("targets", targets, outputs.shape)
        difference = plain.wide(outputs) - plain.wide(targets)
        self._gradient = (difference * (2 / outputs.size)).astype(outputs.dtype)
        return float((difference * difference).mean(dtype=np.float64))


class SoftmaxCrossEntropy(Loss):
    """Minus the logarithm of the softmax at each image's class, averaged over the batch.

    Outputs are what the softmax would get, of shape (N, classes); targets are class numbers, of shape (N,).
    """

    def forward(self, outputs: Array, targets: Array) -> float:
        _check(outputs)
        if outputs.ndim != 2:
            raise ValueError(f"outputs: expected shape (N, classes), got {outputs.shape}")
        if not hasattr(targets, "dtype") or targets.shape != outputs.shape[:1]:
            shape = getattr(targets, "shape", type(targets).__name__)
            raise ValueError(f"targets: expected class numbers of shape {outputs.shape[:1]}, got {shape}")
        if targets.dtype.kind not in "iu":
            raise TypeError(f"targets: expected integers, got {targets.dtype}")
        least, most = int(targets.min()), int(targets.max())
        if least < 0 or most >= outputs.shape[1]:
            raise ValueError(f"targets: expected classes from 0 to {outputs.shape[1] - 1}, got {least} to {most}")
        losses, self._gradient = for_array(outputs).cross_entropy(outputs, targets.astype(np.int64, copy=False))
        return float(losses.mean())
