"""Conv, ConvTranspose, DeformConv and Col2Im."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fastconv import epilogue
from fastconv.columns import fold
from fastconv.onnx.base import CONV, CONV_TRANSPOSE, Op
from fastconv.onnx.geometry import Transposed, Window, pairs, per_axis, spatial, transposed, window
from fastconv.onnx.packed import Packed, freeze, is_constant


def check_weight(x: Any, w: Any, group: int, kernel_shape: Any, *, transposed: bool) -> None:
    """Check what ONNX says of a weight: that its kernel is ``kernel_shape``, and that its channels are the input's."""
    if w.ndim != x.ndim:
        raise ValueError(f"W: expected {x.ndim} dimensions as the input has, got shape {w.shape}")
    if kernel_shape and tuple(kernel_shape) != w.shape[2:]:
        raise ValueError(f"kernel_shape: {list(kernel_shape)} is not that of W, which has shape {w.shape}")
    channels = w.shape[0] if transposed else w.shape[1] * group
    if channels != x.shape[1]:
        raise ValueError(f"W: shape {w.shape} and group={group} need {channels} input channels, got {x.shape}")


class _Weighted(ABC):
    """A function of a node's attributes; its weight is packed once if it is constant.

    Parameters
    ----------
    attributes : mapping
        Those of the node.
    activation : str, optional
        As fastconv's functions take it.
    """

    functions: ClassVar[Mapping[int, Any]]

    def __init__(self, attributes: Mapping[str, Any], activation: str | None = None) -> None:
        self._attributes = dict(attributes)
        self._activation = activation
        self._group = int(self._attributes.get("group") or 1)
        self._packed = {ndim: Packed(function) for ndim, function in self.functions.items()}

    @abstractmethod
    def output_shape(self, x: Any, w: Any) -> tuple[int, ...]:
        """Return the shape of the result."""

    @abstractmethod
    def __call__(self, x: Any, w: Any, b: Any = None, residual: Any = None) -> Any:
        """Compute; ``residual`` has the shape of the result, and is added before the activation."""

    def _function(self, x: Any) -> Packed:
        return self._packed[len(spatial(x.shape))]

    def _values(self, *names: str) -> tuple[Any, ...]:
        return tuple(map(self._attributes.get, names))


class Convolution(_Weighted):
    """A convolution with the attributes auto_pad, dilations, group, kernel_shape, pads and strides."""

    functions = CONV

    def output_shape(self, x: Any, w: Any) -> tuple[int, ...]:
        return (x.shape[0], w.shape[0], *self._window(x, w).output)

    def __call__(self, x: Any, w: Any, b: Any = None, residual: Any = None) -> Any:
        return self._function(x)(x, (w, b), residual, lambda: self._arguments(self._window(x, w)))

    def _arguments(self, position: Window) -> dict[str, Any]:
        return {
            "stride": position.stride,
            "padding": position.padding,
            "dilation": position.dilation,
            "groups": self._group,
            "activation": self._activation,
        }

    def _window(self, x: Any, w: Any) -> Window:
        size = spatial(x.shape)
        check_weight(x, w, self._group, self._attributes.get("kernel_shape"), transposed=False)
        return window(size, w.shape[2:], *self._values("auto_pad", "pads", "strides", "dilations"))


class TransposedConvolution(_Weighted):
    """The transpose of a convolution: also output_padding and output_shape among the attributes."""

    functions = CONV_TRANSPOSE

    def output_shape(self, x: Any, w: Any) -> tuple[int, ...]:
        return (x.shape[0], w.shape[1] * self._group, *self._where(x, w).output)

    def __call__(self, x: Any, w: Any, b: Any = None, residual: Any = None) -> Any:
        call = self._function(x)
        where = self._where(x, w)
        if not any(map(any, where.extension)):
            return call(x, (w, b), residual, lambda: self._arguments(where, self._activation))
        inner = call(x, (w, None), None, lambda: self._arguments(where, None))
        result = np.pad(inner, ((0, 0), (0, 0), *where.extension))
        epilogue.apply(self._activation, result, None if b is None else b.reshape(-1, *(1,) * (x.ndim - 2)), residual)
        return result

    def _arguments(self, where: Transposed, activation: str | None) -> dict[str, Any]:
        return {
            "stride": where.stride,
            "padding": where.padding,
            "output_padding": where.output_padding,
            "groups": self._group,
            "dilation": where.dilation,
            "activation": activation,
        }

    def _where(self, x: Any, w: Any) -> Transposed:
        size = spatial(x.shape)
        check_weight(x, w, self._group, self._attributes.get("kernel_shape"), transposed=True)
        names = "auto_pad", "pads", "strides", "dilations", "output_padding", "output_shape"
        return transposed(size, w.shape[2:], *self._values(*names))


class _WithWeights(Op):
    """A node that calls a function of its attributes on its inputs."""

    maker: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = self.attributes_names_
        # Attributes of a function's body may stand for the function's own, which come with every call.
        self._made = None if self.has_linked_attribute else self.maker({name: getattr(self, name) for name in names})

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        return ((self._made or self.maker(attributes))(*inputs),)


class Conv(_WithWeights):
    """Convolution in 1 to 3 dimensions."""

    maker = Convolution


class ConvTranspose(_WithWeights):
    """Transposed convolution in 1 to 3 dimensions."""

    maker = TransposedConvolution


def _samples(x: Any, coordinates: list[Any]) -> Any:
    """Interpolate linearly between elements, zeros outside.

    Parameters
    ----------
    x : ndarray, shape (C, *sizes)
    coordinates : list of ndarray of float64, one per spatial axis, all of one shape (P,)

    Returns
    -------
    ndarray, shape (C, P)
    """
    sizes = x.shape[1:]
    # One more element, a zero, is what every position outside reads: infinity there does not become NaN.
    flat = np.concatenate([x.reshape(x.shape[0], -1), np.zeros((x.shape[0], 1), x.dtype)], axis=1)
    outside = flat.shape[1] - 1
    # Far away is as far as just outside, and fits an integer; NaN goes on into the weights.
    low = [np.floor(np.clip(np.nan_to_num(c), -2, size + 1)) for c, size in zip(coordinates, sizes, strict=True)]
    result = np.zeros((x.shape[0], coordinates[0].size), x.dtype)
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        index: Any = 0
        weight: Any = 1.0
        inside: Any = True
        for c, start, step, size in zip(coordinates, low, corner, sizes, strict=True):
            at = start + step
            inside = inside & (at >= 0) & (at < size)
            index = index * size + at.astype(np.intp)
            weight = weight * np.where(np.isfinite(c), 1 - np.abs(np.clip(c, -2, size + 1) - at), np.nan * c)
        weight = np.where(inside | np.isnan(weight), weight, 0).astype(x.dtype)
        result += flat.take(np.where(inside, index, outside), axis=1) * weight
    return result


def deformed_columns(x: Any, offset: Any, mask: Any, position: Window, offset_group: int) -> Any:
    """Lay what a deformable convolution multiplies by its weight out as columns.

    Parameters
    ----------
    x : ndarray, shape (C, *sizes)
    offset : ndarray, shape (offset_group * taps * ndim, *output)
    mask : ndarray or None, shape (offset_group * taps, *output)
    position : Window
    offset_group : int

    Returns
    -------
    ndarray, shape (C * taps, positions)
    """
    channels, ndim = x.shape[0] // offset_group, x.ndim - 1
    taps = math.prod(position.kernel)
    positions = math.prod(position.output)
    offset = offset.reshape(offset_group, *position.kernel, ndim, *position.output)
    columns = np.empty((x.shape[0], taps, positions), x.dtype)
    for g in range(offset_group):
        coordinates = []
        for axis in range(ndim):
            tap = np.arange(position.kernel[axis]) * position.dilation[axis]
            start = np.arange(position.output[axis]) * position.stride[axis] - position.padding[axis][0]
            tap = tap.reshape(-1, *(1,) * (2 * ndim - axis - 1))
            start = start.reshape(-1, *(1,) * (ndim - axis - 1))
            coordinates.append((offset[(g, *(slice(None),) * ndim, axis)].astype(np.float64) + tap + start).ravel())
        these = slice(g * channels, (g + 1) * channels)
        columns[these] = _samples(x[these], coordinates).reshape(channels, taps, positions)
        if mask is not None:
            columns[these] *= mask.reshape(offset_group, taps, positions)[g]
    return columns.reshape(-1, positions)


class DeformConv(Op):
    """Deformable convolution: samples gathered into columns, and one convolution of width 1 over these."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._product = Packed(CONV[1])
        self._flat: tuple[Any, Any] = (None, None)

    def _run(
        self,
        x: Any,
        w: Any,
        offset: Any,
        b: Any = None,
        mask: Any = None,
        dilations: Any = None,
        group: Any = None,
        kernel_shape: Any = None,
        offset_group: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Any, ...]:
        group, offset_group = int(group or 1), int(offset_group or 1)
        size = spatial(x.shape)
        check_weight(x, w, group, kernel_shape, transposed=False)
        position = window(size, w.shape[2:], None, pads, strides, dilations)
        _check_offsets(x, offset, mask, position, offset_group)
        flat = self._flattened(w)
        wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x  # interpolation takes several roundings
        result = np.empty((len(x), w.shape[0], *position.output), x.dtype)
        for i, image in enumerate(wide):
            columns = deformed_columns(image, offset[i], None if mask is None else mask[i], position, offset_group)
            made = self._product(columns[None].astype(x.dtype, copy=False), (flat, b), None, lambda: {"groups": group})
            result[i] = made.reshape(result.shape[1:])
        return (result,)

    def _flattened(self, w: Any) -> Any:
        """Return the weight with one tap and many channels; the same array again for the same constant weight."""
        of, flat = self._flat
        if of is not w:
            flat = w.reshape(w.shape[0], -1, 1)
            if is_constant(w):
                freeze(flat)
                self._flat = w, flat
        return flat


def _check_offsets(x: Any, offset: Any, mask: Any, position: Window, offset_group: int) -> None:
    taps = offset_group * math.prod(position.kernel)
    if x.shape[1] % offset_group:
        raise ValueError(f"offset_group: {offset_group} does not divide {x.shape[1]} channels")
    expected = (x.shape[0], taps * (x.ndim - 2), *position.output)
    if offset.shape != expected:
        raise ValueError(f"offset: expected shape {expected}, got {offset.shape}")
    if mask is not None and mask.shape != (x.shape[0], taps, *position.output):
        raise ValueError(f"mask: expected shape {(x.shape[0], taps, *position.output)}, got {mask.shape}")


class Col2Im(Op):
    """Columns added up into an image of 1 to 3 dimensions."""

    def _run(
        self,
        columns: Any,
        image_shape: Any,
        block_shape: Any,
        dilations: Any = None,
        pads: Any = None,
        strides: Any = None,
    ) -> tuple[Any, ...]:
        size, kernel = tuple(map(int, image_shape)), tuple(map(int, block_shape))
        ndim = len(size)
        exact = columns
        if columns.dtype.kind in "iu":  # added exactly in float64, while sums are not too large
            exact = columns.astype(np.float64)
            if np.abs(exact).max(initial=0) * math.prod(kernel) > 2**53:
                raise ValueError(f"input: sums of {columns.dtype} beyond 2**53 would not be exact")
        result = fold(
            exact,
            size,
            kernel,
            per_axis("dilations", dilations, ndim, 1),
            pairs(pads, ndim),
            per_axis("strides", strides, ndim, 1),
        )
        return (result.astype(columns.dtype, copy=False),)
