"""ncnn: a network of one layer, written to its two files and loaded again, as it takes no other.

Its Winograd makes it the fastest of the peers on dense 3x3 layers. It knows single images only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.peer import Peer, is_global_average
from fastconv.algorithm import AnyProblem
from fastconv.problem import PoolProblem

_MAGIC = 7767517
_FLOAT32_TAG = np.zeros(1, np.uint32)
# Its Winograd F(6,3) loses more than a plain sum, and most where a tile lies half in the padding: its error goes with
# the largest value of a tile, the bound with the element's own. A wrong result is off by orders of magnitude more.
_WINOGRAD_LOSS = 64
_HALF_PRECISION = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_packed",
    "use_bf16_storage",
)


class Ncnn(Peer):
    """`ncnn.Net` on the CPU with all its algorithms allowed, in float32."""

    name = "ncnn"
    library = "ncnn"
    ops: ClassVar[frozenset[str]] = frozenset({"conv2d", "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"})

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        yield problem.n > 1, "takes one image at a time"
        adaptive = problem.op.startswith("adaptive")
        yield adaptive and not is_global_average(problem), "is measured on adaptive pools to 1x1 only"
        if isinstance(problem, PoolProblem):
            yield problem.ceil_mode, "rounds output sizes up as Caffe does"
            yield problem.divisor_override is not None, "has no divisor of one's own"
            yield max(problem.dilation) > 1, "has no dilated pools"

    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        for name in _HALF_PRECISION:
            if hasattr(net.opt, name):  # they come and go with versions
                setattr(net.opt, name, False)
        with tempfile.TemporaryDirectory() as directory:
            parameters, weights = Path(directory, "layer.param"), Path(directory, "layer.bin")
            parameters.write_text(_network(problem))
            weights.write_bytes(_weights(inputs[1:]))
            for load, path in ((net.load_param, parameters), (net.load_model, weights)):
                if load(str(path)):
                    raise RuntimeError(f"ncnn could not load:\n{_network(problem)}")
        image = inputs[0][0]
        x = ncnn.Mat(image)

        def run() -> Any:
            extractor = net.create_extractor()
            extractor.input("x", x)
            status, y = extractor.extract("y")
            if status:
                raise RuntimeError(f"ncnn failed with status {status}")
            return np.array(y, copy=False).reshape(problem.y_shape)

        return run

    def error_bound(self, problem: AnyProblem) -> float:
        winograd = problem.op == "conv2d" and (problem.kernel_size, problem.stride) == ((3, 3), (1, 1))
        return super().error_bound(problem) * (_WINOGRAD_LOSS if winograd else 1)


def _network(problem: AnyProblem) -> str:
    kind, values = _layer(problem)
    numbers = " ".join(f"{key}={value}" for key, value in values.items())
    return f"{_MAGIC}\n2 2\nInput x 0 1 x\n{kind} layer 1 1 x y {numbers}\n"


def _layer(problem: AnyProblem) -> tuple[str, dict[int, int]]:
    """Return the type of a layer and its parameters by number, as ncnn's documentation of operators lists them."""
    bias = int(getattr(problem, "bias", "none") != "none")
    if is_global_average(problem):
        return "Pooling", {0: 1, 4: 1}
    if problem.op == "linear":
        return "InnerProduct", {0: problem.oc, 1: bias, 2: problem.oc * problem.ic}
    (top, bottom), (left, right) = problem.padding
    if isinstance(problem, PoolProblem):
        window = {1: problem.kw, 11: problem.kh, 2: problem.sw, 12: problem.sh}
        valid = {3: left, 13: top, 14: right, 15: bottom, 5: 1}
        return "Pooling", {0: int(not problem.is_max), **window, **valid, 6: int(problem.count_include_pad)}
    window = {1: problem.kw, 11: problem.kh, 2: problem.dw, 12: problem.dh, 3: problem.sw, 13: problem.sh}
    pads = {4: left, 14: top, 15: right, 16: bottom}
    values = {0: problem.oc, **window, **pads, 5: bias, 6: math.prod(problem.w_shape)}
    return ("Convolution", values) if problem.groups == 1 else ("ConvolutionDepthWise", {**values, 7: problem.groups})


def _weights(constants: tuple[Any, ...]) -> bytes:
    """Return the weight file: the weight after a word for its type, then the bias without."""
    if not constants:
        return b""
    return b"".join(a.tobytes() for a in (_FLOAT32_TAG, *constants))
