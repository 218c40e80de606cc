"""Convolutions and window reductions with the signatures of `jax.lax`: dimension numbers, dilated inputs, groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastconv.arrays import float_dtype
from fastconv.jax.primitive import run
from fastconv.jax.stored import Stored
from fastconv.options import current
from fastconv.problem import ConvProblem, PoolProblem
from fastconv.sizes import Padding, Sizes

_MOST_AXES = 3

# JAX's own, whatever stands in its namespace meanwhile: they tell the shapes of results, and what is wrong with calls.
_conv_general_dilated, _reduce_window = lax.conv_general_dilated, lax.reduce_window


class _Weight(NamedTuple):
    """A weight (K, C / groups, kernel), as it is stored."""

    array: Any
    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[self.stored.order.index(axis)] for axis in range(self.array.ndim))


class _Window(NamedTuple):
    """How a kernel slides over an input, one entry an axis."""

    stride: Sizes
    lhs_dilation: Sizes
    dilation: Sizes
    padding: Padding
    groups: int


def conv_general_dilated(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Convolve as `jax.lax.conv_general_dilated` does.

    Parameters
    ----------
    lhs, rhs : array, of 3 to 5 dimensions
        Input and kernel, both float32, float64, float16 or bfloat16.
    window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, batch_group_count
        As in `jax.lax.conv_general_dilated`. Channels that come last are read where they lie.
    precision
        Not looked at: float32 is computed in float32.
    preferred_element_type : dtype, optional
        Of the result. If it is wider than the arrays', these are widened first.

    Returns
    -------
    array

    Raises
    ------
    TypeError
        If the arrays differ in dtype, or fastconv does not compute in it.
    ValueError
        If shapes or sizes do not fit, or there are no or more than 3 spatial axes.
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    ones = (1,) * (lhs.ndim - 2)
    dilations = tuple(lhs_dilation or ones), tuple(rhs_dilation or ones)
    groups = feature_group_count, batch_group_count
    return _general(lhs, rhs, tuple(window_strides), padding, dilations, numbers, groups, preferred_element_type)


def _general(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sizes,
    padding: Any,
    dilations: tuple[Sizes, Sizes],
    numbers: Any,
    groups: tuple[int, int] = (1, 1),
    preferred_element_type: Any = None,
    turned: bool = False,
) -> jax.Array:
    """Convolve as `conv_general_dilated` does, with a kernel that may be stored ``turned`` over."""
    ndim, (lhs_dilation, dilation), (feature_groups, batch_groups) = lhs.ndim - 2, dilations, groups
    expected = jax.eval_shape(
        lambda x, w: _conv_general_dilated(
            x,
            w,
            strides,
            padding,
            lhs_dilation,
            dilation,
            numbers,
            feature_groups,
            batch_groups,
            preferred_element_type=preferred_element_type,
        ),
        lhs,
        rhs,
    )
    if not 1 <= ndim <= _MOST_AXES:
        raise ValueError(f"lhs: expected 1 to {_MOST_AXES} spatial axes, got shape {lhs.shape}")
    float_dtype("lhs", lhs), float_dtype("rhs", rhs), float_dtype("preferred_element_type", expected)
    if 0 in (*expected.shape, *lhs.shape, *rhs.shape):
        return jnp.zeros(expected.shape, expected.dtype)
    wide = jnp.promote_types(lhs.dtype, expected.dtype)
    x = lhs.transpose(numbers.lhs_spec).astype(wide)
    w = _Weight(rhs.astype(wide), Stored.of(np.argsort(numbers.rhs_spec), turned))
    if batch_groups > 1:
        x = _batches_as_channels(x, batch_groups)
    pads = _pairs(padding, x.shape[2:], [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilation, strict=True)], strides)
    window = _Window(strides, lhs_dilation, dilation, pads, max(groups))
    layout = "channels_last" if numbers.lhs_spec[1] == lhs.ndim - 1 else "channels_first"
    y = _convolve(x, w, window, layout)
    return y.transpose(np.argsort(numbers.out_spec)).astype(expected.dtype)


def _pairs(padding: Any, size: Sequence[int], span: Sequence[int], strides: Sequence[int]) -> Padding:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, span, strides, padding)
    return tuple((int(before), int(after)) for before, after in padding)


def _batches_as_channels(x: jax.Array, count: int) -> jax.Array:
    """Return groups of images as groups of channels: (count * N, C) becomes (N, count * C)."""
    n, c, *size = x.shape
    return jnp.moveaxis(x.reshape(count, n // count, c, *size), 0, 1).reshape(n // count, count * c, *size)


def _convolve(x: jax.Array, w: _Weight, window: _Window, layout: str) -> jax.Array:
    """Convolve (N, C, spatial) with a weight."""
    if any(d > 1 for d in window.lhs_dilation):
        if all(s == 1 for s in window.stride):
            return _convolve_dilated(x, w, window, layout)
        inside = [(0, 0, 0)] * 2 + [(0, 0, d - 1) for d in window.lhs_dilation]
        x = lax.pad(x, jnp.zeros((), x.dtype), inside)
    x = _cropped(x, window.padding)
    problem = ConvProblem(
        op=f"conv{x.ndim - 2}d",
        direction="fprop",
        n=x.shape[0],
        ic=x.shape[1],
        oc=w.shape[0],
        input_size=x.shape[2:],
        kernel_size=w.shape[2:],
        stride=window.stride,
        padding=tuple((max(before, 0), max(after, 0)) for before, after in window.padding),
        dilation=window.dilation,
        groups=window.groups,
        dtype=str(x.dtype),
        layout=layout,
    )
    return run(problem, current(), x, w.array, stored=w.stored)[0]


def _cropped(x: jax.Array, padding: Padding) -> jax.Array:
    """Return an input without what negative padding cuts off."""
    cut = [(0, 0, 0)] * 2 + [(min(before, 0), min(after, 0), 0) for before, after in padding]
    return lax.pad(x, jnp.zeros((), x.dtype), cut) if any(map(any, cut)) else x


def _convolve_dilated(dy: jax.Array, w: _Weight, window: _Window, layout: str) -> jax.Array:
    """Convolve a dilated input at stride 1: what a convolution of stride ``lhs_dilation`` has as input gradient.

    Its kernel is turned over, its sides are exchanged, and its padding is what the kernel's span leaves.
    """
    (k, c, *kernel), groups = w.shape, window.groups
    turned = _Weight(w.array, w.stored.transposed)
    if groups > 1:
        weight = w.stored.transposed.take(w.array).reshape(c, groups, k // groups, *kernel)
        weight = jnp.swapaxes(weight, 0, 1).reshape(groups * c, k // groups, *kernel)
        turned = _Weight(weight, Stored.of(range(weight.ndim)))
    size, padding, missing = [], [], []
    for i, s, r, d, (before, after) in zip(
        dy.shape[2:], window.lhs_dilation, kernel, window.dilation, window.padding, strict=True
    ):
        reach = d * (r - 1)
        missing.append((max(before - reach, 0), 0, 0))  # zeros that no input reaches
        padding.append((max(reach - before, 0), reach - after))
        size.append((i - 1) * s + 1 + min(before, reach) + after - reach)
    if min(size) < 1:  # zeros alone
        return jnp.zeros((dy.shape[0], k, *(n + m[0] for n, m in zip(size, missing, strict=True))), dy.dtype)
    problem = ConvProblem(
        op=f"conv{dy.ndim - 2}d",
        direction="dgrad",
        n=dy.shape[0],
        ic=k,
        oc=groups * c,
        input_size=tuple(size),
        kernel_size=tuple(kernel),
        stride=window.lhs_dilation,
        padding=tuple(padding),
        dilation=window.dilation,
        groups=groups,
        dtype=str(dy.dtype),
        layout=layout,
    )
    (dx,) = run(problem, current(), dy, turned.array, stored=turned.stored)
    return lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0)] * 2 + missing) if any(map(any, missing)) else dx


def conv_with_general_padding(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Convolve as `jax.lax.conv_with_general_padding` does; see `conv_general_dilated`."""
    return conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


def conv(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """Convolve as `jax.lax.conv` does; see `conv_general_dilated`."""
    return conv_with_general_padding(lhs, rhs, window_strides, padding, None, None, precision, preferred_element_type)


# The dimension numbers that `jax.lax.conv_transpose` takes by default.
_CHANNELS_LAST = {3: ("NHC", "HIO", "NHC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NHWDC", "HWDIO", "NHWDC")}


def conv_transpose(
    lhs: Any,
    rhs: Any,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    transpose_kernel: bool = False,
    precision: Any = None,
    preferred_element_type: Any = None,
    use_consistent_padding: bool = False,
) -> jax.Array:
    """Apply the transpose of a convolution as `jax.lax.conv_transpose` does; see `conv_general_dilated`.

    Pairs of padding are added to the dilated input; ``'SAME'``, ``'VALID'`` and, with ``use_consistent_padding``,
    pairs too are those of the convolution whose transpose this is.
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    if lhs.ndim not in _CHANNELS_LAST:
        raise ValueError(f"lhs: expected 1 to {_MOST_AXES} spatial axes, got shape {lhs.shape}")
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers or _CHANNELS_LAST[lhs.ndim])
    kernel = [rhs.shape[axis] for axis in numbers.rhs_spec[2:]]
    dilation = tuple(rhs_dilation or (1,) * len(kernel))
    for name, given in (("strides", strides), ("rhs_dilation", dilation), ("padding", padding)):
        if not isinstance(given, str) and len(given) != len(kernel):
            raise ValueError(f"{name}: expected {len(kernel)} entries, one a spatial axis, got {tuple(given)}")
    pads: Any = padding
    if use_consistent_padding or padding in ("SAME", "VALID"):
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        each = [padding] * len(spans) if isinstance(padding, str) else padding
        pads = [_transposed_padding(*axis) for axis in zip(spans, strides, each, strict=True)]
    if transpose_kernel:
        outputs, inputs, *rest = numbers.rhs_spec
        numbers = numbers._replace(rhs_spec=(inputs, outputs, *rest))
    return _general(
        lhs,
        rhs,
        (1,) * len(kernel),
        pads,
        (tuple(strides), dilation),
        numbers,
        preferred_element_type=preferred_element_type,
        turned=transpose_kernel,
    )


def _transposed_padding(span: int, stride: int, padding: Any) -> tuple[int, int]:
    """Return JAX's padding of the dilated input for that of the convolution whose transpose is taken."""
    if padding == "SAME":
        total = span + stride - 2
        before = span - 1 if stride > span - 1 else -(-total // 2)
    elif padding == "VALID":
        total = span + stride - 2 + max(span - stride, 0)
        before = span - 1
    elif isinstance(padding, str):
        raise ValueError(f"padding: expected 'SAME', 'VALID' or pairs, got {padding!r}")
    else:
        before, after = (span - p - 1 for p in padding)
        return before, after
    return before, total - before


# What is reduced with: the kind of pool, what it has besides, and the neutral element.
_REDUCTIONS: dict[Callable[..., Any], tuple[str, dict[str, Any], float]] = {
    lax.max: ("max_pool", {}, -math.inf),
    lax.add: ("avg_pool", {"divisor_override": 1}, 0.0),
}


def reduce_window(
    operand: Any,
    init_value: Any,
    computation: Callable[..., Any],
    window_dimensions: Sequence[int],
    window_strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
    base_dilation: Sequence[int] | None = None,
    window_dilation: Sequence[int] | None = None,
) -> jax.Array:
    """Reduce every window as `jax.lax.reduce_window` does, to its maximum or its sum: what pools are made of.

    Parameters
    ----------
    operand : array
        float32, float64, float16 or bfloat16. Up to 3 of its axes may have windows.
    init_value : scalar
        Minus infinity for the maximum, zero for the sum.
    computation : callable
        `jax.lax.max` or `jax.lax.add`.
    window_dimensions, window_strides, padding, window_dilation
        As in `jax.lax.reduce_window`.
    base_dilation : sequence of int, optional
        Ones.

    Returns
    -------
    array

    Raises
    ------
    TypeError, ValueError
        If that is not what fastconv computes: then `jax.lax.reduce_window` does.
    """
    x = jnp.asarray(operand)
    ones = (1,) * x.ndim
    kernel, strides = tuple(window_dimensions), tuple(window_strides or ones)
    dilation, base = tuple(window_dilation or ones), tuple(base_dilation or ones)
    expected = jax.eval_shape(
        lambda a: _reduce_window(a, init_value, computation, kernel, strides, padding, base, dilation), x
    )
    kind, fields, neutral = _reduction(computation, init_value)
    float_dtype("operand", x)
    if any(d != 1 for d in base):
        raise ValueError(f"base_dilation: must be ones, got {base}")
    if 0 in x.shape or 0 in expected.shape:
        return jnp.full(expected.shape, neutral, x.dtype)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    pads = _pairs(padding, x.shape, spans, strides)
    axes = [i for i in range(x.ndim) if (kernel[i], strides[i], pads[i]) != (1, 1, (0, 0))]
    if len(axes) > _MOST_AXES:
        raise ValueError(f"window_dimensions: expected windows along at most {_MOST_AXES} axes, got {kernel}")
    if not axes:
        return x
    if any(not 0 <= p <= span // 2 for i, span in enumerate(spans) for p in pads[i]):
        x, pads = lax.pad(x, jnp.asarray(neutral, x.dtype), [(*p, 0) for p in pads]), ((0, 0),) * x.ndim
    # All other axes are images, but the last one may be that of the channels.
    last = x.ndim - 1 not in axes
    rest = [i for i in range(x.ndim - last) if i not in axes]
    order = [*rest, *([x.ndim - 1] if last else []), *axes]
    channels = x.shape[-1] if last else 1
    size = tuple(x.shape[i] for i in axes)
    problem = PoolProblem(
        op=f"{kind}{len(axes)}d",
        direction="fprop",
        n=math.prod(x.shape[i] for i in rest),
        c=channels,
        input_size=size,
        kernel_size=tuple(kernel[i] for i in axes),
        stride=tuple(strides[i] for i in axes),
        padding=tuple(pads[i] for i in axes),
        dilation=tuple(dilation[i] for i in axes),
        dtype=str(x.dtype),
        layout="channels_last" if last else "channels_first",
        **fields,
    )
    (y,) = run(problem, current(), x.transpose(order).reshape(problem.x_shape))
    return y.reshape([expected.shape[i] for i in order]).transpose(np.argsort(order))


def _reduction(computation: Any, init_value: Any) -> tuple[str, dict[str, Any], float]:
    known = _REDUCTIONS.get(computation)
    if known is None:
        raise ValueError(f"computation: expected jax.lax.max or jax.lax.add, got {computation}")
    if isinstance(init_value, jax.core.Tracer) or np.shape(init_value) or float(init_value) != known[2]:
        raise ValueError(f"init_value: expected {known[2]}, got {init_value}")
    return known
