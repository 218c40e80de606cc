"""The public pools: maximum, average, Lp, adaptive, and max_unpool, in 1 to 3 dimensions.

As in `ops`, each function is a lowering; the members of a family differ in the number of axes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import arguments, arrays
from fastconv.arrays import Array
from fastconv.call import Call, named_op
from fastconv.lowering import COMMON_DOC, Common, batched, read_arrays, window_problem
from fastconv.sizes import Sizes


def _pool(
    kind: str,
    ndim: int,
    input: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    common: Common,
    **fields: Any,
) -> Call:
    read = read_arrays(input=input)
    x, added = batched("input", read.arrays["input"], ndim)
    kernel = arguments.sizes("kernel_size", kernel_size, ndim)
    problem = window_problem(
        f"{kind}{ndim}d", "fprop", x.shape, read, arrays.layout_of(x), kernel, stride, padding, dilation, **fields
    )
    return common.call(problem, {"input": x}, read, problem.y_shape[added:])


def _adaptive(
    kind: str,
    ndim: int,
    input: Array,
    output_size: Any,
    common: Common,
    **fields: Any,
) -> Call:
    read = read_arrays(input=input)
    x, added = batched("input", read.arrays["input"], ndim)
    size = arguments.sizes("output_size", output_size, ndim, kept=x.shape[2:])
    problem = window_problem(
        f"adaptive_{kind}_pool{ndim}d",
        "fprop",
        x.shape,
        read,
        arrays.layout_of(x),
        (1,) * ndim,
        1,
        0,
        1,
        output_size=size,
        **fields,
    )
    return common.call(problem, {"input": x}, read, problem.y_shape[added:])


def _unpool(
    ndim: int,
    input: Array,
    indices: Array,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
    common: Common,
) -> Call:
    read = read_arrays(input=input)
    x, added = batched("input", read.arrays["input"], ndim)
    where = arrays.read_as("indices", indices, read.kind, "input")
    if where.dtype != np.int64:
        raise TypeError(f"indices: expected dtype int64, got {where.dtype}")
    if where.shape != read.shapes["input"]:
        raise ValueError(f"indices: expected the input's shape {read.shapes['input']}, got {where.shape}")
    size = _unpooled_size(ndim, x.shape[2:], kernel_size, stride, padding, output_size)
    problem = window_problem(
        f"max_unpool{ndim}d", "fprop", x.shape, read, arrays.layout_of(x), (1,) * ndim, 1, 0, 1, output_size=size
    )
    limit = int(np.prod(size))
    # On a GPU that would mean to wait for it: there, an index outside names no place.
    if read.kind.device == "cpu" and where.size and not (int(where.min()) >= 0 and int(where.max()) < limit):
        raise ValueError(f"indices: expected values from 0 to {limit - 1}, got {where.min()} to {where.max()}")
    inputs = {"input": x, "indices": where.reshape(x.shape)}
    return common.call(problem, inputs, read, problem.y_shape[added:])


def _unpooled_size(ndim: int, input_size: Sizes, kernel_size: Any, stride: Any, padding: Any, given: Any) -> Sizes:
    """Return the size that max_unpool restores: the smallest that pools to the input, or ``output_size``."""
    kernel = arguments.sizes("kernel_size", kernel_size, ndim)
    step = kernel if stride is None else arguments.sizes("stride", stride, ndim)
    pads = arguments.sizes("padding", padding, ndim, 0)
    default = tuple((i - 1) * s - 2 * p + k for i, s, p, k in zip(input_size, step, pads, kernel, strict=True))
    if given is None:
        if min(default) < 1:
            raise ValueError(f"padding: {pads} leaves an output of {default} from an input of {input_size}")
        return default
    wanted = arguments.hashable("output_size", given)
    size = arguments.sizes("output_size", wanted[-ndim:] if isinstance(wanted, tuple) else wanted, ndim)
    for wanted, d, s in zip(size, default, step, strict=True):
        if not d - s < wanted < d + s:
            raise ValueError(f"output_size: expected each size within {step} of {default}, got {size}")
    return size


_INPUT_DOC = """

    Parameters
    ----------
    input : array, shape (N, C, {axes}) or (C, {axes})"""

_WINDOW_DOC = """
    kernel_size : int or one per axis
    stride : int or one per axis, optional
        The kernel's size if left out."""

_PADDING_DOC = """
    padding : int, one per axis, a pair (before, after) per axis, 'same' or 'valid'
        At most half of the kernel's span."""

_CEIL_DOC = """
    ceil_mode : bool
        Round the output's size up; a window must still start inside the input or its padding before."""

_INDICES_DOC = """
    return_indices : bool
        Also return, per output, the flat index of its maximum within the input's spatial axes (int64). A window
        wholly in the padding has the index -1."""

_ADAPTIVE_DOC = """
    output_size : int, None or one per axis
        None keeps the input's size. Window ``o`` runs from ``floor(o * size / out)`` to
        ``ceil((o + 1) * size / out)``."""

_ALSO_INDICES = "; with ``return_indices`` a pair of it and the indices"


def _doc(summary: str, *parts: str, also: str = "") -> str:
    return summary + _INPUT_DOC + "".join(parts) + COMMON_DOC.replace("{also}", also)


_MAX_DOC = _doc(
    "Take the maximum of every window over {ndim} spatial axes.\n\n"
    "    Padding is never chosen. NaN is the maximum of its window; of equal elements the first is taken.",
    _WINDOW_DOC,
    _PADDING_DOC,
    "\n    dilation : int or one per axis",
    _CEIL_DOC,
    _INDICES_DOC,
    also=_ALSO_INDICES,
)
_AVG_DOC = _doc(
    "Take the mean of every window over {ndim} spatial axes.",
    _WINDOW_DOC,
    _PADDING_DOC,
    _CEIL_DOC,
    """
    count_include_pad : bool
        Padding counts as zeros of the window.
    divisor_override : int, optional
        Divide the window's sum by this instead.""",
)
_LP_DOC = _doc(
    "Take the Lp norm of every window over {ndim} spatial axes: ``sum(x ** p) ** (1 / p)``.\n\n"
    "    With ``ceil_mode``, the sum over a window that overhangs the input is scaled up to a whole window's, as\n"
    "    PyTorch does. Where the sum is zero, the gradient is taken as zero.",
    "\n    norm_type : float\n        The exponent p, positive.",
    _WINDOW_DOC,
    _CEIL_DOC,
)
_ADAPTIVE_AVG_DOC = _doc("Average over {ndim} spatial axes to an output of a given size.", _ADAPTIVE_DOC)
_ADAPTIVE_MAX_DOC = _doc(
    "Take maxima over {ndim} spatial axes to an output of a given size.",
    _ADAPTIVE_DOC,
    _INDICES_DOC,
    also=_ALSO_INDICES,
)
_UNPOOL_DOC = _doc(
    "Put every element where a max pool over {ndim} spatial axes took it from, zeros elsewhere.\n\n"
    "    Where indices repeat, the last element in memory order stays.",
    "\n    indices : array of int64, the input's shape\n        As `max_pool{ndim}d` returns them.",
    _WINDOW_DOC,
    """
    padding : int or one per axis
    output_size : int, one per axis or a whole shape, optional
        The size before pooling, where more than one size pools to the input's.""",
)


def _make_max(ndim: int) -> Callable[..., Array]:
    def max_pool(
        input: Array,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
        *,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        common = Common(out, backend, algorithm)
        fields = {
            "ceil_mode": arguments.flag("ceil_mode", ceil_mode),
            "return_indices": arguments.flag("return_indices", return_indices),
        }
        return _pool("max_pool", ndim, input, kernel_size, stride, padding, dilation, common, **fields)

    return named_op(max_pool, f"max_pool{ndim}d", _MAX_DOC, ndim)


def _make_avg(ndim: int) -> Callable[..., Array]:
    def avg_pool(
        input: Array,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        common = Common(out, backend, algorithm)
        fields = {
            "ceil_mode": arguments.flag("ceil_mode", ceil_mode),
            "count_include_pad": arguments.flag("count_include_pad", count_include_pad),
            "divisor_override": None
            if divisor_override is None
            else arguments.integer("divisor_override", divisor_override),
        }
        return _pool("avg_pool", ndim, input, kernel_size, stride, padding, 1, common, **fields)

    return named_op(avg_pool, f"avg_pool{ndim}d", _AVG_DOC, ndim)


def _make_lp(ndim: int) -> Callable[..., Array]:
    def lp_pool(
        input: Array,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
        *,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        common = Common(out, backend, algorithm)
        fields = {
            "ceil_mode": arguments.flag("ceil_mode", ceil_mode),
            "norm_type": arguments.number("norm_type", norm_type),
        }
        return _pool("lp_pool", ndim, input, kernel_size, stride, 0, 1, common, **fields)

    return named_op(lp_pool, f"lp_pool{ndim}d", _LP_DOC, ndim)


def _make_adaptive_avg(ndim: int) -> Callable[..., Array]:
    def adaptive_avg_pool(
        input: Array,
        output_size: Any,
        *,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        return _adaptive("avg", ndim, input, output_size, Common(out, backend, algorithm))

    return named_op(adaptive_avg_pool, f"adaptive_avg_pool{ndim}d", _ADAPTIVE_AVG_DOC, ndim)


def _make_adaptive_max(ndim: int) -> Callable[..., Array]:
    def adaptive_max_pool(
        input: Array,
        output_size: Any,
        return_indices: bool = False,
        *,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        flag = arguments.flag("return_indices", return_indices)
        return _adaptive("max", ndim, input, output_size, Common(out, backend, algorithm), return_indices=flag)

    return named_op(adaptive_max_pool, f"adaptive_max_pool{ndim}d", _ADAPTIVE_MAX_DOC, ndim)


def _make_unpool(ndim: int) -> Callable[..., Array]:
    def max_unpool(
        input: Array,
        indices: Array,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        output_size: Any = None,
        *,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        common = Common(out, backend, algorithm)
        return _unpool(ndim, input, indices, kernel_size, stride, padding, output_size, common)

    return named_op(max_unpool, f"max_unpool{ndim}d", _UNPOOL_DOC, ndim)


_DIMENSIONS = (1, 2, 3)
max_pool1d, max_pool2d, max_pool3d = map(_make_max, _DIMENSIONS)
avg_pool1d, avg_pool2d, avg_pool3d = map(_make_avg, _DIMENSIONS)
lp_pool1d, lp_pool2d, lp_pool3d = map(_make_lp, _DIMENSIONS)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(_make_adaptive_avg, _DIMENSIONS)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_make_adaptive_max, _DIMENSIONS)
max_unpool1d, max_unpool2d, max_unpool3d = map(_make_unpool, _DIMENSIONS)
