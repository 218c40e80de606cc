"""The loops. Importing this module imports Numba, so it is imported when a plan is made.

Everything has three spatial axes: an image is (N, C, D, H, W), an index table (output size, kernel size)
of each axis says which input element a window reads, ``-1`` being padding (see `fastconv.geometry`). Two
views make a few loops do for many operations: a convolution is a locally connected layer whose weights have
stride 0 over the output positions, and a sum over windows is an unfold whose result has stride 0 over the
kernel positions.

Each function is compiled once per dtype, for arrays of any strides, when it is first called for:
``fprop("float32")`` returns the compiled function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import register_jitable

from fastconv.code_files import named_files


def _reads(dtype: Any, ndim: int) -> Any:
    return types.Array(dtype, ndim, "A", readonly=True)


def _writes(dtype: Any, ndim: int) -> Any:
    return types.Array(dtype, ndim, "A")


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
_TABLES = (_reads(types.int64, 2),) * 3


def _compiled(signature: Callable[[Any], tuple[Any, ...]]) -> Callable[[Callable[..., None]], Callable[[str], Any]]:
    """Make a loop a function of the dtype's name. The signature is explicit, so that no call compiles another one."""

    def decorate(loop: Callable[..., None]) -> Callable[[str], Any]:
        @cache
        def for_dtype(dtype: str) -> Any:
            arguments = types.void(*signature(getattr(types, dtype)))
            try:
                with named_files():
                    return njit(arguments, cache=True, **_OPTIONS)(loop)
            except RuntimeError:  # no directory that a cache could be written to
                return njit(arguments, **_OPTIONS)(loop)

        return for_dtype

    return decorate


# These take shapes, not arrays: an array handed over is reference-counted, which costs ten times the loop's work.


@register_jitable
def _inside(image: tuple[int, ...], i: int, j: int, k: int) -> bool:
    """Whether a position lies inside an image of that shape. Every access through a table is guarded by it."""
    return 0 <= i < image[2] and 0 <= j < image[3] and 0 <= k < image[4]


@register_jitable
def _first_channel(image: tuple[int, ...], weight: tuple[int, ...], o: int) -> int:
    """Return the first input channel of the group that output channel ``o`` belongs to."""
    per_group = weight[4]
    return o // (weight[3] // (image[1] // per_group)) * per_group


# Convolution. Weights are (OD, OH, OW, K, C / groups, KD, KH, KW).


@_compiled(lambda real: (_reads(real, 5), _reads(real, 8), *_TABLES, _writes(real, 5)))
def fprop(x, w, td, th, tw, y):
    padding = x.dtype.type(0)
    for n, o, i, j, k in np.ndindex(y.shape):
        first = _first_channel(x.shape, w.shape, o)
        total = padding
        for c in range(w.shape[4]):
            for a in range(w.shape[5]):
                for b in range(w.shape[6]):
                    for e in range(w.shape[7]):
                        p, q, r = td[i, a], th[j, b], tw[k, e]
                        value = x[n, first + c, p, q, r] if _inside(x.shape, p, q, r) else padding
                        total += w[i, j, k, o, c, a, b, e] * value
        y[n, o, i, j, k] = total


@_compiled(lambda real: (_reads(real, 5), _reads(real, 8), *_TABLES, _writes(real, 5)))
def dgrad(dy, w, td, th, tw, dx):
    for n, o, i, j, k in np.ndindex(dy.shape):
        first = _first_channel(dx.shape, w.shape, o)
        gradient = dy[n, o, i, j, k]
        for c in range(w.shape[4]):
            for a in range(w.shape[5]):
                for b in range(w.shape[6]):
                    for e in range(w.shape[7]):
                        p, q, r = td[i, a], th[j, b], tw[k, e]
                        if _inside(dx.shape, p, q, r):
                            dx[n, first + c, p, q, r] += w[i, j, k, o, c, a, b, e] * gradient


@_compiled(lambda real: (_reads(real, 5), _reads(real, 5), *_TABLES, _writes(real, 8)))
def wgrad(x, dy, td, th, tw, dw):
    padding = x.dtype.type(0)
    for n, o, i, j, k in np.ndindex(dy.shape):
        first = _first_channel(x.shape, dw.shape, o)
        gradient = dy[n, o, i, j, k]
        for c in range(dw.shape[4]):
            for a in range(dw.shape[5]):
                for b in range(dw.shape[6]):
                    for e in range(dw.shape[7]):
                        p, q, r = td[i, a], th[j, b], tw[k, e]
                        value = x[n, first + c, p, q, r] if _inside(x.shape, p, q, r) else padding
                        dw[i, j, k, o, c, a, b, e] += value * gradient


@_compiled(lambda real: (_reads(real, 5), _writes(real, 5)))
def bgrad(dy, db):
    for n, o, i, j, k in np.ndindex(dy.shape):
        db[n, o, i, j, k] += dy[n, o, i, j, k]


# Windows. Columns are (N, C, KD, KH, KW, OD, OH, OW).


@_compiled(lambda real: (_reads(real, 5), *_TABLES, _writes(real, 8)))
def gather(x, td, th, tw, columns):
    for n, c, a, b, e, i, j, k in np.ndindex(columns.shape):
        p, q, r = td[i, a], th[j, b], tw[k, e]
        if _inside(x.shape, p, q, r):
            columns[n, c, a, b, e, i, j, k] += x[n, c, p, q, r]


@_compiled(lambda real: (_reads(real, 8), *_TABLES, _writes(real, 5)))
def scatter(columns, td, th, tw, dx):
    for n, c, a, b, e, i, j, k in np.ndindex(columns.shape):
        p, q, r = td[i, a], th[j, b], tw[k, e]
        if _inside(dx.shape, p, q, r):
            dx[n, c, p, q, r] += columns[n, c, a, b, e, i, j, k]


@_compiled(lambda real: (_reads(real, 5), *_TABLES, _writes(real, 5), _writes(types.int64, 5)))
def maximum(x, td, th, tw, y, indices):
    for n, c, i, j, k in np.ndindex(y.shape):
        best, chosen = x.dtype.type(-np.inf), -1
        for a in range(td.shape[1]):
            for b in range(th.shape[1]):
                for e in range(tw.shape[1]):
                    p, q, r = td[i, a], th[j, b], tw[k, e]
                    if _inside(x.shape, p, q, r):
                        value = x[n, c, p, q, r]
                        # PyTorch's rule: of equal values the first, of NaNs the last.
                        if value > best or np.isnan(value) or chosen < 0:
                            best, chosen = value, (p * x.shape[3] + q) * x.shape[4] + r
        y[n, c, i, j, k] = best
        indices[n, c, i, j, k] = chosen


# Recorded positions. An index is flat over the spatial axes; -1 is none.


@register_jitable
def _position(image: tuple[int, ...], index: int) -> tuple[int, int, int]:
    row, k = divmod(index, image[4])
    i, j = divmod(row, image[3])
    return i, j, k


@_compiled(lambda real: (_reads(real, 5), _reads(types.int64, 5), _writes(real, 5)))
def put(values, indices, target):
    for n, c, i, j, k in np.ndindex(values.shape):
        p, q, r = _position(target.shape, indices[n, c, i, j, k])
        if _inside(target.shape, p, q, r):
            target[n, c, p, q, r] = values[n, c, i, j, k]


@_compiled(lambda real: (_reads(real, 5), _reads(types.int64, 5), _writes(real, 5)))
def put_add(values, indices, target):
    for n, c, i, j, k in np.ndindex(values.shape):
        p, q, r = _position(target.shape, indices[n, c, i, j, k])
        if _inside(target.shape, p, q, r):
            target[n, c, p, q, r] += values[n, c, i, j, k]


@_compiled(lambda real: (_reads(real, 5), _reads(types.int64, 5), _writes(real, 5)))
def take(source, indices, result):
    for n, c, i, j, k in np.ndindex(result.shape):
        p, q, r = _position(source.shape, indices[n, c, i, j, k])
        if _inside(source.shape, p, q, r):
            result[n, c, i, j, k] = source[n, c, p, q, r]
