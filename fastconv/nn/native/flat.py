"""Arrays as kernels take them: one dimension, and how far its images lie apart."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided


class Flat(NamedTuple):
    """A map in memory.

    Attributes
    ----------
    data : ndarray, shape (elements,)
    step : int
        Elements from one image to the next; each image is contiguous.
    """

    data: Any
    step: int


def flat(array: Any) -> Flat:
    """Return an array (N, ...) as kernels take it: without a copy if every image is contiguous."""
    if not array.size:
        return Flat(array.reshape(-1), 0)
    if not images_are_contiguous(array):
        return flat(np.array(array, order="C"))
    if array.flags.c_contiguous:
        return Flat(array.reshape(-1), array.size // len(array))
    step = array.strides[0] // array.itemsize
    span = (len(array) - 1) * step + math.prod(array.shape[1:])
    return Flat(as_strided(array, (span,), (array.itemsize,), writeable=array.flags.writeable), step)


def images_are_contiguous(array: Any) -> bool:
    """Whether `flat` takes an array as it lies in memory."""
    if array.flags.c_contiguous or not array.flags.aligned:
        return bool(array.flags.aligned)
    step, inside = array.strides[0], array.strides[1:]
    whole = step >= 0 and step % array.itemsize == 0  # in a record's field images may lie otherwise
    return whole and bool(inside == contiguous_strides(array.shape[1:], array.itemsize))


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides of a contiguous array."""
    strides = [itemsize]
    for size in shape[:0:-1]:
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()


def nothing(like: Any) -> Any:
    """Return what stands in for an array that a kernel was compiled not to read."""
    return np.empty(0, like.dtype)
