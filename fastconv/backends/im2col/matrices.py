"""Arrays of named axes as stacks of matrices, and which stacks a convolution is made of.

A convolution is ``result = weight @ columns`` once its arrays are read as matrices:

=========  ======================  ==========
array      axes                    matrix
=========  ======================  ==========
columns    n, g, c, k, o           (c k, n o)
result     n, g, m, o              (m, n o)
weight     [o,] g, m, c, k         (m, c k)
=========  ======================  ==========

with images n, groups g, input channels c and output channels m of a group, kernel positions k and output
positions o (k and o stand for one axis a spatial dimension). Whatever is not part of the matrix is looped
over by ``np.matmul``. `form` chooses what is, so that the arrays are matrices as they lie in memory.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.im2col.slabs import inverse
from fastconv.problem import ConvProblem

# Below this many positions an image is too narrow a matrix for full speed, and images are laid side by side.
NARROW = 256

# Shorter runs than this are slow to copy or to add: the positions are then laid next to each other instead.
SHORT = 16


def is_matrix(array: Any) -> bool:
    """Whether BLAS takes the last two axes as they are: one is contiguous, the other strides over it.

    ``np.matmul`` copies anything else, or loops over it; of a single row or column it wants to see no strides.
    """
    (rows, columns), (by_row, by_column), item = (array.shape[-2:], array.strides[-2:], array.itemsize)
    along_rows = by_column == item and by_row >= columns * item and by_row % item == 0
    along_columns = by_row == item and by_column >= rows * item and by_column % item == 0
    if rows == 1 or columns == 1:
        along_rows, along_columns = by_column == item or columns == 1, by_row == item or rows == 1
        return along_rows and along_columns and bool(array.flags.aligned)
    return (along_rows or along_columns) and bool(array.flags.aligned)


def multiply(a: Any, b: Any, out: Any) -> None:
    """Write the products of two stacks of matrices.

    A product of columns with rows is no sum at all, and BLAS has no good way to do it.
    """
    if a.shape[-1] == 1:
        np.multiply(a, b, out=out)
    else:
        np.matmul(a, b, out=out)


class Matrix:
    """How one array of named axes is read as a stack of matrices.

    Parameters
    ----------
    axes : str
        The array's axes, a letter each; ``k`` and ``o`` stand for ``ndim`` axes.
    batch, rows, columns : str
        Where they go.
    ndim : int
    by_row : bool
        A buffer's rows are contiguous, else its columns.
    """

    def __init__(self, axes: str, ndim: int, batch: str, rows: str, columns: str, by_row: bool) -> None:
        places: dict[str, range] = {}
        start = 0
        for letter in axes:
            places[letter] = range(start, start + (ndim if letter in "ko" else 1))
            start = places[letter].stop

        def spread(letters: str) -> list[int]:
            return [i for letter in letters for i in places[letter]]

        outer, inner = (rows, columns) if by_row else (columns, rows)
        self.order = tuple(spread(batch + outer + inner))
        self.by_row = by_row
        self._batch = len(spread(batch))
        self._split = self._batch + len(spread(outer))

    def view(self, array: Any) -> Any:
        """Return the array as matrices without a copy, None if its strides do not allow it."""
        array = array.transpose(self.order)
        shape = array.shape
        outer, inner = (math.prod(shape[self._batch : self._split]), math.prod(shape[self._split :]))
        try:
            matrix = array.reshape(*shape[: self._batch], outer, inner, copy=False)
        except ValueError:
            return None
        matrix = matrix if self.by_row else matrix.swapaxes(-1, -2)
        return matrix if is_matrix(matrix) else None


class Form(NamedTuple):
    """The three arrays of a convolution as matrices.

    Attributes
    ----------
    columns, result, weight : Matrix
    taps_first : bool
        Along the columns, kernel positions come before channels.
    images_apart : bool
        Every image is a matrix of its own.
    crosses_layout : bool
        Columns and slab have their channels first although the map has them last.
    """

    columns: Matrix
    result: Matrix
    weight: Matrix
    taps_first: bool
    images_apart: bool
    crosses_layout: bool


def form(problem: ConvProblem) -> Form:
    """Return the matrices of a problem, chosen by its memory order and its sizes."""
    positions = math.prod(problem.output_size)
    by_row, depth = True, "ck"
    if problem.is_local and problem.direction != "bgrad":
        batch, across = "og", "n"
    elif problem.layout == "channels_last" or positions == 1:
        batch, across, by_row = "g", "no", False
        # Either the columns or the weight is rearranged: the smaller one, or what was packed beforehand.
        if problem.layout == "channels_last" and (problem.prepacked or problem.n * positions > problem.oc):
            depth = "kc"
    elif _images_apart(problem, positions):
        batch, across = "ng", "o"
    else:
        batch, across = "g", "no"
    local = problem.is_local
    crosses = not by_row and problem.layout == "channels_last" and _runs_are_short(problem)
    return Form(
        columns=Matrix("ngcko", problem.ndim, batch, depth, across, by_row or crosses),
        result=Matrix("ngmo", problem.ndim, batch, "m", across, by_row),
        weight=Matrix("ogmck" if local else "gmck", problem.ndim, "og" if local else "g", "m", depth, True),
        taps_first=depth == "kc",
        images_apart=batch == "ng",
        crosses_layout=crosses,
    )


def _images_apart(problem: ConvProblem, positions: int) -> bool:
    """Whether every image is a matrix of its own; a weight's gradient sums over them instead."""
    if problem.direction == "bgrad":
        return True
    return problem.direction != "wgrad" and (positions >= NARROW or problem.n == 1)


def _runs_are_short(problem: ConvProblem) -> bool:
    """Whether few elements of a window lie next to each other where channels come last."""
    if problem.direction == "bgrad" or math.prod(problem.output_size) == 1 or math.prod(problem.kernel_size) == 1:
        return False
    channels = problem.ic // problem.groups
    # A row of a window is copied at once, but kernel positions are added back one after the other.
    return (channels if problem.direction == "dgrad" else channels * problem.kernel_size[-1]) < SHORT


def natural_strides(shape: tuple[int, ...], itemsize: int, channels_last: bool) -> tuple[int, ...]:
    """Return the strides of a contiguous array, its axis 1 moved last in memory for ``channels_last``."""
    order = [0, *range(2, len(shape)), 1] if channels_last else range(len(shape))
    strides, step = [0] * len(shape), itemsize
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def packed(matrix: Matrix, weight: Any, dtype: Any) -> Any:
    """Return a weight laid out in memory as a matrix takes it, its shape unchanged."""
    flat = np.ascontiguousarray(weight.transpose(matrix.order), dtype=dtype)
    return flat.transpose(inverse(matrix.order))
