"""OpenVINO: a model of one operation, compiled for latency, in float32 even where the CPU has faster half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.peer import CONVOLUTIONS, Peer, is_global_average
from fastconv.algorithm import AnyProblem
from fastconv.problem import ConvProblem, PoolProblem


class OpenVino(Peer):
    """The CPU plugin, reading and writing the caller's memory."""

    name = "openvino"
    library = "openvino"
    ops: ClassVar[frozenset[str]] = CONVOLUTIONS | {
        f"{kind}_pool{ndim}d" for kind in ("max", "avg", "adaptive_avg") for ndim in (1, 2, 3)
    }

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        adaptive = problem.op.startswith("adaptive")
        yield adaptive and not is_global_average(problem), "has adaptive pools to 1x1 only"
        yield getattr(problem, "divisor_override", None) is not None, "has no divisor of one's own"
        included = problem.op.startswith("avg") and getattr(problem, "count_include_pad", False)
        yield included and getattr(problem, "ceil_mode", False), "counts what lies beyond the padding when it rounds up"

    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        import openvino as ov
        from openvino import opset14 as ops

        node = ops.parameter(problem.x_shape, np.float32)
        x, y = inputs[0], np.empty(problem.y_shape, np.float32)
        if isinstance(problem, ConvProblem):
            result = _convolution(ops, problem, node, inputs[1:])
        else:
            result = _pool(ops, problem, node)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = ov.Core().compile_model(ov.Model([result], [node], "layer"), "CPU", settings).create_infer_request()
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))
        request.set_output_tensor(ov.Tensor(y, shared_memory=True))

        def run() -> Any:
            request.infer(share_outputs=True)
            return y

        return run


def _convolution(ops: Any, problem: ConvProblem, x: Any, constants: tuple[Any, ...]) -> Any:
    w, *bias = constants
    if problem.op == "linear":
        y = ops.matmul(x, ops.constant(w), False, True)
    else:
        before, after = (list(pads) for pads in zip(*problem.padding, strict=True))
        window = list(problem.stride), before, after, list(problem.dilation)
        if problem.groups == 1:
            y = ops.convolution(x, ops.constant(w), *window)
        else:
            grouped = w.reshape(problem.groups, problem.oc // problem.groups, *w.shape[1:])
            y = ops.group_convolution(x, ops.constant(grouped), *window)
    for values in bias:
        y = ops.add(y, ops.constant(values.reshape(1, -1, *(1,) * problem.ndim)))
    return y


def _pool(ops: Any, problem: PoolProblem, x: Any) -> Any:
    if is_global_average(problem):
        return ops.reduce_mean(x, list(range(2, 2 + problem.ndim)), keep_dims=True)
    before, after = (list(pads) for pads in zip(*problem.padding, strict=True))
    stride, kernel = list(problem.stride), list(problem.kernel_size)
    rounding = "ceil_torch" if problem.ceil_mode else "floor"
    if problem.is_max:
        return ops.max_pool(x, stride, list(problem.dilation), before, after, kernel, rounding).output(0)
    return ops.avg_pool(x, stride, before, after, kernel, not problem.count_include_pad, rounding)
