"""Arguments as PyTorch's functions take them, read into what the operators take.

What PyTorch refuses is refused here, too: the call then goes to PyTorch, whose error the caller sees.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from fastconv.torch.tensors import DTYPES, Tensor


def remembered(read: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return a reader that remembers what it made of arguments, and the same for those with lists among them."""
    cached = lru_cache(maxsize=4096, typed=True)(read)
    return cached, lambda *args: cached(*(tuple(a) if isinstance(a, list | tuple) else a for a in args))


def sizes(name: str, value: Any, ndim: int, least: int = 1) -> tuple[int, ...]:
    """Return one integer an axis."""
    entries = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(entries) == 1:
        entries *= ndim
    if len(entries) != ndim or any(isinstance(e, bool) or not isinstance(e, int | torch.SymInt) for e in entries):
        raise ValueError(f"{name}: expected an integer or {ndim}")
    if any(e < least for e in entries):
        raise ValueError(f"{name}: must be at least {least}")
    return entries


def _groups(groups: Any) -> Any:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError("groups: not a positive integer")
    return groups


def conv_window(ndim: int, stride: Any, padding: Any, dilation: Any, groups: Any) -> tuple[Any, ...]:
    """Read the arguments of ``conv*d``; the padding ``'same'`` stays a word."""
    strides, dilations = sizes("stride", stride, ndim), sizes("dilation", dilation, ndim)
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and any(s != 1 for s in strides)):
            raise ValueError("padding: not a word that PyTorch takes with this stride")
        return strides, padding if padding == "same" else (0,) * ndim, dilations, _groups(groups)
    return strides, sizes("padding", padding, ndim, 0), dilations, _groups(groups)


def same_padding(kernel: Any, dilation: Any) -> Any:
    """Return the padding ``'same'`` before and after, axis by axis."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple(p for total in totals for p in (total // 2, total - total // 2))


def transposed_window(
    ndim: int, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any
) -> tuple[Any, ...]:
    """Read the arguments of ``conv_transpose*d``."""
    strides, dilations = sizes("stride", stride, ndim), sizes("dilation", dilation, ndim)
    extra = sizes("output_padding", output_padding, ndim, 0)
    if any(e >= s for e, s in zip(extra, strides, strict=True)):
        raise ValueError("output_padding: of the stride or more")
    return strides, sizes("padding", padding, ndim, 0), extra, _groups(groups), dilations


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: not a bool")
    return value


def _strides(stride: Any, kernel: Any, ndim: int) -> Any:
    given = stride is not None and (not isinstance(stride, list | tuple) or len(stride))
    return sizes("stride", stride, ndim) if given else kernel


def max_window(
    ndim: int,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Any, ...]:
    """Read the arguments of ``max_pool*d``."""
    kernel = sizes("kernel_size", kernel_size, ndim)
    pads = sizes("padding", padding, ndim, 0)
    flags = _flag("ceil_mode", ceil_mode), _flag("return_indices", return_indices)
    return kernel, _strides(stride, kernel, ndim), pads, sizes("dilation", dilation, ndim), *flags


def avg_window(
    ndim: int,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> tuple[Any, ...]:
    """Read the arguments of ``avg_pool*d``."""
    kernel = sizes("kernel_size", kernel_size, ndim)
    pads = sizes("padding", padding, ndim, 0)
    if any(2 * p > k for p, k in zip(pads, kernel, strict=True)):
        raise ValueError("padding: more than half of the kernel")
    flags = _flag("ceil_mode", ceil_mode), _flag("count_include_pad", count_include_pad)
    if divisor_override == 0 or (ndim == 1 and divisor_override is not None):
        raise ValueError("divisor_override: not one that PyTorch takes")
    return kernel, _strides(stride, kernel, ndim), pads, *flags, divisor_override


def lp_window(ndim: int, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
    """Read the arguments of ``lp_pool*d``."""
    if isinstance(norm_type, bool) or not isinstance(norm_type, int | float) or not norm_type > 0:
        raise ValueError("norm_type: not a positive number")
    kernel = sizes("kernel_size", kernel_size, ndim)
    return float(norm_type), kernel, _strides(stride, kernel, ndim), _flag("ceil_mode", ceil_mode)


def output_sizes(ndim: int, output_size: Any, return_indices: bool = False) -> Any:
    """Read the arguments of an adaptive pool; a None among the sizes stays, and means the input's."""
    entries = tuple(output_size) if isinstance(output_size, list | tuple) else (output_size,) * ndim
    if len(entries) != ndim:
        raise ValueError(f"output_size: expected {ndim}")
    known = sizes("output_size", tuple(1 if e is None else e for e in entries), ndim)
    sized = tuple(None if e is None else k for e, k in zip(entries, known, strict=True))
    return sized, _flag("return_indices", return_indices)


def unpool_window(
    ndim: int, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None
) -> tuple[Any, ...]:
    """Read the arguments of ``max_unpool*d``."""
    kernel = sizes("kernel_size", kernel_size, ndim)
    spatial = None if output_size is None else sizes("output_size", tuple(output_size)[-ndim:], ndim)
    return kernel, _strides(stride, kernel, ndim), sizes("padding", padding, ndim, 0), spatial


def unpooled(size: Any, kernel: Any, stride: Any, padding: Any, output_size: Any) -> Any:
    """Return the size that ``max_unpool*d`` restores: the smallest that pools to ``size``, or one near it."""
    each = zip(size, kernel, stride, padding, strict=True)
    default = [(i - 1) * s - 2 * p + k for i, k, s, p in each]
    if output_size is None:
        return default
    if any(not d - s < o < d + s for o, d, s in zip(output_size, default, stride, strict=True)):
        raise ValueError("output_size: not one that pools to the input")
    return list(output_size)


def column_window(kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> tuple[Any, ...]:
    """Read the arguments of ``unfold``."""
    names = "kernel_size", "dilation", "padding", "stride"
    values = zip(names, (kernel_size, dilation, padding, stride), (1, 1, 0, 1), strict=True)
    return tuple(sizes(name, value, 2, least) for name, value, least in values)


def fold_window(
    output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> tuple[Any, ...]:
    """Read the arguments of ``fold``."""
    return sizes("output_size", output_size, 2), *column_window(kernel_size, dilation, padding, stride)


def refusal(*tensors: Tensor | None) -> str | None:
    """Return why tensors are not for fastconv, as far as that can be told without their data; None if they are."""
    first = tensors[0]
    assert first is not None
    mixed = torch.is_autocast_enabled("cpu")
    for t in tensors:
        if t is None:
            continue
        if t.device.type != "cpu":
            return f"a tensor on {t.device.type}"
        if t.layout != torch.strided:
            return f"a tensor of layout {t.layout}"
        if t.dtype not in DTYPES:
            return f"dtype {t.dtype}"
        if t.dtype != first.dtype and not mixed:
            return "tensors of different dtypes"
    if any(size == 0 for size in first.shape):
        return "an empty tensor"
    return None


def watcher() -> str | None:
    """Return what looks on that only PyTorch's own operators can serve, if anything does."""
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    stack = torch._C._functorch.get_interpreter_stack() or []
    if any(i.key() == torch._C._functorch.TransformType.Jvp for i in stack):
        return "forward-mode differentiation"
    return None
