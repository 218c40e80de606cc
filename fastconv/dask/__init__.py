"""fastconv on Dask arrays: convolutions and pools of what is larger than memory, on threads or on more machines.

The functions are those of `fastconv`, with the same arguments (but ``out``), on Dask arrays in chunks along any axes.
A block of the result reads just what its windows cover of the chunks around, and the result is that of one array: to
the bit, where the same algorithm computes both (``algorithm=`` holds them to one; Winograd and FFT round differently
where their tiles lie differently). Chunks of the result stay where the input's are, whatever the stride.
A row of chunks is in memory until the next one is there: of large images, wide chunks of few rows take the least.

Tasks run with the `fastconv.options` in force where the array is made, and on one thread each unless these say how
many: the scheduler's threads use the cores.
"""

try:
    import dask.array as da
except ImportError:
    raise ImportError("fastconv.dask needs Dask: pip install 'fastconv[dask]'") from None

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.call import Call, lowering_of
from fastconv.dask.blocks import build, function
from fastconv.dask.regions import Axis, Region, conv_regions, transposed_regions
from fastconv.problem import ConvProblem

_FAMILIES = ("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool")
_ARRAYS = ("input", "weight", "bias", "residual")
# What every block has of its own.
_PER_BLOCK = ("padding", "padding_mode", "output_padding")


def _op(name: str, ndim: int) -> Callable[..., Any]:
    """Return the op on Dask arrays that an op of fastconv stands for."""
    original = function(name)
    signature, lower = inspect.signature(original), lowering_of(original)

    @functools.wraps(original)
    def on_dask(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        if arguments.pop("out", None) is not None:
            raise TypeError("out: a Dask array cannot be written to")
        arrays = {key: arguments.pop(key) for key in _ARRAYS if arguments.get(key) is not None}
        _check(arrays)
        call = lower(**arguments, **{key: _stand_in(array) for key, array in arrays.items()})
        return _apply(name, ndim, call, arguments, arrays)

    vars(on_dask).pop("lower")
    on_dask.__module__ = "fastconv.dask"
    return on_dask


def _check(arrays: dict[str, Any]) -> None:
    for name in ("input", "residual"):
        if name in arrays and not isinstance(arrays[name], da.Array):
            raise TypeError(f"{name}: expected a Dask array, got {type(arrays[name]).__name__}")
    for name, array in arrays.items():
        if isinstance(array, da.Array) and any(math.isnan(size) for size in array.shape):
            raise ValueError(f"{name}: its chunks have unknown sizes; call compute_chunk_sizes() first")


def _stand_in(array: Any) -> Any:
    """Return a NumPy array of the form of a Dask array and of no size in memory: nobody reads it."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape) if isinstance(array, da.Array) else array


def _apply(name: str, ndim: int, call: Call, arguments: dict[str, Any], arrays: dict[str, Any]) -> Any:
    problem, x = call.problem, arrays["input"]
    if problem.n == 0:
        raise ValueError("input: the batch is empty")
    convolution = isinstance(problem, ConvProblem)
    if convolution:
        x = x.rechunk({x.ndim - ndim - 1: -1})
    transposed = convolution and problem.direction == "dgrad"
    axes = _axes(call)
    find = transposed_regions if transposed else conv_regions
    regions = [find(axis, chunks) for axis, chunks in zip(axes, x.chunks[-ndim:], strict=True)]
    rest = {key: value for key, value in arguments.items() if key not in _PER_BLOCK}
    options = call.options if call.options.threads else call.options.replace(threads=1)

    def of_block(here: tuple[Region, ...]) -> dict[str, Any]:
        if name.startswith("lp_pool"):
            return rest
        own: dict[str, Any] = {"padding": tuple((region.before, region.after) for region in here)}
        if transposed:
            own["output_padding"] = tuple(region.extra for region in here)
        return rest | own

    return build(
        name,
        x,
        regions,
        of_block,
        options,
        channels=call.shape[-ndim - 1] if convolution else None,
        pair=len(problem.outputs) > 1,
        **{key: array for key, array in arrays.items() if key != "input"},
    )


def _axes(call: Call) -> list[Axis]:
    p = call.problem
    mode = p.padding_mode if isinstance(p, ConvProblem) else "zeros"
    columns = (p.input_size, p.output_size, p.kernel_size, p.stride, p.dilation, p.padding)
    return [
        Axis(size, out, kernel, stride, dilation, padding, mode)
        for size, out, kernel, stride, dilation, padding in zip(*columns, strict=True)
    ]


_made = {f"{family}{ndim}d": _op(f"{family}{ndim}d", ndim) for family in _FAMILIES for ndim in (1, 2, 3)}

conv1d, conv2d, conv3d = (_made[f"conv{n}d"] for n in (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_made[f"conv_transpose{n}d"] for n in (1, 2, 3))
max_pool1d, max_pool2d, max_pool3d = (_made[f"max_pool{n}d"] for n in (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = (_made[f"avg_pool{n}d"] for n in (1, 2, 3))
lp_pool1d, lp_pool2d, lp_pool3d = (_made[f"lp_pool{n}d"] for n in (1, 2, 3))

__all__ = sorted(_made)
