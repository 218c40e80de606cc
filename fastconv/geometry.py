"""Which input element each window position reads: one small index table per axis.

``taps(problem)[axis][o, k]`` is the input index that output position ``o`` reads through kernel position
``k``, or ``-1`` where it reads padding. Stride, dilation, the padding modes, rounding up and the
uneven windows of adaptive pools all end in this table, so that what follows it needs to know none of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastconv.problem import ConvProblem, PoolProblem

Table: TypeAlias = NDArray[Any]


def taps(problem: ConvProblem | PoolProblem) -> tuple[Table, ...]:
    """Return the index table of every axis, shape (output size, kernel size). Read-only and shared."""
    if isinstance(problem, PoolProblem) and problem.is_adaptive:
        return tuple(_adaptive_taps(i, o) for i, o in zip(problem.input_size, problem.output_size, strict=True))
    mode = problem.padding_mode if isinstance(problem, ConvProblem) else "zeros"
    return tuple(
        _taps(*axis, mode)
        for axis in zip(
            problem.input_size,
            problem.output_size,
            problem.kernel_size,
            problem.stride,
            problem.dilation,
            (before for before, _ in problem.padding),
            strict=True,
        )
    )


@lru_cache(maxsize=1024)
def _taps(size: int, out: int, kernel: int, stride: int, dilation: int, before: int, mode: str) -> Table:
    position = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - before
    return _frozen(source_index(position, size, mode))


def source_index(position: NDArray[Any], size: int, mode: str) -> Table:
    """Map positions in the padded input to positions in the input, ``-1`` for zero padding."""
    if mode == "replicate":
        position = position.clip(0, size - 1)
    if mode == "circular":
        position = position % size
    if mode == "reflect":
        # The edge itself is not repeated: ... 2 1 | 0 1 2 ... n-1 | n-2 ...
        position = (size - 1) - abs((size - 1) - abs(position))
    return np.where((position >= 0) & (position < size), position, -1)


@lru_cache(maxsize=1024)
def _adaptive_taps(size: int, out: int) -> Table:
    """Windows from ``floor(o * size / out)`` to ``ceil((o + 1) * size / out)``, as PyTorch's adaptive pools."""
    start = np.arange(out) * size // out
    stop = -(-(np.arange(1, out + 1) * size) // out)
    position = start[:, None] + np.arange((stop - start).max())
    return _frozen(np.where(position < stop[:, None], position, -1))


def window_counts(problem: PoolProblem) -> tuple[NDArray[np.float64], ...]:
    """Return, per axis, what an average pool divides by: shape (output size,); the product is the divisor.

    Padding counts if ``count_include_pad``, but never beyond the padded input, which a window that
    was rounded up may overhang (PyTorch's rule). ``divisor_override`` stands in the first axis alone.
    """
    if problem.divisor_override is not None:
        ones = [np.ones(o) for o in problem.output_size]
        ones[0] = ones[0] * problem.divisor_override
        return tuple(ones)
    if problem.is_adaptive or not problem.count_include_pad:
        return tuple((table >= 0).sum(1).astype(np.float64) for table in taps(problem))
    counts = []
    for size, out, kernel, stride, (before, after) in zip(
        problem.input_size, problem.output_size, problem.kernel_size, problem.stride, problem.padding, strict=True
    ):
        start = np.arange(out) * stride - before
        counts.append((np.minimum(start + kernel, size + after) - start).astype(np.float64))
    return tuple(counts)


def _frozen(table: NDArray[Any]) -> Table:
    table = np.ascontiguousarray(table, dtype=np.int64)
    table.flags.writeable = False
    return table
