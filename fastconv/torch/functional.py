"""The functions: those of ``torch.nn.functional``, computed by fastconv where it can, by PyTorch where it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fastconv import columns, ops, pooling
from fastconv.torch import arguments, convolutions, windows
from fastconv.torch.core import Core
from fastconv.torch.kept import packed
from fastconv.torch.offer import Offer
from fastconv.torch.tensors import Tensor, array, optional_array, run, tensor

OFFERS: dict[str, Callable[..., Any]] = {}
"""The functions by name."""
ROUTED: dict[str, Callable[..., Any]] = {}
"""The same in PyTorch's place: for the dtypes alone that are asked for."""

_DOC = """Compute `torch.nn.functional.{name}`, with its arguments and its result.

    fastconv computes float32, float64, float16 and bfloat16 tensors in the CPU's memory; the rest is left to PyTorch,
    and counted: see `stats`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        What PyTorch raises.
    """


def _offered(offer: Offer, signature: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any]:
    """Return an offer as a function. ``signature`` makes one of what is called with tensors and other arguments."""
    for call, functions in ((offer.compute, OFFERS), (offer.routed, ROUTED)):
        function = functions[offer.name] = signature(call)
        function.__name__ = function.__qualname__ = offer.name
        function.__module__ = "fastconv.torch"
        function.__doc__ = _DOC.format(name=offer.name)
    return OFFERS[offer.name]


def _through(core: Core) -> Callable[..., Any]:
    return lambda call, *args: call(core)(*args)


def _product(ours: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return what computes a convolution without a gradient. A parameter's packed form is kept from call to call."""

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Tensor:
        x, w, b = tensors
        if type(w) is torch.nn.Parameter:
            plan = packed(ours, x, w, b, window)
            if plan is not None:
                return tensor(plan(array(x)))
        return tensor(run(ours, array(x), array(w), optional_array(b), *window))

    return direct


def _make_conv(ndim: int) -> Callable[..., Tensor]:
    ours = getattr(ops, f"conv{ndim}d")

    direct = _product(ours)

    def through(
        call: Any, x: Tensor, w: Tensor, b: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        if padding == "same":
            padding = arguments.same_padding(w.shape[2:], dilation)
        return call(convolutions.conv)(x, w, b, stride, padding, dilation, groups)

    offer = Offer(f"conv{ndim}d", ndim, partial(arguments.conv_window, ndim), direct, through)

    def conv_by(call: Any) -> Any:
        def conv(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
        ) -> Tensor:
            return call((input, weight, bias), (stride, padding, dilation, groups))

        return conv

    return _offered(offer, conv_by)


def _make_conv_transpose(ndim: int) -> Callable[..., Tensor]:
    ours = getattr(ops, f"conv_transpose{ndim}d")

    direct = _product(ours)

    def through(
        call: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        stride: Any,
        padding: Any,
        extra: Any,
        groups: int,
        dilation: Any,
    ) -> Tensor:
        spans = convolutions.spans(w.shape[2:], dilation)
        each = zip(x.shape[2:], stride, padding, spans, extra, strict=True)
        size = [(i - 1) * s - 2 * p + span + e for i, s, p, span, e in each]
        return call(convolutions.conv_input)(x, w, b, size, stride, padding, dilation, groups)

    offer = Offer(f"conv_transpose{ndim}d", ndim, partial(arguments.transposed_window, ndim), direct, through)

    def conv_transpose_by(call: Any) -> Any:
        def conv_transpose(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            output_padding: Any = 0,
            groups: int = 1,
            dilation: Any = 1,
        ) -> Tensor:
            return call((input, weight, bias), (stride, padding, output_padding, groups, dilation))

        return conv_transpose

    return _offered(offer, conv_transpose_by)


def _pair(result: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    return tensor(result[0]), tensor(result[1])


def _make_max_pool(ndim: int) -> Callable[..., Any]:
    ours = getattr(pooling, f"max_pool{ndim}d")

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Any:
        result = run(ours, array(tensors[0]), *window)
        return _pair(result) if window[-1] else tensor(result)

    def through(call: Any, x: Tensor, *window: Any) -> Any:
        if window[-1]:
            return call(windows.max_pool)(x, *window[:-1])
        return call(windows.max_values)(x, *window[:-1])[0]

    offer = Offer(f"max_pool{ndim}d", ndim, partial(arguments.max_window, ndim), direct, through)

    def max_pool_by(call: Any) -> Any:
        def max_pool(
            input: Tensor,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            dilation: Any = 1,
            ceil_mode: bool = False,
            return_indices: bool = False,
        ) -> Any:
            return call((input,), (kernel_size, stride, padding, dilation, ceil_mode, return_indices))

        return max_pool

    return _offered(offer, max_pool_by)


def _make_avg_pool(ndim: int) -> Callable[..., Tensor]:
    ours = getattr(pooling, f"avg_pool{ndim}d")

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Tensor:
        return tensor(run(ours, array(tensors[0]), *window))

    offer = Offer(f"avg_pool{ndim}d", ndim, partial(arguments.avg_window, ndim), direct, _through(windows.avg_pool))

    if ndim == 1:

        def avg_pool1d_by(call: Any) -> Any:
            def avg_pool1d(
                input: Tensor,
                kernel_size: Any,
                stride: Any = None,
                padding: Any = 0,
                ceil_mode: bool = False,
                count_include_pad: bool = True,
            ) -> Tensor:
                given = () if stride is None else stride  # PyTorch's has no None for it
                return call((input,), (kernel_size, given, padding, ceil_mode, count_include_pad))

            return avg_pool1d

        return _offered(offer, avg_pool1d_by)

    def avg_pool_by(call: Any) -> Any:
        def avg_pool(
            input: Tensor,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            ceil_mode: bool = False,
            count_include_pad: bool = True,
            divisor_override: int | None = None,
        ) -> Tensor:
            return call((input,), (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override))

        return avg_pool

    return _offered(offer, avg_pool_by)


# The powers whose pools fastconv has kernels for.
_FUSED_NORMS = (1.0, 2.0)


def _make_lp_pool(ndim: int) -> Callable[..., Tensor]:
    ours = getattr(pooling, f"lp_pool{ndim}d")

    def through(call: Any, x: Tensor, norm: float, kernel: Any, stride: Any, ceil_mode: bool) -> Tensor:
        """As PyTorch composes it, so that where the root has no derivative, it is PyTorch's that comes out."""
        mean = call(windows.avg_pool)(x.pow(norm), kernel, stride, (0,) * ndim, ceil_mode, True, None)
        return (torch.sign(mean) * torch.relu(torch.abs(mean))).mul(math.prod(kernel)).pow(1.0 / norm)

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Tensor:
        if window[0] in _FUSED_NORMS:
            return tensor(run(ours, array(tensors[0]), *window))
        return offer.operators(tensors, window)

    offer = Offer(f"lp_pool{ndim}d", ndim, partial(arguments.lp_window, ndim), direct, through)

    def lp_pool_by(call: Any) -> Any:
        def lp_pool(
            input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
        ) -> Tensor:
            return call((input,), (norm_type, kernel_size, stride, ceil_mode))

        return lp_pool

    return _offered(offer, lp_pool_by)


def _whole(x: Tensor, output_size: Any) -> Any:
    """Return an output size with the input's where it says None."""
    if None not in output_size:
        return output_size
    return tuple(i if o is None else o for i, o in zip(x.shape[-len(output_size) :], output_size, strict=True))


def _make_adaptive_avg(ndim: int) -> Callable[..., Tensor]:
    ours = getattr(pooling, f"adaptive_avg_pool{ndim}d")

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Tensor:
        (x,), (output_size, _) = tensors, window
        return tensor(run(ours, array(x), _whole(x, output_size)))

    def through(call: Any, x: Tensor, output_size: Any, _: bool) -> Tensor:
        return call(windows.adaptive_avg_pool)(x, _whole(x, output_size))

    offer = Offer(f"adaptive_avg_pool{ndim}d", ndim, partial(arguments.output_sizes, ndim), direct, through)

    def adaptive_avg_pool_by(call: Any) -> Any:
        def adaptive_avg_pool(input: Tensor, output_size: Any) -> Tensor:
            return call((input,), (output_size,))

        return adaptive_avg_pool

    return _offered(offer, adaptive_avg_pool_by)


def _make_adaptive_max(ndim: int) -> Callable[..., Any]:
    ours = getattr(pooling, f"adaptive_max_pool{ndim}d")

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Any:
        (x,), (output_size, return_indices) = tensors, window
        result = run(ours, array(x), _whole(x, output_size), return_indices)
        return _pair(result) if return_indices else tensor(result)

    def through(call: Any, x: Tensor, output_size: Any, return_indices: bool) -> Any:
        if return_indices:
            return call(windows.adaptive_max_pool)(x, _whole(x, output_size))
        return call(windows.adaptive_max_values)(x, _whole(x, output_size))[0]

    offer = Offer(f"adaptive_max_pool{ndim}d", ndim, partial(arguments.output_sizes, ndim), direct, through)

    def adaptive_max_pool_by(call: Any) -> Any:
        def adaptive_max_pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
            return call((input,), (output_size, return_indices))

        return adaptive_max_pool

    return _offered(offer, adaptive_max_pool_by)


def _make_max_unpool(ndim: int) -> Callable[..., Tensor]:
    def through(call: Any, x: Tensor, indices: Tensor, *window: Any) -> Tensor:
        return call(windows.max_unpool)(x, indices, arguments.unpooled(x.shape[2:], *window))

    def direct(tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Tensor:
        return offer.operators(tensors, window)

    offer = Offer(f"max_unpool{ndim}d", ndim, partial(arguments.unpool_window, ndim), direct, through)

    def max_unpool_by(call: Any) -> Any:
        def max_unpool(
            input: Tensor,
            indices: Tensor,
            kernel_size: Any,
            stride: Any = None,
            padding: Any = 0,
            output_size: Any = None,
        ) -> Tensor:
            return call((input, indices), (kernel_size, stride, padding, output_size))

        return max_unpool

    return _offered(offer, max_unpool_by)


def _make_columns() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def direct(ours: Callable[..., Any], tensors: tuple[Any, ...], window: tuple[Any, ...]) -> Tensor:
        return tensor(run(ours, array(tensors[0]), *window))

    to_columns = Offer("unfold", 2, arguments.column_window, partial(direct, columns.unfold), _through(windows.unfold))
    to_map = Offer("fold", 1, arguments.fold_window, partial(direct, columns.fold), _through(windows.fold))

    def unfold_by(call: Any) -> Any:
        def unfold(input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> Tensor:
            return call((input,), (kernel_size, dilation, padding, stride))

        return unfold

    def fold_by(call: Any) -> Any:
        def fold(
            input: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
        ) -> Tensor:
            return call((input,), (output_size, kernel_size, dilation, padding, stride))

        return fold

    return _offered(to_columns, unfold_by), _offered(to_map, fold_by)


_DIMENSIONS = (1, 2, 3)
conv1d, conv2d, conv3d = map(_make_conv, _DIMENSIONS)
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_make_conv_transpose, _DIMENSIONS)
max_pool1d, max_pool2d, max_pool3d = map(_make_max_pool, _DIMENSIONS)
avg_pool1d, avg_pool2d, avg_pool3d = map(_make_avg_pool, _DIMENSIONS)
lp_pool1d, lp_pool2d, lp_pool3d = map(_make_lp_pool, _DIMENSIONS)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(_make_adaptive_avg, _DIMENSIONS)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_make_adaptive_max, _DIMENSIONS)
max_unpool1d, max_unpool2d, max_unpool3d = map(_make_max_unpool, _DIMENSIONS)
unfold, fold = _make_columns()
