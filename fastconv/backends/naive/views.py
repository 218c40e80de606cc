"""Views of a problem's arrays as the loops take them: three spatial axes, shared elements repeated by stride 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fastconv.algorithm import AnyProblem
from fastconv.geometry import Table, taps
from fastconv.problem import AXES, Sizes

_NO_AXIS = np.zeros((1, 1), np.int64)
_NO_AXIS.flags.writeable = False


def readable(array: Any, dtype: str) -> Any:
    """Return the array in ``dtype``, native and aligned: itself if it is so already."""
    return np.require(array, dtype, "A")


@contextmanager
def accumulating(output: Any, dtype: str) -> Iterator[Any]:
    """Yield zeros in ``dtype`` to add results to: the output itself, or an array that is rounded into it at the end.

    NaN and infinity are results like any other: NumPy does not warn of them inside the block.
    """
    direct = output.dtype == np.dtype(dtype) and output.flags.aligned
    result = output if direct else np.empty(output.shape, dtype)
    result[...] = 0
    with np.errstate(all="ignore"):
        yield result
        if not direct:
            output[...] = result


def missing(ndim: int) -> int:
    """Return how many spatial axes are to be inserted."""
    return len(AXES) - ndim


def lift(array: Any, *axes: int, ndim: int) -> Any:
    """Insert the missing spatial axes before each of ``axes``, of the array as it will be."""
    count = missing(ndim)
    return np.expand_dims(array, tuple(axis + i for axis in axes for i in range(count)))


def lift_sizes(sizes: Sizes) -> Sizes:
    """Return sizes of three spatial axes."""
    return (1,) * missing(len(sizes)) + sizes


def lift_taps(problem: AnyProblem) -> tuple[Table, ...]:
    """Return the index tables of three spatial axes."""
    return (_NO_AXIS,) * missing(problem.ndim) + taps(problem)


def spread(array: Any, shape: Sizes) -> Any:
    """Broadcast as `numpy.broadcast_to`, but writable: writing an element of the view writes what it repeats."""
    return as_strided(array, shape, np.broadcast_to(array, shape).strides)
