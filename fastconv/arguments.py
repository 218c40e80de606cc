"""Reading small arguments, of the public functions and of problems: sizes, strides, paddings, flags.

Every function takes the argument's name first, so that what it raises can name it.
"""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np

from fastconv.sizes import Padding, Sizes, same_padding

LARGEST = 2**31 - 1
"""No size is larger: the sums and products of a few then fit the machine's integers."""


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Return an integer of at least ``least``, and at most `LARGEST` away from zero."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if least is not None and result < least:
        raise ValueError(f"{name}: must be at least {least}, got {result}")
    if abs(result) > LARGEST:
        raise ValueError(f"{name}: must be at most {LARGEST}, got {result}")
    return result


def number(name: str, value: Any) -> float:
    """Return a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: {value} is too large") from None


def inside(name: str, value: Any, interval: str) -> float:
    """Return a number in an interval that is written as ``[0, 1)``.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or outside.
    """
    result = number(name, value)
    low, high = map(float, interval[1:-1].split(","))
    above = result >= low if interval[0] == "[" else result > low
    below = result <= high if interval[-1] == "]" else result < high
    if not (above and below):
        raise ValueError(f"{name}: expected a number in {interval}, got {value}")
    return result


def flag(name: str, value: Any) -> bool:
    """Return a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def sizes(name: str, value: Any, ndim: int, least: int = 1, kept: Sizes | None = None) -> Sizes:
    """Return one integer per spatial axis; a single one stands for all, None for the one in ``kept``, if given."""
    value = hashable(name, value)
    entries = [
        entry if entry is None and kept is not None else integer(name, entry, least)
        for entry in (value if isinstance(value, tuple) else (value,))
    ]
    if len(entries) == 1:
        entries *= ndim
    if len(entries) != ndim:
        raise ValueError(f"{name}: expected an integer or {ndim} of them, got {value!r}")
    return tuple(k if entry is None else entry for entry, k in zip(entries, kept or (0,) * ndim, strict=True))


def shape(name: str, value: Any) -> Sizes:
    """Return a whole shape."""
    value = hashable(name, value)
    if not isinstance(value, tuple):
        raise TypeError(f"{name}: expected a tuple of integers, got {value!r}")
    return tuple(integer(name, entry, 0) for entry in value)


def padding(value: Any, input_size: Sizes, kernel_size: Sizes, stride: Sizes, dilation: Sizes) -> Padding:
    """Return (before, after) per spatial axis.

    Parameters
    ----------
    value : int, sequence of int, sequence of (int, int), 'same' or 'valid'
        ``'same'`` gives ``ceil(input / stride)`` positions; where the padding is odd, the larger part comes after.
    input_size, kernel_size, stride, dilation : tuple of int
    """
    ndim = len(kernel_size)
    value = hashable("padding", value)
    if isinstance(value, str):
        if value == "valid":
            return ((0, 0),) * ndim
        if value == "same":
            return tuple(map(same_padding, input_size, kernel_size, stride, dilation))
        raise ValueError(f"padding: expected 'same', 'valid', integers or pairs, got {value!r}")
    if isinstance(value, tuple) and value and all(isinstance(entry, tuple) for entry in value):
        pairs = tuple(sizes("padding", entry, 2, 0) for entry in value)
        if len(pairs) != ndim:
            raise ValueError(f"padding: expected {ndim} pairs (before, after), got {value!r}")
        return tuple((pair[0], pair[1]) for pair in pairs)
    return tuple((p, p) for p in sizes("padding", value, ndim, 0))


def hashable(name: str, value: Any) -> Any:
    """Return an argument as integers, strings and tuples of them, so that it can be looked up in a cache.

    Whatever is no integer is refused here: a cache would take 1.0 and True for 1. Lists, ranges and NumPy's arrays
    count as tuples; a set or a dictionary, which has no order of axes, does not.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, tuple | list | range) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(hashable(name, entry) for entry in value)
    return integer(name, value)


def word(name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {value!r}")
    return value
