"""MaxPool, AveragePool, LpPool, their global forms, and MaxUnpool."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.onnx.base import AVG_POOL, CONV, GLOBAL_AVG_POOL, GLOBAL_MAX_POOL, LP_POOL, MAX_POOL, Op
from fastconv.onnx.geometry import Window, pairs, per_axis, spatial, window
from fastconv.options import options
from fastconv.pooling import max_unpool1d


def _fits(position: Window) -> bool:
    """Whether fastconv's pools take the padding: at most half of the window's span."""
    return all(max(pad) <= span // 2 for pad, span in zip(position.padding, position.spans, strict=True))


def _padded(x: Any, position: Window, value: float) -> Any:
    """Return the input with the padding that every window fits into."""
    return np.pad(x, ((0, 0), (0, 0), *position.reach(x.shape[2:])), constant_values=value)


def _in_range(result: Any, position: Window) -> Any:
    """Return a result without the positions that there are only because padding was made part of the input."""
    return result[(slice(None), slice(None), *(slice(o) for o in position.output))]


def _wide(x: Any) -> Any:
    """Return an array in a dtype that holds sums: half types as float32."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def _ceil(position: Window, size: tuple[int, ...]) -> bool:
    """Whether some window overhangs the padded input, so that the size was rounded up."""
    rows = zip(size, position.output, position.stride, position.spans, position.padding, strict=True)
    return any((o - 1) * s + span > i + sum(pad) for i, o, s, span, pad in rows)


def max_pool(x: Any, position: Window, return_indices: bool, column_major: bool = False) -> tuple[Any, ...]:
    """Return the maxima, and their flat places in the whole input if asked for.

    Parameters
    ----------
    x : ndarray, shape (N, C, spatial)
        Floating, or of integers that float32 holds.
    position : Window
    return_indices, column_major : bool
        ``column_major`` counts places with the first spatial axis fastest.
    """
    values = x.astype(np.float32) if x.dtype.kind in "iu" else x
    size = x.shape[2:]
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    padding: Any = position.padding
    held, before = size, (0,) * len(size)
    if not _fits(position):
        values = _padded(values, position, lowest)
        held, before, padding = values.shape[2:], tuple(b for b, _ in position.padding), 0
    pool = MAX_POOL[x.ndim - 2]
    overhangs = padding != 0 and _ceil(position, size)
    result = pool(values, position.kernel, position.stride, padding, position.dilation, overhangs, return_indices)
    if not return_indices:
        return (_in_range(result, position).astype(x.dtype, copy=False),)
    maxima, local = (_in_range(part, position) for part in result)
    return maxima.astype(x.dtype, copy=False), _global_places(local, x.shape, held, before, column_major)


def _global_places(local: Any, shape: Any, held: Any, before: Any, column_major: bool) -> Any:
    """Return places within a plane of size ``held`` as places in the whole input; -1 where there is none."""
    size = shape[2:]
    axes = np.unravel_index(np.maximum(local, 0), held)
    axes = tuple(axis - b for axis, b in zip(axes, before, strict=True))
    inside = local >= 0
    for axis, limit in zip(axes, size, strict=True):
        inside &= (axis >= 0) & (axis < limit)
    place = np.ravel_multi_index(axes, size, mode="clip", order="F" if column_major else "C")
    planes = np.arange(shape[0] * shape[1]).reshape(*shape[:2], *(1,) * len(size)) * int(np.prod(size))
    return np.where(inside, place + planes, -1)


def window_sums(x: Any, position: Window) -> Any:
    """Return the sum of every window, padding counted as zeros: a convolution of every channel with ones.

    Parameters
    ----------
    x : ndarray, shape (N, C, spatial)
    position : Window
        Of any padding and dilation.
    """
    n, c, *size = x.shape
    ndim = len(size)
    ones = np.ones((1, 1, *position.kernel), x.dtype)
    with options(strict=True):  # no algorithm that would spread infinity
        sums = CONV[ndim](
            x.reshape(n * c, 1, *size), ones, None, position.stride, position.reach(tuple(size)), position.dilation
        )
    return _in_range(sums, position).reshape(n, c, *position.output)


class _Pool(Op):
    def _window(
        self, x: Any, kernel_shape: Any, auto_pad: Any, pads: Any, strides: Any, dilations: Any, ceil: Any
    ) -> Window:
        size = spatial(x.shape)
        if not kernel_shape:
            raise ValueError("kernel_shape: is required")
        return window(size, kernel_shape, auto_pad, pads, strides, dilations, ceil)


class MaxPool(_Pool):
    """Maximum of every window. Padding is never chosen; NaN is the maximum of its window."""

    def _run(
        self,
        x: Any,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        storage_order: Any = None,
        strides: Any = None,
    ) -> tuple[Any, ...]:
        position = self._window(x, kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
        return max_pool(x, position, len(self.output) > 1 and self.output[1] != "", bool(storage_order))


class AveragePool(_Pool):
    """Mean of every window, over the elements of the input, or also those of the padding."""

    def _run(
        self,
        x: Any,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        count_include_pad: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Any, ...]:
        position = self._window(x, kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
        size, padded = x.shape[2:], bool(count_include_pad)
        if max(position.dilation) == 1 and _fits(position):
            pool = AVG_POOL[x.ndim - 2]
            return (pool(x, position.kernel, position.stride, position.padding, _ceil(position, size), padded),)
        with np.errstate(invalid="ignore"):  # a window wholly in the padding has no mean
            means = window_sums(_wide(x), position) / position.counts(size, padded=padded)
        return (means.astype(x.dtype, copy=False),)


class LpPool(_Pool):
    """Lp norm of every window. With ``ceil_mode``, the sum over what overhangs is scaled up, as PyTorch does."""

    def _run(
        self,
        x: Any,
        auto_pad: Any = None,
        ceil_mode: Any = None,
        dilations: Any = None,
        kernel_shape: Any = None,
        p: Any = 2,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Any, ...]:
        position = self._window(x, kernel_shape, auto_pad, pads, strides, dilations, ceil_mode)
        size, p = x.shape[2:], float(2 if p is None else p)
        if max(position.dilation) == 1 and not any(map(any, position.padding)):
            overhangs = _ceil(position, size)
            return (LP_POOL[x.ndim - 2](_positive(x, p), p, position.kernel, position.stride, overhangs),)
        sums = window_sums(np.abs(_wide(x)) ** p, position)
        sums *= np.prod(position.kernel) / position.counts(size, padded=True)
        return ((sums ** (1 / p)).astype(x.dtype, copy=False),)


def _positive(x: Any, p: float) -> Any:
    """Return what raised to an exponent gives the power of the absolute value."""
    return x if p % 2 == 0 else np.abs(x)


def _planes(x: Any) -> tuple[Any, int]:
    """Return an input of any number of spatial axes with 1 to 3 of them, and how many those are."""
    if x.ndim < 3:
        raise ValueError(f"input: expected (N, C, spatial), got shape {x.shape}")
    if x.ndim > 5:
        x = x.reshape(*x.shape[:2], -1)
    return x, x.ndim - 2


class GlobalAveragePool(Op):
    """Mean over all spatial axes, any number of them."""

    def _run(self, x: Any) -> tuple[Any, ...]:
        planes, ndim = _planes(x)
        return (GLOBAL_AVG_POOL[ndim](planes, 1).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)),)


class GlobalMaxPool(Op):
    """Maximum over all spatial axes, any number of them."""

    def _run(self, x: Any) -> tuple[Any, ...]:
        planes, ndim = _planes(x)
        return (GLOBAL_MAX_POOL[ndim](planes, 1).reshape(*x.shape[:2], *(1,) * (x.ndim - 2)),)


class GlobalLpPool(Op):
    """Lp norm over all spatial axes, any number of them."""

    def _run(self, x: Any, p: Any = 2) -> tuple[Any, ...]:
        planes, ndim = _planes(x)
        p = float(2 if p is None else p)
        norms = LP_POOL[ndim](_positive(planes, p), p, planes.shape[2:])
        return (norms.reshape(*x.shape[:2], *(1,) * (x.ndim - 2)),)


class MaxUnpool(Op):
    """Elements back to where a MaxPool took them from, zeros elsewhere.

    With ``output_shape``, too, places are those of the size that the other attributes give, as ONNX's tests have it.
    """

    def _run(
        self,
        x: Any,
        places: Any,
        output_shape: Any = None,
        kernel_shape: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Any, ...]:
        size, ndim = x.shape[2:], x.ndim - 2
        if ndim < 1 or not kernel_shape:
            raise ValueError(
                f"kernel_shape: is required for an input (N, C, spatial), got {kernel_shape} and {x.shape}"
            )
        if places.shape != x.shape:
            raise ValueError(f"I: expected the shape of X, {x.shape}, got {places.shape}")
        kernel, stride = per_axis("kernel_shape", kernel_shape, ndim, 1), per_axis("strides", strides, ndim, 1)
        restored = tuple(
            (i - 1) * s - sum(pad) + k for i, s, pad, k in zip(size, stride, pairs(pads, ndim), kernel, strict=True)
        )
        if min(restored) < 1:
            raise ValueError(f"pads: {list(pads or ())} leave nothing of {size}")
        result = _unpooled(x, places, restored)
        if output_shape is None:
            return (result,)
        wanted = tuple(map(int, output_shape))
        missing = [w - r for w, r in zip(wanted, result.shape, strict=False)]
        if len(wanted) != x.ndim or any(missing[:2]) or min(missing) < 0:
            raise ValueError(f"output_shape: expected N, C and at least {restored}, got {wanted}")
        return (np.pad(result, [(0, m) for m in missing]),)


def _unpooled(x: Any, places: Any, size: tuple[int, ...]) -> Any:
    """Put elements where their flat places in an array of shape (N, C, *size) are, each in its own channel."""
    n, c, *spatial_size = x.shape
    taken, plane = int(np.prod(spatial_size)), int(np.prod(size))
    local = places.reshape(n, c, taken) - np.arange(n * c).reshape(n, c, 1) * plane
    if local.size and not 0 <= local.min() <= local.max() < plane:
        raise ValueError(f"I: expected places within each element's own channel, of size {size}")
    # Along one axis, with the kernel that makes `plane` elements of those taken.
    padding = max(0, -(-(taken - plane) // 2))
    kernel = plane - taken + 1 + 2 * padding
    return max_unpool1d(x.reshape(n, c, taken), local, kernel, 1, padding).reshape(n, c, *size)
