"""Windows as ONNX describes them: `auto_pad`, `pads`, `strides`, `dilations`, `ceil_mode`, as sizes and paddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv.sizes import Padding, Sizes, pool_output_size

AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


class Window(NamedTuple):
    """A window that slides over spatial axes, and how many positions it has along each."""

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Padding
    output: Sizes

    @property
    def spans(self) -> Sizes:
        """How far the window reaches along each axis."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def reach(self, size: Sizes) -> Padding:
        """Return the padding that every position's whole window fits into."""
        ends = [(o - 1) * s + span for o, s, span in zip(self.output, self.stride, self.spans, strict=True)]
        return tuple(
            (before, max(end - i - before, 0)) for i, end, (before, _) in zip(size, ends, self.padding, strict=True)
        )

    def counts(self, size: Sizes, *, padded: bool) -> Any:
        """Return how many elements every window holds, those of the padding included or not: shape ``output``."""
        product: Any = np.ones((), np.int64)
        for axis, (before, after) in enumerate(self.padding):
            starts = np.arange(self.output[axis]) * self.stride[axis] - before
            taps = starts[:, None] + np.arange(self.kernel[axis]) * self.dilation[axis]
            low, high = (-before, size[axis] + after) if padded else (0, size[axis])
            inside = ((taps >= low) & (taps < high)).sum(1)
            product = product[..., None] * inside
        return product


def per_axis(name: str, value: Sequence[int] | None, ndim: int, default: int) -> Sizes:
    """Return an attribute that has an integer for every axis, or its default if it was left out."""
    if not value:
        return (default,) * ndim
    if len(value) != ndim:
        raise ValueError(f"{name}: expected {ndim} integers, one per spatial axis, got {list(value)}")
    return tuple(int(v) for v in value)


def pairs(pads: Sequence[int] | None, ndim: int) -> Padding:
    """Return ``pads``, where all beginnings stand before all ends, as a pair for every axis."""
    flat = per_axis("pads", pads, 2 * ndim, 0)
    return tuple(zip(flat[:ndim], flat[ndim:], strict=True))


def split(total: int, auto_pad: str) -> tuple[int, int]:
    """Divide padding before and after: the odd one goes after for SAME_UPPER, else before."""
    less, more = total // 2, total - total // 2
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def known_auto_pad(auto_pad: str | None) -> str:
    """Return ``auto_pad`` or its default, if it is one that ONNX has."""
    word = auto_pad or "NOTSET"
    if word not in AUTO_PADS:
        raise ValueError(f"auto_pad: expected one of {', '.join(AUTO_PADS)}, got {auto_pad!r}")
    return word


def spatial(shape: Sizes) -> Sizes:
    """Return the spatial sizes of a shape, of which there must be one to three."""
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"input: expected (N, C, spatial) with 1 to 3 spatial axes, got shape {tuple(shape)}")
    return tuple(shape[2:])


def window(
    size: Sizes,
    kernel: Sequence[int],
    auto_pad: str | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: int | None = 0,
) -> Window:
    """Return the window of a node's attributes over an input of this spatial size.

    Raises
    ------
    ValueError
        If an attribute has too many or too few values, or the window does not fit in the padded input.
    """
    given = (None if value is None else tuple(value) for value in (pads, strides, dilations))
    return _window(tuple(size), tuple(kernel), known_auto_pad(auto_pad), *given, bool(ceil_mode))


@lru_cache(maxsize=4096)
def _window(
    size: Sizes,
    kernel: Sizes,
    auto_pad: str,
    pads: Sizes | None,
    strides: Sizes | None,
    dilations: Sizes | None,
    ceil_mode: bool,
) -> Window:
    ndim = len(size)
    if len(kernel) != ndim:
        raise ValueError(f"kernel_shape: expected {ndim} integers, one per spatial axis, got {list(kernel)}")
    stride, dilation = per_axis("strides", strides, ndim, 1), per_axis("dilations", dilations, ndim, 1)
    if min(*kernel, *stride, *dilation) < 1:
        raise ValueError(f"kernel_shape, strides, dilations: must be positive, got {kernel}, {stride}, {dilation}")
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = pairs(pads, ndim) if auto_pad == "NOTSET" else ((0, 0),) * ndim
    if auto_pad.startswith("SAME"):
        output = tuple(-(-i // s) for i, s in zip(size, stride, strict=True))
        padding = tuple(
            split(max((o - 1) * s + span - i, 0), auto_pad)
            for i, o, s, span in zip(size, output, stride, spans, strict=True)
        )
        return Window(kernel, stride, dilation, padding, output)
    output = tuple(
        # By ONNX's formula, ceil_mode makes no difference with VALID.
        pool_output_size(i, k, s, d, pad, ceil_mode and auto_pad == "NOTSET")
        for i, k, s, d, pad in zip(size, kernel, stride, dilation, padding, strict=True)
    )
    if min(output) < 1:
        raise ValueError(f"kernel_shape: {kernel} spans {tuple(spans)}, more than {size} padded by {padding}")
    return Window(kernel, stride, dilation, padding, output)


class Transposed(NamedTuple):
    """A transposed convolution: how its full result is cut, grown by `conv_transpose`, and extended beyond that."""

    stride: Sizes
    dilation: Sizes
    padding: Padding
    output_padding: Sizes
    extension: Padding
    output: Sizes


def transposed(
    size: Sizes,
    kernel: Sizes,
    auto_pad: str | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> Transposed:
    """Return what a ConvTranspose node's attributes make of the full result, ``(size - 1) * stride + span``.

    ``output_padding`` grows the result at the end. ``output_shape`` (or SAME, which means ``size * stride``) stands
    above ``pads``: what is too much is divided by `split`, what is missing is added at the end.
    """
    ndim = len(size)
    auto_pad = known_auto_pad(auto_pad)
    stride, dilation = per_axis("strides", strides, ndim, 1), per_axis("dilations", dilations, ndim, 1)
    extra = per_axis("output_padding", output_padding, ndim, 0)
    full = [(i - 1) * s + d * (k - 1) + 1 for i, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    wanted: Sequence[int] | None = None
    if output_shape:
        # Some exporters give the whole shape, with N and C.
        wanted = per_axis("output_shape", output_shape[-ndim:], ndim, 0)
    elif auto_pad.startswith("SAME"):
        wanted = [i * s for i, s in zip(size, stride, strict=True)]
    if wanted is None:
        given = pairs(pads, ndim) if auto_pad == "NOTSET" else ((0, 0),) * ndim
        cuts = tuple((before, after - e) for (before, after), e in zip(given, extra, strict=True))
    else:
        total = [f + e - w for f, e, w in zip(full, extra, wanted, strict=True)]
        halves = [split(max(t, 0), auto_pad) for t in total]
        cuts = tuple((b, a - e + min(t, 0)) for (b, a), e, t in zip(halves, extra, total, strict=True))
    output = tuple(f - b - a for f, (b, a) in zip(full, cuts, strict=True))
    if min(output) < 1:
        raise ValueError(f"pads: {cuts} cut {tuple(full)} to nothing")
    # conv_transpose grows its result at the end by less than a stride; whatever else is missing holds the bias alone.
    grown = [max(-a, 0) if -a < max(s, d) else 0 for (_, a), s, d in zip(cuts, stride, dilation, strict=True)]
    return Transposed(
        stride,
        dilation,
        tuple((max(b, 0), max(a, 0)) for b, a in cuts),
        tuple(grown),
        tuple((max(-b, 0), max(-a, 0) - g) for (b, a), g in zip(cuts, grown, strict=True)),
        output,
    )
