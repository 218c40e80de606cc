"""The public convolutions: conv*, conv_transpose*, locally_connected2d and linear.

Each function is a lowering: it reads its arguments and returns a `Call`; `op` makes it what users see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastconv import arguments, arrays
from fastconv.arrays import Array
from fastconv.call import Call, named_op, op
from fastconv.lowering import COMMON_DOC, Common, Read, batched, conv_problem, read_arrays
from fastconv.problem import ConvProblem
from fastconv.sizes import Padding, Sizes, conv_output_size


def _conv(
    ndim: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: str,
    common: Common,
    *,
    op: str = "conv",
) -> Call:
    read = read_arrays(input=input, weight=weight, bias=bias, residual=common.residual)
    w = read.arrays["weight"]
    x, added = batched("input", read.arrays["input"], ndim)
    local = op == "locally_connected"
    _check_weight(w, ndim, local, x.shape[1], groups)
    oc, _, *kernel = w.shape[ndim * local :]
    problem = conv_problem(
        f"{op}{ndim}d",
        "fprop",
        x.shape,
        oc,
        tuple(kernel),
        arguments.hashable("stride", stride),
        arguments.hashable("padding", padding),
        arguments.hashable("dilation", dilation),
        groups,
        padding_mode=arguments.word("padding_mode", padding_mode),
        bias=_bias_kind(read, local),
        **_epilogue(common),
        dtype=read.dtype,
        layout=arrays.layout_of(x),
        device=read.kind.device,
    )
    return _forward_call(problem, read, x, problem.result_shape[added:], common)


def _conv_transpose(
    ndim: int,
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    common: Common,
) -> Call:
    """The gradient of a convolution with respect to its input, as a forward pass: ``input`` is ``dy``."""
    read = read_arrays(input=input, weight=weight, bias=bias, residual=common.residual)
    w = read.arrays["weight"]
    dy, added = batched("input", read.arrays["input"], ndim)
    if w.ndim != ndim + 2:
        raise ValueError(
            f"weight: expected {ndim + 2} dimensions (input channels, output channels / groups, kernel), "
            f"got shape {w.shape}"
        )
    if w.shape[0] != dy.shape[1]:
        raise ValueError(f"weight: expected {dy.shape[1]} filters, one for each channel of input, got shape {w.shape}")
    if 0 in dy.shape[1:] or 0 in w.shape:
        raise ValueError(f"input: only the batch may be empty, got input {dy.shape} and weight {w.shape}")
    problem = _transposed_problem(
        dy.shape,
        w.shape,
        arguments.hashable("stride", stride),
        arguments.hashable("padding", padding),
        arguments.hashable("output_padding", output_padding),
        arguments.integer("groups", groups, 1),
        arguments.hashable("dilation", dilation),
        bias=_bias_kind(read, False),
        **_epilogue(common),
        dtype=read.dtype,
        layout=arrays.layout_of(dy),
        device=read.kind.device,
    )
    return _forward_call(problem, read, dy, problem.result_shape[added:], common)


@lru_cache(maxsize=4096)
def _transposed_problem(
    dy_shape: Sizes,
    w_shape: Sizes,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    **fields: Any,
) -> ConvProblem:
    """Return the problem of a transposed convolution. Cached, since calls repeat their arguments."""
    ndim = len(w_shape) - 2
    stride = arguments.sizes("stride", stride, ndim)
    dilation = arguments.sizes("dilation", dilation, ndim)
    extra = arguments.sizes("output_padding", output_padding, ndim, 0)
    size, pads = transposed_size(dy_shape[2:], w_shape[2:], stride, padding, extra, dilation)
    return ConvProblem(
        op=f"conv{ndim}d",
        direction="dgrad",
        n=dy_shape[0],
        ic=w_shape[1] * groups,
        oc=w_shape[0],
        input_size=size,
        kernel_size=w_shape[2:],
        stride=stride,
        padding=pads,
        dilation=dilation,
        groups=groups,
        **fields,
    )


def transposed_size(
    dy_size: Sizes, kernel_size: Sizes, stride: Sizes, padding: Any, output_padding: Sizes, dilation: Sizes
) -> tuple[Sizes, Padding]:
    """Return the size of dx and the padding of the convolution whose input gradient is asked for.

    ``(size - 1) * stride - padding + dilation * (kernel - 1) + output_padding + 1``, or ``size * stride`` for
    ``'same'``.

    Raises
    ------
    TypeError, ValueError
        If the padding is none, or does not go with the others.
    """
    if padding == "same":
        if any(output_padding):
            raise ValueError(f"output_padding: must be 0 with padding='same', got {output_padding}")
        same = tuple(i * s for i, s in zip(dy_size, stride, strict=True))
        return same, arguments.padding(padding, same, kernel_size, stride, dilation)
    result, pads = [], []
    given = arguments.padding(padding, dy_size, kernel_size, stride, dilation)
    for i, k, s, (before, after), extra, d in zip(
        dy_size, kernel_size, stride, given, output_padding, dilation, strict=True
    ):
        if extra >= max(s, d):
            raise ValueError(f"output_padding: must be smaller than stride {s} or dilation {d}, got {extra}")
        size = (i - 1) * s - before - after + d * (k - 1) + extra + 1
        if size < 1:
            raise ValueError(f"padding: ({before}, {after}) leaves an output of {size} from an input of {i}")
        if size > arguments.LARGEST:
            raise ValueError(f"stride, dilation: {s} and {d} give an output of {size}, more than {arguments.LARGEST}")
        if conv_output_size(size, k, s, d, (before, after)) != i:
            after -= extra  # rows that no window reaches
        result.append(size)
        pads.append((before, after))
    return tuple(result), tuple(pads)


def _check_weight(w: Any, ndim: int, local: bool, channels: int, groups: Any) -> None:
    expected = (
        "(output size, output channels, input channels, kernel)"
        if local
        else ("(output channels, input channels / groups, kernel)")
    )
    if w.ndim != ndim + 2 + ndim * local:
        raise ValueError(f"weight: expected {ndim + 2 + ndim * local} dimensions {expected}, got shape {w.shape}")
    groups = arguments.integer("groups", groups, 1)
    has = w.shape[ndim * local + 1]
    if has * groups != channels:
        raise ValueError(
            f"weight: {groups} groups of {has} channels need an input of {has * groups} channels, got {channels} "
            f"(weight has shape {w.shape})"
        )


def _epilogue(common: Common) -> dict[str, Any]:
    activation = common.activation
    return {
        "activation": None if activation is None else arguments.word("activation", activation),
        "residual": common.residual is not None,
    }


def _bias_kind(read: Read, local: bool) -> str:
    bias = read.arrays.get("bias")
    if bias is None:
        return "none"
    return "position" if local and bias.ndim > 1 else "channel"


def _forward_call(problem: ConvProblem, read: Read, first: Any, shape: Sizes, common: Common) -> Call:
    """Check the arrays whose shapes the problem tells, and make the call of a forward pass."""
    expected = {"residual": shape, "bias": problem.bias_shape, "weight": problem.w_shape}
    for name, array in read.arrays.items():
        if array.shape != expected.get(name, array.shape):
            raise ValueError(f"{name}: expected shape {expected[name]}, got {array.shape}")
    inputs = {**read.arrays, "input": first}
    if "residual" in inputs:
        inputs["residual"] = arrays.shaped(inputs["residual"], problem.result_shape)
    return common.call(problem, inputs, read, shape)


_EPILOGUE_DOC = """
    activation : {{'relu', 'leaky_relu', 'relu6', 'sigmoid', 'tanh'}}, optional
        Applied to the result as it is stored. The leaky slope is 0.01.
    residual : array of the output's shape, optional
        Added before the activation.""" + COMMON_DOC.replace("{also}", "")

_CONV_DOC = (
    """Convolve (cross-correlate) over {ndim} spatial axes.

    ``output[n, k, o] = bias[k] + sum over c, r of weight[k, c, r] * input[n, c, o * stride - padding + r * dilation]``

    Parameters
    ----------
    input : array, shape (N, C, {axes}) or (C, {axes})
    weight : array, shape (K, C / groups, {kernel})
    bias : array, shape (K,), optional
    stride, dilation : int or one per axis
    padding : int, one per axis, a pair (before, after) per axis, 'same' or 'valid'
        ``'same'`` gives ``ceil(input / stride)`` outputs, an odd element of padding after the input.
    groups : int
        Input and output channels are divided into as many groups, convolved apart.
    padding_mode : {{'zeros', 'reflect', 'replicate', 'circular'}}
        What stands in the padding."""
    + _EPILOGUE_DOC
)

_TRANSPOSE_DOC = (
    """Apply the transpose of a convolution over {ndim} spatial axes ("deconvolution").

    The gradient of `conv{ndim}d` with respect to its input, as an operation of its own. The output's size is
    ``(size - 1) * stride - padding + dilation * (kernel - 1) + output_padding + 1``.

    Parameters
    ----------
    input : array, shape (N, C, {axes}) or (C, {axes})
    weight : array, shape (C, K / groups, {kernel})
    bias : array, shape (K,), optional
    stride, dilation : int or one per axis
    padding : int, one per axis, a pair (before, after) per axis, 'same' or 'valid'
        How much is cut off the full result; ``'same'`` gives ``input * stride`` outputs.
    output_padding : int or one per axis
        Added to the output's size at the end; smaller than stride or dilation.
    groups : int"""
    + _EPILOGUE_DOC
)


def _make_conv(ndim: int) -> Callable[..., Array]:
    def conv(
        input: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        activation: str | None = None,
        residual: Array | None = None,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        common = Common(out, backend, algorithm, activation, residual)
        return _conv(ndim, input, weight, bias, stride, padding, dilation, groups, padding_mode, common)

    return named_op(conv, f"conv{ndim}d", _CONV_DOC, ndim)


def _make_conv_transpose(ndim: int) -> Callable[..., Array]:
    def conv_transpose(
        input: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
        *,
        activation: str | None = None,
        residual: Array | None = None,
        out: Array | None = None,
        backend: str | None = None,
        algorithm: str | None = None,
    ) -> Call:
        common = Common(out, backend, algorithm, activation, residual)
        return _conv_transpose(ndim, input, weight, bias, stride, padding, output_padding, groups, dilation, common)

    return named_op(conv_transpose, f"conv_transpose{ndim}d", _TRANSPOSE_DOC, ndim)


conv1d, conv2d, conv3d = map(_make_conv, (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_make_conv_transpose, (1, 2, 3))


@op
def locally_connected2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    padding_mode: str = "zeros",
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
) -> Call:
    """Convolve without sharing weights: every output position has filters of its own.

    Parameters
    ----------
    input : array, shape (N, C, H, W) or (C, H, W)
    weight : array, shape (OH, OW, K, C, R, S)
    bias : array, shape (OH, OW, K) or (K,), optional
    stride, padding, dilation, padding_mode, activation, residual, out, backend, algorithm
        As in `conv2d`.

    Returns
    -------
    array, shape (N, K, OH, OW) or (K, OH, OW)

    Raises
    ------
    TypeError, ValueError
        As in `conv2d`; also if the weight's OH and OW are not what the other arguments give.
    """
    common = Common(out, backend, algorithm, activation, residual)
    return _conv(2, input, weight, bias, stride, padding, dilation, 1, padding_mode, common, op="locally_connected")


@op
def linear(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    backend: str | None = None,
    algorithm: str | None = None,
) -> Call:
    """Apply an affine map to the last axis: ``input @ weight.T + bias``.

    Parameters
    ----------
    input : array, shape (..., C)
    weight : array, shape (K, C)
    bias : array, shape (K,), optional
    activation, residual, out, backend, algorithm
        As in `conv2d`.

    Returns
    -------
    array, shape (..., K)

    Raises
    ------
    TypeError, ValueError
        As in `conv2d`.
    """
    common = Common(out, backend, algorithm, activation, residual)
    read = read_arrays(input=input, weight=weight, bias=bias, residual=residual)
    x, w = read.arrays["input"], read.arrays["weight"]
    if w.ndim != 2:
        raise ValueError(f"weight: expected 2 dimensions (output features, input features), got shape {w.shape}")
    if x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"input: expected {w.shape[1]} features in the last axis, got shape {x.shape}")
    rows = math.prod(x.shape[:-1])
    problem = conv_problem(
        "linear",
        "fprop",
        (rows, w.shape[1]),
        w.shape[0],
        (),
        (),
        (),
        (),
        1,
        bias=_bias_kind(read, False),
        **_epilogue(common),
        dtype=read.dtype,
        device=read.kind.device,
    )
    shape = (*x.shape[:-1], w.shape[0])
    return _forward_call(problem, read, arrays.shaped(x, problem.x_shape), shape, common)
