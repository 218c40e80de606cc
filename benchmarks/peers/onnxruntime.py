"""ONNX Runtime: a model of one node, its weights constants, which the session packs when it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.peer import CONVOLUTIONS, Peer, is_global_average
from fastconv.algorithm import AnyProblem
from fastconv.problem import ConvProblem

_OPSET = 22
_NODES = {"linear": "Gemm", "max_pool": "MaxPool", "avg_pool": "AveragePool", "adaptive_avg_pool": "GlobalAveragePool"}


class OnnxRuntime(Peer):
    """The CPU provider with every graph optimisation, reading and writing the caller's memory."""

    name = "onnxruntime"
    library = "onnxruntime"
    needs = ("onnx",)
    ops: ClassVar[frozenset[str]] = CONVOLUTIONS | {
        f"{kind}_pool{ndim}d" for kind in ("max", "avg", "adaptive_avg") for ndim in (1, 2, 3)
    }

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        adaptive = problem.op.startswith("adaptive")
        yield adaptive and not is_global_average(problem), "has adaptive pools to 1x1 only"
        yield getattr(problem, "divisor_override", None) is not None, "has no divisor of one's own"

    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Its threads spin while it runs, which is fastest, but not afterwards, where they would slow down the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(_model(problem, inputs), options, providers=["CPUExecutionProvider"])
        x, y = inputs[0], np.empty(problem.y_shape, inputs[0].dtype)
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return y

        return run


def _model(problem: AnyProblem, inputs: tuple[Any, ...]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    names = ("x", "w", "b")[: len(inputs)]
    kind = problem.op.rstrip("123d")
    node = helper.make_node(_NODES.get(kind, "Conv"), names, ["y"], **_attributes(problem))
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, problem.x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, problem.y_shape)],
        [numpy_helper.from_array(array, name) for name, array in zip(names[1:], inputs[1:], strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def _attributes(problem: AnyProblem) -> dict[str, Any]:
    if problem.op == "linear":
        return {"transB": 1}
    if is_global_average(problem):
        return {}
    before, after = zip(*problem.padding, strict=True)
    window = {
        "kernel_shape": problem.kernel_size,
        "strides": problem.stride,
        "dilations": problem.dilation,
        "pads": (*before, *after),
    }
    if isinstance(problem, ConvProblem):
        return {**window, "group": problem.groups}
    average = {} if problem.is_max else {"count_include_pad": int(problem.count_include_pad)}
    return {**window, "ceil_mode": int(problem.ceil_mode), **average}
