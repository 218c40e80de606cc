"""ONNX models on fastconv: a backend, and operators for ONNX's reference evaluator.

``fastconv.onnx.prepare(model, threads=2).run(inputs)`` runs a model; ``fastconv.onnx.ops()`` are the operators alone,
for ``onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.onnx.ops())``. Needs the extra ``fastconv[onnx]``.
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as _error:
    raise ImportError("fastconv.onnx needs the onnx package: pip install fastconv[onnx]") from _error

from fastconv.onnx.backend import (
    FastconvBackend,
    FastconvRep,
    is_compatible,
    prepare,
    run_model,
    run_node,
    supports_device,
)
from fastconv.onnx.evaluator import Evaluator
from fastconv.onnx.operators import ops

__all__ = [
    "Evaluator",
    "FastconvBackend",
    "FastconvRep",
    "is_compatible",
    "ops",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]
