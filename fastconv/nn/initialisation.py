"""Initial weights: Xavier's and He's, and whatever function a user gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastconv import arrays

Random: TypeAlias = "np.random.Generator | int | None"
"""What `numpy.random.default_rng` takes: a generator, a seed, or None for one that differs every time."""

Initialisation: TypeAlias = "str | Callable[[tuple[int, ...], int, int, np.random.Generator], Any]"
"""``xavier``, ``he``, or ``function(shape, fan_in, fan_out, generator)``."""


def xavier(shape: tuple[int, ...], fan_in: int, fan_out: int, generator: np.random.Generator) -> Any:
    """Uniform with variance ``2 / (fan_in + fan_out)``: for sigmoid and tanh (Glorot and Bengio, 2010)."""
    limit = math.sqrt(6 / (fan_in + fan_out))
    values = generator.random(shape, np.float32)
    values *= 2 * limit
    values -= np.float32(limit)
    return values


def he(shape: tuple[int, ...], fan_in: int, fan_out: int, generator: np.random.Generator) -> Any:
    """Normal with variance ``2 / fan_in``: for rectifiers (He et al., 2015)."""
    values = generator.standard_normal(shape, np.float32)
    values *= np.float32(math.sqrt(2 / fan_in))
    return values


def real(dtype: Any) -> Any:
    """Return the dtype of learned arrays.

    Raises
    ------
    TypeError
        If fastconv does not compute in it.
    """
    found = np.dtype(dtype)
    arrays.float_dtype("dtype", np.empty(0, found))
    return found


_KNOWN = {"xavier": xavier, "he": he}


def draw(how: Initialisation, shape: tuple[int, ...], fan_in: int, fan_out: int, random: Random, dtype: Any) -> Any:
    """Return initial weights.

    Raises
    ------
    TypeError
        If fastconv does not compute in the dtype.
    ValueError
        If there is no such initialisation, or a user's function returns another shape.
    """
    function = _KNOWN.get(how) if isinstance(how, str) else how
    if function is None:
        raise ValueError(f"initialisation: expected {', '.join(_KNOWN)} or a function, got {how!r}")
    kind = real(dtype)
    given = function(shape, fan_in, fan_out, np.random.default_rng(random))
    # In C order, and of nobody else: optimisers change it in place.
    values = np.array(given, kind, order="C", copy=None if isinstance(how, str) else True)
    if values.shape != shape:
        raise ValueError(f"initialisation: expected weights of shape {shape}, got {values.shape}")
    return values
