"""PyTorch's answer to a `Case`, in float64, and the sum of absolute values behind each of its elements.

What PyTorch lacks is built from what it has: padding modes, pairs and 'same' by `torch.nn.functional.pad`,
locally connected layers by `unfold` and `einsum`, unfold in three dimensions by indexing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from strategies import Case
from torch import Tensor

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def tensor(array: Any) -> Tensor:
    """Return an array of any dtype and strides as a float64 (or int64) tensor."""
    return torch.from_numpy(np.array(array, dtype=np.int64 if array.dtype == np.int64 else np.float64, order="C"))


def each(value: Any, ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def pairs(padding: Any, size: Any, kernel: Any, stride: Any, dilation: Any) -> list[tuple[int, int]]:
    """Return (before, after) per axis; 'same' as TensorFlow defines it."""
    result = []
    for axis, (i, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True)):
        if padding == "same":
            total = max((-(-i // s) - 1) * s + d * (k - 1) + 1 - i, 0)
            result.append((total // 2, total - total // 2))
        elif padding == "valid" or isinstance(padding, int):
            result.append((0, 0) if padding == "valid" else (padding, padding))
        else:
            p = padding[axis]
            result.append((p, p) if isinstance(p, int) else tuple(p))
    return result


def pad(x: Tensor, padding: list[tuple[int, int]], mode: str = "zeros", value: float = 0.0) -> Tensor:
    flat = [p for pair in reversed(padding) for p in pair]
    return F.pad(x, flat, MODES[mode], value) if mode == "zeros" else F.pad(x, flat, MODES[mode])


def crop(x: Tensor, padding: list[tuple[int, int]]) -> Tensor:
    spatial = x.shape[-len(padding) :]
    return x[(..., *(slice(b, i - a) for i, (b, a) in zip(spatial, padding, strict=True)))]


def conv(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    w = t["weight"]
    stride, dilation = each(a["stride"], ndim), each(a["dilation"], ndim)
    padding = pairs(a["padding"], t["input"].shape[2:], w.shape[-ndim:], stride, dilation)
    x = pad(t["input"], padding, a["padding_mode"])
    function = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]
    return function(x, w, t.get("bias"), stride, 0, dilation, a["groups"])


def locally_connected(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    w, bias = t["weight"], t.get("bias")
    stride, dilation = each(a["stride"], ndim), each(a["dilation"], ndim)
    padding = pairs(a["padding"], t["input"].shape[2:], w.shape[-ndim:], stride, dilation)
    x = pad(t["input"], padding, a["padding_mode"])
    columns = F.unfold(x, w.shape[-2:], dilation, 0, stride)
    columns = columns.reshape(len(x), w.shape[3], -1, *w.shape[:2])
    y = torch.einsum("nckhw,hwock->nohw", columns, w.flatten(-2))
    if bias is None:
        return y
    return y + (bias[:, None, None] if bias.ndim == 1 else bias.permute(2, 0, 1))


def conv_transpose(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    x, w = t["input"], t["weight"]
    stride, dilation = each(a["stride"], ndim), each(a["dilation"], ndim)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[ndim - 1]
    padding, extra = a["padding"], each(a["output_padding"], ndim)
    if isinstance(padding, int) or all(isinstance(p, int) for p in padding):
        return function(x, w, t.get("bias"), stride, padding, extra, a["groups"], dilation)
    # The whole result, cut to size; with 'same' it may have to grow first.
    spans = tuple(d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation, strict=True))
    target = tuple(i * s for i, s in zip(x.shape[2:], stride, strict=True))
    cut = pairs(padding, target, w.shape[2:], stride, dilation)
    if padding == "same":
        extra = tuple(max(s - span, 0) for s, span in zip(stride, spans, strict=True))
    return crop(function(x, w, t.get("bias"), stride, 0, extra, a["groups"], dilation), cut)


def linear(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    return F.linear(t["input"], t["weight"], t.get("bias"))


def unfold(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    kernel, stride, dilation = (each(a[n], ndim) for n in ("kernel_size", "stride", "dilation"))
    x = pad(t["input"], pairs(a["padding"], t["input"].shape[2:], kernel, stride, dilation))
    if ndim == 2:
        return F.unfold(x, kernel, dilation, 0, stride)
    # Per axis an index (kernel position, output position); kernel positions come first in the result.
    index = []
    for axis, (i, k, s, d) in enumerate(zip(x.shape[2:], kernel, stride, dilation, strict=True)):
        out = (i - d * (k - 1) - 1) // s + 1
        position = torch.arange(k)[:, None] * d + torch.arange(out) * s
        shape = [1] * (2 * ndim)
        shape[axis], shape[ndim + axis] = k, out
        index.append(position.reshape(shape))
    windows = x[(slice(None), slice(None), *index)]
    return windows.reshape(len(x), x.shape[1] * math.prod(kernel), -1)


def fold(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    """The transpose of unfold, which is linear."""
    columns, size = t["input"], each(a["output_size"], ndim)
    kernel, stride, dilation = (each(a[n], ndim) for n in ("kernel_size", "stride", "dilation"))
    if ndim == 2:
        padding = pairs(a["padding"], size, kernel, stride, dilation)
        padded = tuple(i + b + c for i, (b, c) in zip(size, padding, strict=True))
        return crop(F.fold(columns, padded, kernel, dilation, 0, stride), padding)
    channels = columns.shape[1] // math.prod(kernel)
    x = torch.zeros(len(columns), channels, *size, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(unfold(ndim, {"input": x}, a), x, columns, create_graph=True)[0]


def pool_window(ndim: int, a: dict[str, Any], size: Any) -> tuple[Any, ...]:
    """Return kernel, stride, dilation, and the padding as PyTorch takes it, or else as pairs to pad with."""
    kernel = each(a["kernel_size"], ndim)
    stride = kernel if a["stride"] is None else each(a["stride"], ndim)
    dilation = each(a.get("dilation", 1), ndim)
    both = pairs(a.get("padding", 0), size, kernel, stride, dilation)
    zero = [(0, 0)] * ndim
    if all(b == c <= k // 2 for (b, c), k in zip(both, kernel, strict=True)):
        return kernel, stride, dilation, tuple(b for b, _ in both), zero
    return kernel, stride, dilation, (0,) * ndim, both


def max_pool(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Any:
    size = t["input"].shape[2:]
    kernel, stride, dilation, padding, both = pool_window(ndim, a, size)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[ndim - 1]
    x = pad(t["input"], both, value=-math.inf)
    y, indices = function(x, kernel, stride, padding, dilation, a.get("ceil_mode", False), return_indices=True)
    padded = torch.unravel_index(indices, x.shape[2:])
    flat = torch.zeros_like(indices)
    for axis, i, (before, _) in zip(padded, size, both, strict=True):
        flat = flat * i + axis - before
    return y, flat


def avg_pool(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    kernel, stride, _, padding, both = pool_window(ndim, a, t["input"].shape[2:])
    divisor, include, ceil = a["divisor_override"], a["count_include_pad"], a.get("ceil_mode", False)
    x = t["input"]

    def pool(x: Tensor, padding: Any = 0, **how: Any) -> Tensor:
        if ndim == 1:  # F.avg_pool1d knows no divisor
            wide = (1, *kernel), (1, *stride), (0, *padding) if padding else 0
            return F.avg_pool2d(x[:, :, None], *wide, **how)[:, :, 0]
        return (F.avg_pool2d, F.avg_pool3d)[ndim - 2](x, kernel, stride, padding, **how)

    if not any(map(any, both)):
        return pool(x, padding, ceil_mode=ceil, count_include_pad=include, divisor_override=divisor)
    total = pool(pad(x, both), divisor_override=1)
    if divisor is not None or include:
        return total / (divisor or math.prod(kernel))
    return total / pool(pad(torch.ones_like(x), both), divisor_override=1)


def lp_pool(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    function = (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)[ndim - 1]
    kernel, stride = each(a["kernel_size"], ndim), a["stride"]
    stride = None if stride is None else each(stride, ndim)
    if ndim == 1:
        kernel, stride = kernel[0], stride and stride[0]
    return function(t["input"], a["norm_type"], kernel, stride, a["ceil_mode"])


def _adaptive_size(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> tuple[int, ...]:
    wanted = each(a["output_size"], ndim)
    return tuple(i if o is None else o for o, i in zip(wanted, t["input"].shape[2:], strict=True))


def adaptive_avg_pool(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    function = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[ndim - 1]
    return function(t["input"], _adaptive_size(ndim, t, a))


def adaptive_max_pool(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Any:
    function = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[ndim - 1]
    return function(t["input"], _adaptive_size(ndim, t, a), return_indices=True)


def max_unpool(ndim: int, t: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    function = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[ndim - 1]
    size = a["output_size"]
    stride = None if a["stride"] is None else each(a["stride"], ndim)
    kernel, padding = each(a["kernel_size"], ndim), each(a["padding"], ndim)
    return function(t["input"], t["indices"], kernel, stride, padding, size and tuple(size)[-ndim:])


class Answer:
    """What PyTorch makes of a case.

    Attributes
    ----------
    y, indices : ndarray
        The result, and a max pool's indices.
    magnitude : ndarray
        The op of absolute values: what the error before the activation is relative to.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.family = re.sub("[123]d$", "", case.op)
        self.ndim = self._ndim()
        self.activation = case.arguments.get("activation")
        arrays = {name: tensor(array) for name, array in case.arrays.items()}
        self._leaves, self._z, self.indices = self._forward(arrays)
        self._y = ACTIVATIONS[self.activation](self._z)
        is_max = self.family in ("max_pool", "adaptive_max_pool")
        absolute = {name: a.abs() if not is_max else a for name, a in arrays.items()}
        self._absolute_leaves, self._absolute, _ = self._forward(absolute)
        self.y, self.magnitude = self._y.detach().numpy(), self._absolute.detach().abs().numpy()

    def _ndim(self) -> int:
        if self.case.op in ("unfold", "fold"):
            return len(self.case.arguments["kernel_size"])
        return 0 if self.case.op == "linear" else int(self.case.op[-2])

    def _forward(self, arrays: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Any]:
        leaves = {name: a.clone().requires_grad_(a.is_floating_point()) for name, a in arrays.items()}
        given = dict(leaves)
        rank = 3 if self.family == "fold" else self.ndim + 2
        unbatched = self.family != "linear" and leaves["input"].ndim == rank - 1
        if unbatched:
            given |= {n: given[n][None] for n in ("input", "residual", "indices") if n in given}
        result = globals()[self.family](self.ndim, given, self.case.arguments)
        z, indices = result if isinstance(result, tuple) else (result, None)
        if "residual" in given:
            z = z + given["residual"]
        if unbatched:
            z, indices = z[0], None if indices is None else indices[0]
        return leaves, z, None if indices is None else indices.numpy()

    def before_activation(self, grad: Tensor) -> Tensor:
        """Return the gradient with respect to what goes into the activation."""
        return torch.autograd.grad(self._y, self._z, grad, retain_graph=True)[0]

    def gradients(self, grad: Tensor) -> dict[str, Any]:
        """Return the gradient of every array argument, None for indices."""
        return self._pull(self._leaves, self._y, grad)

    def gradient_magnitudes(self, size: Tensor) -> dict[str, Any]:
        """Return the gradients of absolute values, for the size of a gradient that enters before the activation."""
        pulled = self._pull(self._absolute_leaves, self._absolute, size)
        return {name: np.abs(magnitude) for name, magnitude in pulled.items()}  # a divisor may be negative

    def _pull(self, leaves: dict[str, Tensor], y: Tensor, grad: Tensor) -> dict[str, Any]:
        wanted = [name for name, leaf in leaves.items() if leaf.requires_grad]
        results = torch.autograd.grad(y, [leaves[n] for n in wanted], grad, retain_graph=True, allow_unused=True)
        zeros = (torch.zeros_like(leaves[n]) for n in wanted)
        return {n: (z if r is None else r).numpy() for n, r, z in zip(wanted, results, zeros, strict=True)}
