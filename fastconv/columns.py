"""unfold and fold (im2col and col2im) as operations of their own."""

from __future__ import annotations

import math
from typing import Any

from fastconv import arguments, arrays
from fastconv.arrays import Array
from fastconv.call import Call, op
from fastconv.lowering import Common, batched, read_arrays, window_problem
from fastconv.sizes import Sizes


@op
def unfold(
    input: Array,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
    *,
    out: Array | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
) -> Call:
    """Lay every window of the input out as a column (im2col).

    Parameters
    ----------
    input : array, shape (N, C, spatial) or (C, spatial)
    kernel_size : int or one per axis
        A single int means two spatial axes, as in PyTorch; a tuple of 1 to 3 says how many there are.
    dilation, padding, stride
        As in `conv2d`, zero padding.
    out, backend, algorithm
        As in `conv2d`.

    Returns
    -------
    array, shape (N, C * prod(kernel_size), positions) or without N

    Raises
    ------
    TypeError, ValueError
        As in `conv2d`.
    """
    kernel = _window(kernel_size)
    read = read_arrays(input=input)
    x, added = batched("input", read.arrays["input"], len(kernel))
    problem = window_problem("unfold", "fprop", x.shape, read, arrays.layout_of(x), kernel, stride, padding, dilation)
    return Common(out, backend, algorithm).call(problem, {"input": x}, read, problem.y_shape[added:])


@op
def fold(
    input: Array,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
    *,
    out: Array | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
) -> Call:
    """Add columns up where `unfold` took them from (col2im): the gradient of `unfold`.

    Parameters
    ----------
    input : array, shape (N, C * prod(kernel_size), positions) or without N
    output_size : int or one per axis
    kernel_size, dilation, padding, stride, out, backend, algorithm
        As in `unfold`.

    Returns
    -------
    array, shape (N, C, *output_size) or (C, *output_size)

    Raises
    ------
    TypeError, ValueError
        As in `conv2d`; also if the input's two last sizes do not fit the others.
    """
    kernel = _window(kernel_size)
    size = arguments.sizes("output_size", output_size, len(kernel))
    read = read_arrays(input=input)
    columns, added = batched("input", read.arrays["input"], 1)
    taps = math.prod(kernel)
    if columns.shape[1] % taps or not columns.shape[1]:
        raise ValueError(f"input: {columns.shape[1]} rows are no multiple of the kernel's {taps} elements")
    problem = window_problem(
        "unfold",
        "dgrad",
        (columns.shape[0], columns.shape[1] // taps, *size),
        read,
        "channels_first",
        kernel,
        stride,
        padding,
        dilation,
    )
    if columns.shape != problem.y_shape:
        raise ValueError(f"input: expected {problem.y_shape[2]} columns for output_size {size}, got {columns.shape[2]}")
    return Common(out, backend, algorithm).call(problem, {"input": columns}, read, problem.x_shape[added:])


def _window(kernel_size: Any) -> Sizes:
    given = arguments.hashable("kernel_size", kernel_size)
    if isinstance(given, tuple) and not 1 <= len(given) <= 3:
        raise ValueError(f"kernel_size: expected an integer or 1 to 3 of them, got {kernel_size!r}")
    return arguments.sizes("kernel_size", given, len(given) if isinstance(given, tuple) else 2)
