"""ConvInteger and QLinearConv: integer convolutions, exact.

The sums are those of a floating convolution that cannot round: in float32 while no sum of absolute products passes
2**24, else in float64. Both ask for algorithms that sum plainly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.onnx.base import Op
from fastconv.onnx.convolution import Convolution
from fastconv.onnx.packed import freeze, is_constant
from fastconv.options import options

_LARGEST = {np.dtype(np.float32): 2**24, np.dtype(np.float64): 2**53}


def _per_channel(name: str, value: Any, w: Any) -> Any:
    """Return a scalar, or a vector of a value per output channel, so that it broadcasts against the weight."""
    value = np.asarray(value)
    if value.size == 1:
        return value.reshape(())
    if value.shape != (w.shape[0],):
        raise ValueError(f"{name}: expected a scalar or {w.shape[0]} values, one per output channel, got {value.shape}")
    return value.reshape(-1, *(1,) * (w.ndim - 1))


def _scalar(name: str, value: Any) -> Any:
    value = np.asarray(value)
    if value.size != 1:
        raise ValueError(f"{name}: expected a scalar, got shape {value.shape}")
    return value.reshape(())


def _check_integer(name: str, array: Any) -> None:
    if array.dtype not in (np.int8, np.uint8):
        raise TypeError(f"{name}: expected int8 or uint8, got {array.dtype}")


class IntegerConvolution:
    """An exact convolution of integers with zero points; the weight is packed once if it is constant."""

    def __init__(self, attributes: Any) -> None:
        self._convolve = Convolution(attributes)
        self._made: tuple[Any, ...] = (None, None, None)

    def __call__(self, x: Any, w: Any, x_zero: Any, w_zero: Any) -> Any:
        """Return the sums as int64.

        Parameters
        ----------
        x, w : ndarray of int8 or uint8
        x_zero : ndarray or None
            A scalar.
        w_zero : ndarray or None
            A scalar, or one per output channel.
        """
        _check_integer("x", x)
        _check_integer("w", w)
        largest, shifted = self._weight(w, w_zero)
        zero = 0 if x_zero is None else int(_scalar("x_zero_point", x_zero))
        limits = np.iinfo(x.dtype)
        bound = largest * max(abs(limits.min - zero), abs(limits.max - zero))
        dtype = np.dtype(np.float32 if bound <= _LARGEST[np.dtype(np.float32)] else np.float64)
        if bound > _LARGEST[dtype]:
            raise ValueError(f"w: sums may reach {bound}, more than float64 holds exactly")
        values = x.astype(dtype)
        if zero:
            values -= zero
        with options(strict=True):
            return self._convolve(values, shifted[dtype]).astype(np.int64)

    def _weight(self, w: Any, w_zero: Any) -> tuple[int, Any]:
        """Return the largest sum of absolute weights of an output channel, and the weights without zero point."""
        of, zero, made = self._made
        if of is w and zero is w_zero and is_constant(w) and (w_zero is None or is_constant(w_zero)):
            return made  # type: ignore[no-any-return]
        shifted = w.astype(np.int64)
        if w_zero is not None:
            shifted -= _per_channel("w_zero_point", w_zero, w)
        axes = tuple(range(1, w.ndim))
        made = int(np.abs(shifted).sum(axes).max(initial=0)), _ByDtype(shifted)
        self._made = w, w_zero, made
        return made


class _ByDtype(dict[Any, Any]):
    """Integers as floating arrays, each made when it is first asked for, and constant."""

    def __init__(self, integers: Any) -> None:
        super().__init__()
        self._integers = integers

    def __missing__(self, dtype: Any) -> Any:
        self[dtype] = self._integers.astype(dtype)
        freeze(self[dtype])
        return self[dtype]


class _Quantized(Op):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = self.attributes_names_
        self._made = (
            None if self.has_linked_attribute else IntegerConvolution({name: getattr(self, name) for name in names})
        )

    def _sums(self, x: Any, w: Any, x_zero: Any, w_zero: Any, attributes: dict[str, Any]) -> Any:
        return (self._made or IntegerConvolution(attributes))(x, w, x_zero, w_zero)


class ConvInteger(_Quantized):
    """Convolution of int8 or uint8 to int32; sums beyond it wrap around."""

    def _run(self, x: Any, w: Any, x_zero: Any = None, w_zero: Any = None, **attributes: Any) -> tuple[Any, ...]:
        return (self._sums(x, w, x_zero, w_zero, attributes).astype(np.int32),)


class QLinearConv(_Quantized):
    """Convolution of quantized numbers to quantized numbers.

    ``saturate(round(sums * (x_scale * w_scale / y_scale)) + y_zero_point)``, halves rounded to even.
    """

    def _run(
        self,
        x: Any,
        x_scale: Any,
        x_zero: Any,
        w: Any,
        w_scale: Any,
        w_zero: Any,
        y_scale: Any,
        y_zero: Any,
        b: Any = None,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        sums = self._sums(x, w, x_zero, w_zero, attributes)
        per_channel = (-1, *(1,) * (x.ndim - 2))
        if b is not None:
            sums += b.astype(np.int64).reshape(per_channel)
        scale = _scalar("x_scale", x_scale) * _per_channel("w_scale", w_scale, w) / _scalar("y_scale", y_scale)
        if scale.ndim:
            scale = scale.reshape(per_channel)
        result = sums * np.asarray(scale, np.float64)
        np.rint(result, out=result)
        dtype = x.dtype if y_zero is None else y_zero.dtype
        if y_zero is not None:
            result += _scalar("y_zero_point", y_zero)
        limits = np.iinfo(dtype)
        return (result.clip(limits.min, limits.max, out=result).astype(dtype),)
