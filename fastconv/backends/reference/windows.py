"""Images as planes of float64, and the windows over them: what convolutions and pools share here.

An image (C, spatial) becomes planes of shape (C, elements + 1) whose last element stands for padding. The
index tables call padding ``-1``, which is the last element: reading it gives the padding's value, and what
is written to it is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastconv.algorithm import AnyProblem
from fastconv.geometry import Table, kernel_positions, taps

Planes: TypeAlias = NDArray[np.float64]


def positions(problem: AnyProblem) -> Iterator[Table]:
    """Yield, for every kernel position in row-major order, the flat input index of every output position.

    Each array has shape (output positions,) and holds ``-1`` where the window reads padding.
    """
    tables = taps(problem)
    for k in kernel_positions(tuple(table.shape[1] for table in tables)):
        columns = [table[:, i] for table, i in zip(tables, k, strict=True)]
        flat: Any = np.zeros((), np.int64)
        inside: Any = np.ones((), np.bool_)
        for column, size in zip(columns, problem.input_size, strict=True):
            flat = flat[..., None] * size + column
            inside = inside[..., None] & (column >= 0)
        yield np.where(inside, flat, -1).ravel()


def planes(image: Any, padding: float = 0.0) -> Planes:
    """Return an image (C, spatial) as float64 planes (C, elements + 1) that end in ``padding``."""
    channels, *size = image.shape
    result = np.full((channels, math.prod(size) + 1), padding)
    result[:, :-1] = image.reshape(channels, -1)
    return result


def blank(channels: int, size: tuple[int, ...]) -> Planes:
    """Return planes of zeros to scatter into."""
    return np.zeros((channels, math.prod(size) + 1))


def scatter_add(target: Planes, index: Table, values: Any) -> None:
    """Add ``values`` (C, n) to the planes at ``index`` (n,) or (C, n): the transpose of ``target[:, index]``."""
    # A plane at a time: NumPy's add.at is an order of magnitude faster with one index.
    for plane, where, value in zip(target, np.broadcast_to(index, values.shape), values, strict=True):
        np.add.at(plane, where, value)
