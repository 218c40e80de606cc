"""The operators behind convolutions: three, each of which has its derivatives in the two others.

The sum of ``input * weight * grad_output`` over all windows is linear in each; leaving one out gives its gradient.
``padding`` is one number an axis, or flat: before and after, axis by axis.
"""

from __future__ import annotations

from typing import Any

import torch

from fastconv import grad, ops
from fastconv.torch.core import LIBRARY, Core, folded, front
from fastconv.torch.tensors import Tensor, array, empty_map, optional_array, run, tensor

_WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"


def paired(padding: Any, ndim: int) -> Any:
    """Return padding as fastconv takes it: one number an axis, or a pair."""
    return tuple(padding) if len(padding) == ndim else tuple(zip(padding[::2], padding[1::2], strict=True))


def sides(padding: Any, ndim: int) -> tuple[Any, Any]:
    """Return the padding before and after each axis."""
    return (padding, padding) if len(padding) == ndim else (padding[::2], padding[1::2])


def spans(kernel: Any, dilation: Any) -> list[Any]:
    """Return how far a dilated kernel reaches along each axis."""
    return [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]


def _sum_to_channels(gradient: Tensor) -> Tensor:
    return gradient.sum((0, *range(2, gradient.dim())))


class _Product(Core):
    """What the convolution and its transpose have in common: input, weight and bias to a map."""

    tensors = 3

    def vmap(self, info: Any, dims: Any, x: Tensor, w: Tensor, b: Tensor | None, *args: Any) -> Any:
        size, window, groups = info.batch_size, args[:-1], args[-1]
        inside = b if dims[2] is None and dims[1] is None else None
        if dims[1] is None:
            y, at = self(folded(x, dims[0], size), w, inside, *window, groups).unflatten(0, (size, -1)), 0
        else:  # each element of the batch becomes a group, or several
            channels = front(x, dims[0], size).movedim(0, 1).flatten(1, 2)
            y = self(channels, folded(w, dims[1], size), None, *window, groups * size).unflatten(1, (size, -1))
            y, at = y.movedim(1, 0), 0
        if b is not None and inside is None:
            per_channel = front(b, dims[2], size)
            y = y + per_channel.reshape(size, 1, -1, *(1,) * (y.dim() - 3))
        return y, at

    def autocast(self, x: Tensor, w: Tensor, b: Tensor | None, *args: Any) -> Tensor:
        """Compute in the dtype of autocast, as PyTorch's convolutions do."""
        dtype = torch.get_autocast_dtype("cpu")
        cast = [t.to(dtype) if t is not None and t.dtype != torch.float64 else t for t in (x, w, b)]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return self.op(*cast, *args)

    def __init__(self) -> None:
        super().__init__()
        LIBRARY.impl(self.name, self.autocast, "AutocastCPU")


class _Conv(_Product):
    schema = f"conv(Tensor input, Tensor weight, Tensor? bias, {_WINDOW}) -> Tensor"

    def compute(
        self, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        ndim = len(stride)
        arrays = array(x), array(w), optional_array(b)
        return tensor(run(_CONV[ndim], *arrays, tuple(stride), paired(padding, ndim), tuple(dilation), groups))

    def fake(
        self, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any
    ) -> Tensor:
        torch._check(x.shape[1] == w.shape[1] * groups, lambda: "weight: its channels do not fit the input's")
        before, after = sides(padding, len(stride))
        size = [
            (i + p + q - span) // s + 1
            for i, p, q, span, s in zip(x.shape[2:], before, after, spans(w.shape[2:], dilation), stride, strict=True)
        ]
        return empty_map(x, (x.shape[0], w.shape[0], *size))

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        x, w = inputs[:2]
        needs = ctx.needs_input_grad
        ctx.save_for_backward(x if needs[1] else None, w if needs[0] else None)
        ctx.known = x.shape, w.shape, inputs[3:]

    def backward(self, ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        x_shape, w_shape, window = ctx.known
        dx = conv_input(g, w, None, x_shape[2:], *window) if needs[0] else None
        dw = conv_weight(x, g, w_shape[2:], *window) if needs[1] else None
        return dx, dw, _sum_to_channels(g) if needs[2] else None, None, None, None, None


class _ConvInput(_Product):
    schema = f"conv_input(Tensor grad_output, Tensor weight, Tensor? bias, SymInt[] size, {_WINDOW}) -> Tensor"

    def compute(
        self, dy: Tensor, w: Tensor, b: Tensor | None, size: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        ndim = len(stride)
        before, after = sides(padding, ndim)
        extra = tuple(
            i - (o - 1) * s - span + p + q
            for i, o, s, span, p, q in zip(
                size, dy.shape[2:], stride, spans(w.shape[2:], dilation), before, after, strict=True
            )
        )
        window = tuple(stride), paired(padding, ndim), extra, groups, tuple(dilation)
        return tensor(run(_CONV_TRANSPOSE[ndim], array(dy), array(w), optional_array(b), *window))

    def fake(self, dy: Tensor, w: Tensor, b: Tensor | None, size: Any, *args: Any) -> Tensor:
        groups = args[-1]
        torch._check(dy.shape[1] == w.shape[0], lambda: "weight: its filters do not fit the input's channels")
        return empty_map(dy, (dy.shape[0], w.shape[1] * groups, *size))

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        dy, w, _, _, *ctx.window = inputs
        ctx.kernel = w.shape[2:]
        ctx.save_for_backward(dy if ctx.needs_input_grad[1] else None, w if ctx.needs_input_grad[0] else None)

    def backward(self, ctx: Any, g: Tensor) -> Any:
        dy, w = ctx.saved_tensors
        needs = ctx.needs_input_grad
        ddy = conv(g, w, None, *ctx.window) if needs[0] else None
        dw = conv_weight(g, dy, ctx.kernel, *ctx.window) if needs[1] else None
        return ddy, dw, _sum_to_channels(g) if needs[2] else None, None, None, None, None, None


class _ConvWeight(Core):
    schema = f"conv_weight(Tensor input, Tensor grad_output, SymInt[] kernel, {_WINDOW}) -> Tensor"
    tensors = 2

    def compute(
        self, x: Tensor, dy: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        shape = (dy.shape[1], x.shape[1] // groups, *kernel)
        ndim = len(stride)
        window = tuple(stride), paired(padding, ndim), tuple(dilation), groups
        return tensor(run(_CONV_WEIGHT[ndim], array(x), shape, array(dy), *window))

    def fake(self, x: Tensor, dy: Tensor, kernel: Any, *args: Any) -> Tensor:
        groups = args[-1]
        return x.new_empty((dy.shape[1], x.shape[1] // groups, *kernel))

    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        x, dy, _, *ctx.window = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, dy if ctx.needs_input_grad[0] else None)

    def backward(self, ctx: Any, g: Tensor) -> Any:
        x, dy = ctx.saved_tensors
        dx = conv_input(dy, g, None, ctx.size, *ctx.window) if ctx.needs_input_grad[0] else None
        ddy = conv(x, g, None, *ctx.window) if ctx.needs_input_grad[1] else None
        return dx, ddy, None, None, None, None, None

    def vmap(self, info: Any, dims: Any, x: Tensor, dy: Tensor, *args: Any) -> Any:
        size, window, groups = info.batch_size, args[:-1], args[-1]
        maps = [front(t, dim, size).movedim(0, 1).flatten(1, 2) for t, dim in zip((x, dy), dims[:2], strict=True)]
        return self(*maps, *window, groups * size).unflatten(0, (size, -1)), 0


def _by_ndim(module: Any, name: str) -> dict[int, Any]:
    return {ndim: getattr(module, name.format(ndim)) for ndim in (1, 2, 3)}


_CONV = _by_ndim(ops, "conv{}d")
_CONV_TRANSPOSE = _by_ndim(ops, "conv_transpose{}d")
_CONV_WEIGHT = _by_ndim(grad, "conv{}d_weight")

conv = _Conv()
conv_input = _ConvInput()
conv_weight = _ConvWeight()
