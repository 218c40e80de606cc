"""Operators that ONNX's reference evaluator computes otherwise than ONNX describes them.

Of several operators it has only the newest version and takes it for the older ones, too. Models of older opsets are
common, so an `Evaluator` has these.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fastconv.onnx.base import Op


class LRN(Op):
    """Normalisation by the squares of neighbouring channels, of every channel (the reference: of the first N)."""

    def _run(self, x: Any, alpha: Any = None, beta: Any = None, bias: Any = None, size: Any = None) -> tuple[Any, ...]:
        size, dtype = int(size), x.dtype.type
        before, channels = (size - 1) // 2, x.shape[1]
        squares = np.zeros((x.shape[0], channels + size - 1, *x.shape[2:]), x.dtype)
        np.multiply(x, x, out=squares[:, before : before + channels])
        sums = squares[:, :channels].copy()
        for i in range(1, size):
            sums += squares[:, i : i + channels]
        sums *= dtype(alpha / size)
        sums += dtype(bias)
        if beta == 0.75:  # as most networks have it; a power takes many times as long as two roots
            root = np.sqrt(sums)
            np.multiply(root, np.sqrt(root), out=sums)
        else:
            np.power(sums, dtype(beta), out=sums)
        return (np.divide(x, sums, out=sums),)


class _Flattened(Op):
    """Before opset 13, what stands from ``axis`` on counts as one axis."""

    def _run(self, x: Any, axis: Any = None) -> tuple[Any, ...]:
        axis = int(1 if axis is None else axis)
        rows = x.reshape(math.prod(x.shape[: axis % x.ndim if axis != x.ndim else axis]), -1)
        return (self._of_rows(rows).astype(x.dtype, copy=False).reshape(x.shape),)

    def _of_rows(self, rows: Any) -> Any:
        raise NotImplementedError


class Softmax_11(_Flattened):  # noqa: N801
    """The exponentials over their sum."""

    def _of_rows(self, rows: Any) -> Any:
        powers = np.exp(rows - rows.max(1, keepdims=True, initial=-np.inf))
        powers /= powers.sum(1, keepdims=True)
        return powers


class LogSoftmax_11(_Flattened):  # noqa: N801
    """The logarithm of `Softmax_11`."""

    def _of_rows(self, rows: Any) -> Any:
        shifted = rows - rows.max(1, keepdims=True, initial=-np.inf)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


class Hardmax_11(_Flattened):  # noqa: N801
    """One where the first maximum is, zero elsewhere."""

    def _of_rows(self, rows: Any) -> Any:
        result = np.zeros_like(rows)
        if rows.size:
            result[np.arange(len(rows)), rows.argmax(1)] = 1
        return result


class BatchNormalization_9(Op):  # noqa: N801
    """Normalisation by the given mean and variance (the reference mixes those of the batch in, and before 7 fails)."""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, variance: Any, **attributes: Any) -> tuple[Any, ...]:
        epsilon = float(attributes["epsilon"])
        per_channel = (-1, *(1,) * (x.ndim - 2))
        factor = scale / np.sqrt(variance + scale.dtype.type(epsilon))
        result = x * factor.reshape(per_channel)
        result += (bias - mean * factor).reshape(per_channel)
        return (result.astype(x.dtype, copy=False),)


def normalises_as_given(node: Any) -> bool:
    """Whether a BatchNormalization node of an opset before 14 is not for training: it has one output."""
    attributes = {a.name: a.i for a in node.attribute}
    return not any(node.output[1:]) and attributes.get("spatial", 1) == 1


def _is_test(node: Any) -> bool:
    return any(a.name == "is_test" and a.i for a in node.attribute) and normalises_as_given(node)


# operator: (first opset, first opset no more, whether it is for this node, class)
_CORRECTED: dict[str, list[tuple[int, int, Any, type[OpRun]]]] = {
    "LRN": [(1, 10**6, None, LRN)],
    "Softmax": [(1, 13, None, Softmax_11)],
    "LogSoftmax": [(1, 13, None, LogSoftmax_11)],
    "Hardmax": [(1, 13, None, Hardmax_11)],
    "BatchNormalization": [
        (7, 14, normalises_as_given, BatchNormalization_9),
        (1, 7, _is_test, BatchNormalization_9),
    ],
}


def corrected(node: Any, version: int) -> type[OpRun] | None:
    """Return the class to be used for a node of the main domain, if the reference evaluator's is not to be."""
    for first, end, applies, made in _CORRECTED.get(node.op_type, ()):
        if first <= version < end and (applies is None or applies(node)):
            return made
    return None
