"""PyTorch as most programs use it, in its default layout and in channels-last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from benchmarks.peers.peer import CONVOLUTIONS, Peer, symmetric
from fastconv.algorithm import AnyProblem
from fastconv.problem import ConvProblem, PoolProblem

# Channels from which on no abort of PyTorch's was met.
_SAFE_CHANNELS = 16

_POOLS = frozenset(
    f"{kind}_pool{ndim}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for ndim in (1, 2, 3)
)


class Torch(Peer):
    """`torch.nn.functional`; the gradients by the operator that autograd calls."""

    name = "torch"
    library = "torch"
    ops: ClassVar[frozenset[str]] = CONVOLUTIONS | _POOLS | {"unfold"}
    directions: ClassVar[tuple[str, ...]] = ("fprop", "dgrad", "wgrad")
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        yield not symmetric(problem), "pads both sides alike"
        yield problem.op == "unfold" and problem.ndim != 2, "unfolds maps of two axes only"
        backward = problem.direction != "fprop"
        known = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "unfold"}
        yield backward and isinstance(problem, PoolProblem) and problem.op not in known, "has no operator for this pool"
        yield backward and getattr(problem, "bias", "none") != "none", "is measured without a bias in gradients"

    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        import torch

        torch.set_num_threads(threads)
        tensors = [self.laid_out(torch.from_numpy(array)) for array in inputs]
        # Its own are 64-bit integers, whatever ours are.
        tensors = [tensor if tensor.is_floating_point() else tensor.long() for tensor in tensors]
        if isinstance(problem, PoolProblem):
            return _pool(problem, tensors[0]) if problem.direction == "fprop" else self._pool_backward(problem, tensors)
        if problem.direction == "fprop":
            return _forward(problem, tensors)
        return self._backward(problem, tensors)

    def laid_out(self, tensor: Any) -> Any:
        """Return a tensor in the memory order of this row."""
        return tensor

    def step(self, problem: ConvProblem, arrays: tuple[Any, Any, Any], threads: int) -> Callable[[], tuple[Any, ...]]:
        """Return a run of a convolution's forward and backward pass, from x, w and dy to dx and dw, by autograd."""
        import torch

        torch.set_num_threads(threads)
        x, w, dy = (self.laid_out(torch.from_numpy(array)) for array in arrays)
        leaves = [x.requires_grad_(), w.requires_grad_()]
        forward = _forward(problem, leaves)
        return lambda: torch.autograd.grad(forward(), leaves, dy)

    def _backward(self, problem: ConvProblem, tensors: list[Any]) -> Callable[[], Any]:
        import torch

        if problem.op == "linear":
            first, second = tensors
            return (lambda: first @ second) if problem.direction == "dgrad" else (lambda: second.T @ first)
        if problem.direction == "dgrad" and problem.prepacked:
            return _transposed(problem, tensors)
        if problem.direction == "dgrad":
            dy, w = tensors
            # Only its shape is looked at, as autograd's saved input would be.
            x = self.laid_out(torch.empty(problem.x_shape, dtype=dy.dtype))
        else:
            x, dy = tensors
            w = self.laid_out(torch.empty(problem.w_shape, dtype=dy.dtype))
        wanted = [problem.direction == "dgrad", problem.direction == "wgrad", False]
        padding = [before for before, _ in problem.padding]
        backward = torch.ops.aten.convolution_backward.default

        def run() -> Any:
            results = backward(
                dy, x, w, None, problem.stride, padding, problem.dilation, False, [0], problem.groups, wanted
            )
            return results[wanted.index(True)]

        return run

    def _pool_backward(self, problem: PoolProblem, tensors: list[Any]) -> Callable[[], Any]:
        import torch

        aten, dy = torch.ops.aten, tensors[0]
        if problem.op == "unfold":
            return lambda: torch.nn.functional.fold(dy, problem.input_size, **_windows(problem))
        x = self.laid_out(torch.zeros(problem.x_shape, dtype=dy.dtype))
        if problem.is_adaptive:
            return lambda: aten._adaptive_avg_pool2d_backward(dy, x)
        padding = [before for before, _ in problem.padding]
        where = problem.kernel_size, problem.stride, padding
        if problem.is_max:
            backward, indices = aten.max_pool2d_with_indices_backward, tensors[1]
            return lambda: backward(dy, x, *where, problem.dilation, problem.ceil_mode, indices)
        counted = problem.ceil_mode, problem.count_include_pad, problem.divisor_override
        return lambda: aten.avg_pool2d_backward(dy, x, *where, *counted)


class TorchChannelsLast(Torch):
    """The same, on maps and weights that are channels-last in memory, the result too."""

    name = "torch channels-last"
    ops: ClassVar[frozenset[str]] = frozenset(op for op in Torch.ops if op.endswith(("2d", "3d")))
    layouts: ClassVar[tuple[str, ...]] = ("channels_first", "channels_last")

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        # PyTorch 2.13 aborts on two or three channels, having written behind its arrays.
        skips = problem.direction == "wgrad" and max(problem.stride, default=1) > 1 and max(problem.kernel_size) == 1
        few = isinstance(problem, ConvProblem) and problem.ic // problem.groups < _SAFE_CHANNELS
        yield skips and few, "corrupts its memory in strided weight gradients of 1x1 kernels and few channels"

    def laid_out(self, tensor: Any) -> Any:
        import torch

        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tensor.contiguous(memory_format=formats.get(tensor.ndim, torch.contiguous_format))


def _forward(problem: ConvProblem, tensors: list[Any]) -> Callable[[], Any]:
    from torch.nn import functional

    x, w, bias = (*tensors, None)[:3]
    if problem.op == "linear":
        return lambda: functional.linear(x, w, bias)
    convolve = getattr(functional, problem.op)
    padding = tuple(before for before, _ in problem.padding)
    return lambda: convolve(x, w, bias, problem.stride, padding, problem.dilation, problem.groups)


def _transposed(problem: ConvProblem, tensors: list[Any]) -> Callable[[], Any]:
    """Return the run of a transposed convolution: who packs its weight beforehand asks for no gradient."""
    from torch.nn import functional

    dy, w = tensors
    convolve = getattr(functional, problem.op.replace("conv", "conv_transpose"))
    padding = [before for before, _ in problem.padding]
    axes = zip(
        problem.input_size,
        problem.output_size,
        problem.stride,
        problem.dilation,
        problem.kernel_size,
        problem.padding,
        strict=True,
    )
    # What the forward convolution's stride leaves unread.
    rest = [size - ((out - 1) * s + d * (k - 1) + 1 - sum(pad)) for size, out, s, d, k, pad in axes]
    return lambda: convolve(dy, w, None, problem.stride, padding, rest, problem.groups, problem.dilation)


def _windows(problem: PoolProblem) -> dict[str, Any]:
    padding = tuple(before for before, _ in problem.padding)
    return {
        "kernel_size": problem.kernel_size,
        "dilation": problem.dilation,
        "padding": padding,
        "stride": problem.stride,
    }


def _pool(problem: PoolProblem, x: Any) -> Callable[[], Any]:
    from torch.nn import functional

    if problem.op == "unfold":
        return lambda: functional.unfold(x, **_windows(problem))
    pool = getattr(functional, problem.op)
    if problem.is_adaptive:
        return lambda: pool(x, problem.output_size)
    if problem.kind == "lp_pool":
        return lambda: pool(x, problem.norm_type, problem.kernel_size, problem.stride, problem.ceil_mode)
    settings: dict[str, Any] = {
        "padding": tuple(before for before, _ in problem.padding),
        "ceil_mode": problem.ceil_mode,
    }
    if problem.is_max:
        settings["dilation"] = problem.dilation
    else:
        settings["count_include_pad"] = problem.count_include_pad
        if problem.divisor_override is not None:
            settings["divisor_override"] = problem.divisor_override
    return lambda: pool(x, problem.kernel_size, problem.stride, **settings)
