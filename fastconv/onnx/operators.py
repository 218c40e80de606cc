"""The operators that fastconv has, as ONNX's reference evaluator takes them."""

from __future__ import annotations

from onnx.reference.op_run import OpRun

from fastconv.onnx.convolution import Col2Im, Conv, ConvTranspose, DeformConv
from fastconv.onnx.pooling import (
    AveragePool,
    GlobalAveragePool,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    MaxUnpool,
)
from fastconv.onnx.quantized import ConvInteger, QLinearConv

OPERATORS = (
    AveragePool,
    Col2Im,
    Conv,
    ConvInteger,
    ConvTranspose,
    DeformConv,
    GlobalAveragePool,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    MaxUnpool,
    QLinearConv,
)


def ops() -> list[type[OpRun]]:
    """Return fastconv's operators, for ``onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.onnx.ops())``.

    A weight that is an initializer stored as raw data is packed when its node first runs, once for each of up to
    four shapes of the input; a weight that anybody could write to is packed in every call.

    Returns
    -------
    list of classes
    """
    return list(OPERATORS)
