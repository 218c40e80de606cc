"""PyTorch at its best: weights in oneDNN's own order beforehand, maps channels-last, as `torch.compile` runs a layer.

Measured against `torch.jit.optimize_for_inference`, which packs weights too, this is the faster way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from benchmarks.peers.torch import TorchChannelsLast
from fastconv.algorithm import AnyProblem
from fastconv.problem import ConvProblem


class TorchPrepacked(TorchChannelsLast):
    """The operators that `torch.compile` emits for a frozen convolution."""

    name = "torch channels-last prepacked"
    ops: ClassVar[frozenset[str]] = frozenset({"conv2d", "conv3d"})
    directions: ClassVar[tuple[str, ...]] = ("fprop",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        import torch

        yield not torch._C._has_mkldnn, "was built without oneDNN"

    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        import torch

        assert isinstance(problem, ConvProblem)
        torch.set_num_threads(threads)
        x, w, bias = (*(self.laid_out(torch.from_numpy(array)) for array in inputs), None)[:3]
        where = [before for before, _ in problem.padding], problem.stride, problem.dilation, problem.groups
        packed = torch.ops.mkldnn._reorder_convolution_weight(w, *where, x.shape)
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        return lambda: convolve(x, packed, bias, *where, "none", [], "")
