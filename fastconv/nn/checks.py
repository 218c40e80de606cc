"""What layers are given, looked at before any work: kernels find arrays by their addresses, and trust their shapes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fastconv import arguments, arrays
from fastconv.problem import Sizes


class Named(Protocol):
    """Who is named in an error: a layer."""

    def details(self) -> str:
        """Return the settings."""


def floats(name: str, array: Any) -> None:
    """Check that a value is an array of numbers that fastconv computes in.

    Raises
    ------
    TypeError
        If it is no NumPy or CuPy array, or of another dtype.
    """
    if not isinstance(array, np.ndarray) and type(array).__module__.partition(".")[0] != "cupy":
        raise TypeError(f"{name}: expected a NumPy or CuPy array, got {type(array).__name__}")
    arrays.float_dtype(name, array)


def batch(
    layer: Named, x: Any, channels: int | None = None, *, ndim: int | None = None, like: Any = None, least: int = 2
) -> None:
    """Check a layer's input.

    Parameters
    ----------
    layer : Named
        Who is named in the error.
    x : array
    channels : int, optional
        What its axis 1 must have.
    ndim, least : int, optional
        How many axes there must be, or at least.
    like : array, optional
        Whose dtype it must have: the layer's weights.

    Raises
    ------
    TypeError, ValueError
        If it is no such array.
    """
    floats("x", x)
    if like is not None and x.dtype != like.dtype:
        arrays.check_dtype("x", x, like.dtype.name)
    who = type(layer).__name__
    if x.ndim < least or (ndim is not None and x.ndim != ndim):
        axes = f"at least {least}" if ndim is None else str(ndim)
        raise ValueError(f"x: {who} takes a batch, of {axes} axes, got shape {x.shape}")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"x: {who} is for {channels} channels, got shape {x.shape}")


def alike(name: str, array: Any, shape: Sizes, dtype: Any = None) -> None:
    """Check that an array of numbers has a shape, and a dtype if one is given: the output's say.

    Raises
    ------
    TypeError, ValueError
        If it is no array of floating-point numbers, or another one.
    """
    floats(name, array)
    if dtype is not None and array.dtype != dtype:
        arrays.check_dtype(name, array, dtype.name)
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")


def channels_of(layer: Named, shape: Sizes, channels: int) -> None:
    """Check that one image's shape has so many channels.

    Raises
    ------
    ValueError
        If it has others.
    """
    if not shape or shape[0] != channels:
        raise ValueError(f"shape: {type(layer).__name__} is for {channels} channels, got {shape}")


def not_empty(layer: Named, shape: Sizes, result: Sizes) -> Sizes:
    """Return one image's output shape, if there is anything in it.

    Raises
    ------
    ValueError
        If the layer's window does not fit into the map.
    """
    if any(size < 1 for size in result):
        raise ValueError(f"shape: the window of {type(layer).__name__}({layer.details()}) does not fit into {shape}")
    return result


def padding(value: Any, kernel: tuple[int, ...]) -> Any:
    """Return a padding as caches can look it up.

    Raises
    ------
    TypeError, ValueError
        If it is none for a window of as many axes as ``kernel``.
    """
    given = arguments.hashable("padding", value)
    arguments.padding(given, kernel, kernel, (1,) * len(kernel), (1,) * len(kernel))
    return given
