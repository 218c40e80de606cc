"""From arguments as users give them to arrays and problems: what the lowerings of all ops share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fastconv import arguments, arrays
from fastconv.algorithm import AnyProblem
from fastconv.arrays import Array, Kind
from fastconv.call import Call
from fastconv.options import Options, current
from fastconv.problem import ConvProblem, PoolProblem, Sizes

_OPTIONAL = ("bias", "residual")

COMMON_DOC = """
    out : array of the output's shape and dtype, optional
        Where the result is written; returned. It may share memory with an input.
    backend, algorithm : str, optional
        Use only this backend, or this algorithm.

    Returns
    -------
    array
        Of the input's kind, dtype and memory order (channels-first or channels-last){also}.

    Raises
    ------
    TypeError
        If an argument is no array, arrays differ in kind or dtype, or the dtype is not float32, float64, float16
        or bfloat16.
    ValueError
        If shapes or sizes do not fit; the message names the argument. `NoAlgorithmError`, a `ValueError`, if
        the options in force leave no algorithm."""
"""The end of an op's docstring; ``{also}`` stands for what it returns besides."""


class Read(NamedTuple):
    """Array arguments, read: those that were given, by name, and what they have in common."""

    arrays: dict[str, Any]
    kind: Kind
    dtype: str

    @property
    def shapes(self) -> dict[str, Sizes]:
        return {name: array.shape for name, array in self.arrays.items()}


def read_arrays(**named: Array | None) -> Read:
    """Read arrays that must be of one kind and one floating dtype; a bias or residual that is None is left out.

    Raises
    ------
    TypeError
        If one is no array, or kinds or dtypes differ; the message names the argument.
    """
    first_name = next(iter(named))
    first, kind = arrays.read(first_name, named.pop(first_name))
    read = Read({first_name: first}, kind, arrays.float_dtype(first_name, first))
    for name, value in named.items():
        if value is None and name in _OPTIONAL:
            continue
        array = arrays.read_as(name, value, kind, first_name)
        if arrays.float_dtype(name, array) != read.dtype:
            raise TypeError(f"{name}: has dtype {array.dtype}, but {first_name} has {first.dtype}")
        read.arrays[name] = array
    return read


def call_options(backend: str | None, algorithm: str | None) -> Options:
    """Return the options in force, narrowed by the arguments that every op takes."""
    options = current()
    if backend is None and algorithm is None:
        return options
    return options.replace(
        backend=backend if backend is not None else options.backend,
        algorithm=algorithm if algorithm is not None else options.algorithm,
    )


class Common(NamedTuple):
    """The arguments that ops take by keyword alone; the last two only those that end in an epilogue."""

    out: Array | None
    backend: str | None
    algorithm: str | None
    activation: str | None = None
    residual: Array | None = None

    def call(self, problem: AnyProblem, inputs: dict[str, Any], read: Read, shape: Sizes) -> Call:
        """Return the call of an op whose result has this shape."""
        return Call(
            problem, inputs, read.shapes, shape, read.kind, call_options(self.backend, self.algorithm), self.out
        )


def batched(name: str, array: Any, ndim: int) -> tuple[Any, int]:
    """Return a map with its batch axis, and how many axes that added: the result has as many too many, in front."""
    if array.ndim == ndim + 2:
        return array, 0
    if array.ndim == ndim + 1:
        return array[None], 1
    raise ValueError(
        f"{name}: expected {ndim + 2} dimensions (N, C and {ndim} spatial), or {ndim + 1} without N, "
        f"got shape {array.shape}"
    )


@lru_cache(maxsize=4096)
def conv_problem(
    op: str,
    direction: Any,
    x_shape: Sizes,
    oc: int,
    kernel_size: Sizes,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    **fields: Any,
) -> ConvProblem:
    """Return the problem of arguments as users give them. Cached, since calls repeat their arguments."""
    ndim = len(kernel_size)
    if 0 in x_shape[1:]:
        raise ValueError(f"input: only the batch may be empty, got shape {x_shape}")
    if oc == 0 or 0 in kernel_size:
        raise ValueError(f"weight: must not be empty, got {oc} filters of size {kernel_size}")
    stride = arguments.sizes("stride", stride, ndim)
    dilation = arguments.sizes("dilation", dilation, ndim)
    return ConvProblem(
        op=op,
        direction=direction,
        n=x_shape[0],
        ic=x_shape[1],
        oc=oc,
        input_size=x_shape[2:],
        kernel_size=kernel_size,
        stride=stride,
        padding=arguments.padding(padding, x_shape[2:], kernel_size, stride, dilation),
        dilation=dilation,
        groups=arguments.integer("groups", groups, 1),
        **fields,
    )


@lru_cache(maxsize=4096)
def _window_problem(
    op: str, direction: Any, x_shape: Sizes, kernel_size: Sizes, stride: Any, padding: Any, dilation: Any, **fields: Any
) -> PoolProblem:
    if 0 in x_shape[1:]:
        raise ValueError(f"input: only the batch may be empty, got shape {x_shape}")
    ndim = len(kernel_size)
    stride = kernel_size if stride is None else arguments.sizes("stride", stride, ndim)
    dilation = arguments.sizes("dilation", dilation, ndim)
    return PoolProblem(
        op=op,
        direction=direction,
        n=x_shape[0],
        c=x_shape[1],
        input_size=x_shape[2:],
        kernel_size=kernel_size,
        stride=stride,
        padding=arguments.padding(padding, x_shape[2:], kernel_size, stride, dilation),
        dilation=dilation,
        **fields,
    )


def window_problem(
    op: str,
    direction: str,
    x_shape: Sizes,
    read: Read,
    layout: str,
    kernel_size: Sizes,
    stride: Any,
    padding: Any,
    dilation: Any,
    **fields: Any,
) -> PoolProblem:
    """Return the problem of a window operation from arguments as users give them."""
    return _window_problem(
        op,
        direction,
        x_shape,
        kernel_size,
        arguments.hashable("stride", stride),
        arguments.hashable("padding", padding),
        arguments.hashable("dilation", dilation),
        dtype=read.dtype,
        layout=layout,
        device=read.kind.device,
        **fields,
    )
