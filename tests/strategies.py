"""Hypothesis strategies: valid calls of every public op, with their data.

Sizes are drawn so that the call is valid: first the window (kernel, stride, dilation, padding), then an input
at least as large as that needs. What is left out, and why:

- ``ceil_mode`` comes with symmetric padding only, since PyTorch's pools know no other and its rule for the last
  window speaks of the padding before, so that no padded input stands in for it;
- ``dilation`` of a padded max pool stays below the input's size, since a window that reads padding alone has no
  maximum; PyTorch then returns an index outside the input;
- asymmetric padding of a max pool, for which an input padded with -inf stands in, comes without -inf in the data;
- symmetric padding of a pool over three axes is at most half of the kernel, dilated or not, and the input of an
  average pool over three axes is no smaller than the kernel: PyTorch refuses the rest;
- Lp pools of powers that are no even integers get positive data, since their root is NaN elsewhere;
- with an activation that has a kink, data are integers and a bias or residual is odd halves: the
  kink lies between two possible values, and which side is taken does not hang on rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401  so that NumPy knows bfloat16
import numpy as np
from hypothesis import strategies as st

import fastconv as fc
from fastconv import testing
from fastconv.problem import Operand

SMOOTH = ("sigmoid", "tanh")
KINKED = ("relu", "leaky_relu", "relu6")

DTYPES = st.sampled_from(["float32", "float64", "float32", "float64", "float16", "bfloat16"])
ORDERS = st.sampled_from(["channels_first", "channels_first", "channels_last", "awkward"])


@dataclass
class Case:
    """A call: the op's name, its array arguments, and the others, all by keyword.

    ``seed`` is for the gradients that a test hands to the pullback.
    """

    op: str
    arrays: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def function(self) -> Any:
        return getattr(fc, self.op)

    @property
    def keywords(self) -> dict[str, Any]:
        return {**self.arrays, **self.arguments}

    def __repr__(self) -> str:
        shown = [f"{k}={a.dtype}{list(a.shape)} strides {a.strides}" for k, a in self.arrays.items()]
        shown += [f"{k}={v!r}" for k, v in self.arguments.items()]
        return f"{self.op}({', '.join(shown)}, seed={self.seed})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # or Hypothesis prints every element


class Data:
    """Draws arrays of one dtype and memory order."""

    def __init__(self, draw: Any, integers: bool = False) -> None:
        self.dtype, self.order = draw(DTYPES), draw(ORDERS)
        self.seed = draw(st.integers(0, 2**16))
        self.integers = integers
        self._rng = np.random.default_rng(self.seed)

    def array(self, shape: tuple[int, ...], *, offset: float = 0.0, positive: bool = False) -> Any:
        values = self._rng.integers(-3, 4, shape) if self.integers else self._rng.standard_normal(shape)
        return self.laid_out(np.abs(values) + 0.1 if positive else values + offset)

    def laid_out(self, values: Any) -> Any:
        spatial = self.order == "channels_last" and values.ndim >= 3
        layout = "channels_last" if spatial else "channels_first"
        array = testing.laid_out(Operand("", values.shape, self.dtype, spatial), layout, values)
        return testing.read_only_view(array) if self.order == "awkward" else array

    def map(self, draw: Any, channels: int, size: tuple[int, ...], **how: Any) -> Any:
        """Return a map (N, C, spatial), or without N."""
        n = draw(st.integers(0, 3))
        return self.array((n, channels, *size), **how) if n else self.array((1, channels, *size), **how)[0]

    def with_specials(self, draw: Any, array: Any, specials: list[float]) -> Any:
        """Return the array with some of its elements replaced."""
        share = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5]))
        where = self._rng.random(array.shape) < share
        return self.laid_out(np.where(where, self._rng.choice(specials, array.shape), array.astype(np.float64)))


@dataclass
class Window:
    """Sliding window arguments as integers per axis, and as they are written in the call."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    written: dict[str, Any]

    @property
    def span(self) -> tuple[int, ...]:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def input_size(self, draw: Any, least: tuple[int, ...] | None = None) -> tuple[int, ...]:
        fits = (s - b - a for s, b, a in zip(self.span, self.before, self.after, strict=True))
        least = least or (1,) * len(self.kernel)
        return tuple(draw(st.integers(max(f, m, 1), max(f, m, 1) + 5)) for f, m in zip(fits, least, strict=True))

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.written.get("padding") == "same":
            return tuple(-(-i // s) for i, s in zip(size, self.stride, strict=True))
        return tuple(
            (i + b + a - span) // s + 1
            for i, b, a, span, s in zip(size, self.before, self.after, self.span, self.stride, strict=True)
        )


def one_or_each(draw: Any, ndim: int, values: st.SearchStrategy[int]) -> tuple[tuple[int, ...], Any]:
    """Draw one value for all axes or one for each; return them, and as they are written."""
    if draw(st.booleans()):
        each = tuple(draw(values) for _ in range(ndim))
        return each, draw(st.sampled_from([each, list(each)]))
    value = draw(values)
    return (value,) * ndim, value


@st.composite
def windows(draw: Any, ndim: int, *, padding: int = 3, strings: bool = True, dilated: bool = True) -> Window:
    """Draw kernel, stride, dilation and padding."""
    largest = 3 if ndim == 3 else 4
    kernel = tuple(draw(st.integers(1, largest)) for _ in range(ndim))
    stride, stride_written = one_or_each(draw, ndim, st.integers(1, 3))
    dilation, dilation_written = one_or_each(draw, ndim, st.integers(1, 3)) if dilated else ((1,) * ndim, 1)
    zero = (0,) * ndim
    form = draw(st.sampled_from(["int", "pairs", "same", "valid"] if strings else ["int", "pairs"]))
    if form in ("same", "valid"):
        before, after, written = zero, zero, form
    elif form == "int":
        before, written = one_or_each(draw, ndim, st.integers(0, padding))
        after = before
    else:
        before, after = (tuple(draw(st.integers(0, padding)) for _ in range(ndim)) for _ in range(2))
        written = tuple(zip(before, after, strict=True))
    arguments = {"stride": stride_written, "padding": written, "dilation": dilation_written}
    return Window(kernel, stride, dilation, before, after, arguments)


@st.composite
def epilogues(draw: Any) -> str | None:
    return draw(st.sampled_from([None, None, None, *SMOOTH, *KINKED]))


def operands(draw: Any, data: Data, activation: str | None, bias: tuple[int, ...], residual: tuple[int, ...]) -> Any:
    """Draw which of bias and residual there are; with a kink at least one, of odd halves."""
    present = [["bias"], ["residual"], ["bias", "residual"]]
    names = draw(st.sampled_from(present if activation in KINKED else [[], *present]))
    shapes = {"bias": bias, "residual": residual}
    halves = names[0] if activation in KINKED else None
    return {name: data.array(shapes[name], offset=0.5 * (name == halves)) for name in names}


@st.composite
def convolutions(draw: Any, local: bool = False) -> Case:
    """Draw a call of ``conv*d`` or ``locally_connected2d``."""
    ndim = 2 if local else draw(st.integers(1, 3))
    window = draw(windows(ndim))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    widest = tuple(map(max, window.before, window.after))
    least = {"reflect": tuple(p + 1 for p in widest), "circular": widest}.get(mode)
    if window.written["padding"] == "same" and mode != "zeros":
        least = window.span
    size = window.input_size(draw, least)
    groups = 1 if local else draw(st.sampled_from([1, 1, 2, 3]))
    ic, oc = (groups * draw(st.integers(1, 3)) for _ in range(2))
    activation = draw(epilogues())
    data = Data(draw, integers=activation in KINKED)
    x = data.map(draw, ic, size)
    if activation is None:
        x = data.with_specials(draw, x, [math.nan, math.inf, -math.inf, 0.0])
    out = window.output_size(size)
    shape = (*x.shape[: -ndim - 1], oc, *out)
    bias = draw(st.sampled_from([(oc,), (*out, oc)])) if local else (oc,)
    weight = data.array((*out * local, oc, ic // groups, *window.kernel))
    given = {"input": x, "weight": weight, **operands(draw, data, activation, bias, shape)}
    arguments = {**window.written, "padding_mode": mode, "activation": activation}
    if not local:
        arguments["groups"] = groups
    return Case("locally_connected2d" if local else f"conv{ndim}d", given, arguments, data.seed)


@st.composite
def transposed(draw: Any) -> Case:
    """Draw a call of ``conv_transpose*d``."""
    ndim = draw(st.integers(1, 3))
    window = draw(windows(ndim))
    padding = window.written["padding"]
    extra, extra_written = (0,) * ndim, 0
    if padding != "same":
        limits = tuple(map(max, window.stride, window.dilation))
        extra = tuple(draw(st.integers(0, limit - 1)) for limit in limits)
        extra_written = extra
    # At least one element is left of (size - 1) * stride + span + extra once the padding is cut off.
    least = tuple(
        1 + max(0, -(-(1 + b + a - s - e) // step))
        for b, a, s, e, step in zip(window.before, window.after, window.span, extra, window.stride, strict=True)
    )
    size = tuple(draw(st.integers(m, m + 4)) for m in least)
    if padding == "same":
        out = tuple(i * s for i, s in zip(size, window.stride, strict=True))
    else:
        out = tuple(
            (i - 1) * step + s + e - b - a
            for i, step, s, e, b, a in zip(
                size, window.stride, window.span, extra, window.before, window.after, strict=True
            )
        )
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    ic, oc = (groups * draw(st.integers(1, 3)) for _ in range(2))
    activation = draw(epilogues())
    data = Data(draw, integers=activation in KINKED)
    x = data.map(draw, ic, size)
    weight = data.array((ic, oc // groups, *window.kernel))
    shape = (*x.shape[: -ndim - 1], oc, *out)
    return Case(
        f"conv_transpose{ndim}d",
        {"input": x, "weight": weight, **operands(draw, data, activation, (oc,), shape)},
        {**window.written, "output_padding": extra_written, "groups": groups, "activation": activation},
        data.seed,
    )


@st.composite
def linears(draw: Any) -> Case:
    """Draw a call of ``linear``."""
    lead = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    ic, oc = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    activation = draw(epilogues())
    data = Data(draw, integers=activation in KINKED)
    rest = operands(draw, data, activation, (oc,), (*lead, oc))
    return Case(
        "linear",
        {"input": data.array((*lead, ic)), "weight": data.array((oc, ic)), **rest},
        {"activation": activation},
        data.seed,
    )


@st.composite
def unfolds(draw: Any) -> Case:
    """Draw a call of ``unfold``."""
    ndim = draw(st.integers(1, 3))
    window = draw(windows(ndim))
    data = Data(draw)
    x = data.map(draw, draw(st.integers(1, 3)), window.input_size(draw))
    return Case("unfold", {"input": x}, {"kernel_size": window.kernel, **window.written}, data.seed)


@st.composite
def folds(draw: Any) -> Case:
    """Draw a call of ``fold``."""
    ndim = draw(st.integers(1, 3))
    window = draw(windows(ndim))
    data = Data(draw)
    size = window.input_size(draw)
    rows = draw(st.integers(1, 3)) * math.prod(window.kernel)
    x = data.map(draw, rows, (math.prod(window.output_size(size)),))
    arguments = {"output_size": size, "kernel_size": window.kernel, **window.written}
    return Case("fold", {"input": x}, arguments, data.seed)


@st.composite
def pool_windows(draw: Any, ndim: int, *, dilated: bool = False, padded: bool = True) -> tuple[Window, dict[str, Any]]:
    """Draw a pool's window, its padding at most half of it, and the arguments that say so."""
    largest = 3 if ndim == 3 else 4
    kernel, kernel_written = one_or_each(draw, ndim, st.integers(1, largest))
    dilation, dilation_written = one_or_each(draw, ndim, st.integers(1, 3)) if dilated else ((1,) * ndim, 1)
    stride, stride_written = one_or_each(draw, ndim, st.integers(1, 3))
    if draw(st.booleans()):
        stride, stride_written = kernel, None
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    zero = (0,) * ndim
    form = draw(st.sampled_from(["each", "pairs", "same", "valid"])) if padded else "valid"
    before, after, written = zero, zero, form
    if form in ("each", "pairs"):
        before, after = (tuple(draw(st.integers(0, s // 2)) for s in spans) for _ in range(2))
        if form == "each":
            before = after = tuple(map(min, before, (k // 2 for k in kernel))) if ndim == 3 else before
        written = before if form == "each" else tuple(zip(before, after, strict=True))
    arguments = {"kernel_size": kernel_written, "stride": stride_written, "padding": written}
    if form in ("each", "valid"):
        arguments["ceil_mode"] = draw(st.booleans())
    if not padded:
        del arguments["padding"]
    if dilated:
        arguments["dilation"] = dilation_written
    return Window(kernel, stride, dilation, before, after, arguments), arguments


@st.composite
def max_pools(draw: Any) -> Case:
    """Draw a call of ``max_pool*d``: few different values, so that maxima are tied; NaN and infinities too."""
    ndim = draw(st.integers(1, 3))
    window, arguments = draw(pool_windows(ndim, dilated=True))
    padded = arguments["padding"] == "same" or any(window.before + window.after)
    least = tuple(d if padded else 1 for d in window.dilation)
    data = Data(draw, integers=draw(st.booleans()))
    x = data.map(draw, draw(st.integers(1, 3)), window.input_size(draw, least))
    stood_in = arguments["padding"] == "same" or window.before != window.after
    x = data.with_specials(draw, x, [math.nan, math.inf] + [-math.inf] * (not stood_in))
    return Case(f"max_pool{ndim}d", {"input": x}, {**arguments, "return_indices": draw(st.booleans())}, data.seed)


@st.composite
def avg_pools(draw: Any) -> Case:
    """Draw a call of ``avg_pool*d``."""
    ndim = draw(st.integers(1, 3))
    window, arguments = draw(pool_windows(ndim))
    arguments["count_include_pad"] = draw(st.booleans())
    arguments["divisor_override"] = draw(st.sampled_from([None, None, 1, 3, 7, -2]))
    data = Data(draw)
    size = window.input_size(draw, window.kernel if ndim == 3 else None)
    x = data.map(draw, draw(st.integers(1, 3)), size)
    return Case(f"avg_pool{ndim}d", {"input": x}, arguments, data.seed)


@st.composite
def lp_pools(draw: Any) -> Case:
    """Draw a call of ``lp_pool*d``."""
    ndim = draw(st.integers(1, 3))
    window, arguments = draw(pool_windows(ndim, padded=False))
    power = draw(st.sampled_from([1, 2, 2.0, 4, 3, 1.5]))
    data = Data(draw)
    x = data.map(draw, draw(st.integers(1, 3)), window.input_size(draw), positive=power % 2 != 0)
    return Case(f"lp_pool{ndim}d", {"input": x}, {"norm_type": power, **arguments}, data.seed)


@st.composite
def adaptive_pools(draw: Any, kind: str) -> Case:
    """Draw a call of ``adaptive_avg_pool*d`` or ``adaptive_max_pool*d``."""
    ndim = draw(st.integers(1, 3))
    size = tuple(draw(st.integers(1, 7)) for _ in range(ndim))
    out = draw(st.one_of(st.integers(1, 9), st.tuples(*[st.one_of(st.none(), st.integers(1, 5)) for _ in range(ndim)])))
    data = Data(draw, integers=kind == "max")
    x = data.map(draw, draw(st.integers(1, 3)), size)
    arguments: dict[str, Any] = {"output_size": out}
    if kind == "max":
        x = data.with_specials(draw, x, [math.nan, math.inf, -math.inf])
        arguments["return_indices"] = draw(st.booleans())
    return Case(f"adaptive_{kind}_pool{ndim}d", {"input": x}, arguments, data.seed)


@st.composite
def unpools(draw: Any) -> Case:
    """Draw a call of ``max_unpool*d``, its indices at random: some repeat."""
    ndim = draw(st.integers(1, 3))
    kernel, kernel_written = one_or_each(draw, ndim, st.integers(1, 3))
    stride, stride_written = one_or_each(draw, ndim, st.integers(1, 3))
    if draw(st.booleans()):
        stride, stride_written = kernel, None
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    # The smallest size that pools to the input must be a size: (size - 1) * stride - 2 * padding + kernel.
    least = tuple(1 + (2 * p == k) for p, k in zip(padding, kernel, strict=True))
    size = tuple(draw(st.integers(m, m + 3)) for m in least)
    default = tuple((i - 1) * s - 2 * p + k for i, s, p, k in zip(size, stride, padding, kernel, strict=True))
    given = tuple(draw(st.integers(max(1, d - s + 1), d + s - 1)) for d, s in zip(default, stride, strict=True))
    data = Data(draw)
    x = data.map(draw, draw(st.integers(1, 3)), size)
    form = draw(st.sampled_from(["none", "spatial", "whole"]))
    out = {"none": default, "spatial": given, "whole": given}[form]
    written = {"none": None, "spatial": out, "whole": (*x.shape[:-ndim], *out)}[form]
    indices = np.random.default_rng(data.seed).integers(0, math.prod(out), x.shape)
    arguments = {"kernel_size": kernel_written, "stride": stride_written, "padding": padding, "output_size": written}
    return Case(f"max_unpool{ndim}d", {"input": x, "indices": indices}, arguments, data.seed)


FAMILIES: dict[str, st.SearchStrategy[Case]] = {
    "conv": convolutions(),
    "conv_transpose": transposed(),
    "locally_connected": convolutions(local=True),
    "linear": linears(),
    "unfold": unfolds(),
    "fold": folds(),
    "max_pool": max_pools(),
    "avg_pool": avg_pools(),
    "lp_pool": lp_pools(),
    "adaptive_avg_pool": adaptive_pools("avg"),
    "adaptive_max_pool": adaptive_pools("max"),
    "max_unpool": unpools(),
}
