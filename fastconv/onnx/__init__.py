"""ONNX models on fastconv: operators for ONNX's reference evaluator.

``onnx.reference.ReferenceEvaluator(model, new_ops=fastconv.onnx.ops())``. Needs the extra ``fastconv[onnx]``.
"""

try:
    import onnx as _onnx  # noqa: F401
except ImportError as _error:
    raise ImportError("fastconv.onnx needs the onnx package: pip install fastconv[onnx]") from _error

from fastconv.onnx.operators import ops

__all__ = ["ops"]
