"""The problems that algorithms solve: one frozen record says everything about a call but its data.

A *problem* is a convolution or a window operation (pooling, unfold) together with a direction.
Tensors keep their roles in every direction: ``x`` and ``dx`` have the input's shape, ``y`` and ``dy``
the output's, ``w`` and ``dw`` the weight's. A transposed convolution is therefore no record of its own:
its forward pass is the ``dgrad`` of a convolution, and its input gradient is that convolution's ``fprop``.

Sizes are tuples with one entry per spatial axis (depth, height, width; fewer in fewer dimensions), and
every size also has the field's short name: ``problem.kh``, ``problem.iw``, ``problem.sd`` and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import ClassVar

from fastconv import arguments
from fastconv.record import DTYPES, INDEX_DTYPES, LAYOUTS, Operand, Problem
from fastconv.sizes import AXES, Padding, Sizes, conv_output_size, pool_output_size

# Who speaks of problems finds here the words for it, too.
__all__ = [
    "ACTIVATIONS",
    "AXES",
    "BIASES",
    "DTYPES",
    "INDEX_DTYPES",
    "LAYOUTS",
    "PADDING_MODES",
    "ConvProblem",
    "Operand",
    "Padding",
    "PoolProblem",
    "Problem",
    "Sizes",
]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
BIASES = ("none", "channel", "position")
ACTIVATIONS = ("relu", "leaky_relu", "relu6", "sigmoid", "tanh")


@dataclass(frozen=True, kw_only=True)
class ConvProblem(Problem):
    """A convolution (cross-correlation, as the field uses the word) in one direction.

    Parameters
    ----------
    op : str
        ``conv1d``, ``conv2d``, ``conv3d``, ``locally_connected2d`` or ``linear`` (no spatial axes).
    direction : str
        ``fprop``: y from x, w. ``dgrad``: dx from dy, w. ``wgrad``: dw from x, dy. ``bgrad``: db from dy.
    n, ic, oc : int
        Batch size, input channels, output channels.
    input_size, kernel_size, stride, dilation : tuple of int
        One entry per spatial axis; dilation is 1-based. Stride and dilation are ones if left out.
    padding : tuple of (int, int)
        Before and after, per spatial axis; none if left out. With zero padding the one after may be negative: the
        input's end is then not read.
    groups : int
        Divides ``ic`` and ``oc``.
    padding_mode : str
        ``zeros``, ``reflect`` (edge not repeated), ``replicate`` or ``circular``.
    bias : str
        ``none``, ``channel`` (one value a channel of the result) or ``position`` (one a position and
        channel, locally connected only). In ``bgrad`` it says which shape the gradient has.
    activation : str or None
        Applied last, in ``fprop`` and ``dgrad`` (the forward passes of convolution and its transpose).
    residual : bool
        An array of the result's shape is added before the activation.
    prepacked : bool
        The weight was handed to `Plan.pack` beforehand and its cost does not count.
    dtype, layout, device : str
        ``float32`` and so on; ``channels_first`` or ``channels_last``; ``cpu`` or ``cuda``.

    Raises
    ------
    TypeError, ValueError
        If the values do not describe a convolution; the message names the argument.
    """

    OPS: ClassVar[tuple[str, ...]] = ("linear", "conv1d", "conv2d", "conv3d", "locally_connected2d")

    output_size: Sizes = field(init=False)
    ic: int
    oc: int
    groups: int = 1
    padding_mode: str = "zeros"
    bias: str = "none"
    activation: str | None = None
    residual: bool = False
    prepacked: bool = False

    __hash__ = Problem.__hash__

    @classmethod
    def fields_of(cls, op: str) -> set[str]:
        names = {f.name for f in fields(cls) if f.init}
        return names - {"kernel_size", "stride", "dilation", "padding"} if op == "linear" else names

    def __post_init__(self) -> None:
        self._check(
            padding_mode=PADDING_MODES,
            bias=BIASES if self.is_local else BIASES[:2],
            activation=(None, *ACTIVATIONS),
        )
        for name in ("ic", "oc", "groups"):
            self._set(name, arguments.integer(name, getattr(self, name), 1))
        for name in ("residual", "prepacked"):
            self._set(name, arguments.flag(name, getattr(self, name)))
        for channels in (self.ic, self.oc):
            if channels % self.groups:
                raise ValueError(f"groups: {self.groups} does not divide {self.ic} input and {self.oc} output channels")
        out = []
        for size, kernel, stride, dilation, pad in zip(
            self.input_size, self.kernel_size, self.stride, self.dilation, self.padding, strict=True
        ):
            self._check_padding(size, pad)
            positions = conv_output_size(size, kernel, stride, dilation, pad)
            if positions < 1:
                raise ValueError(
                    f"weight: a kernel of {kernel} with dilation {dilation} spans {dilation * (kernel - 1) + 1}, "
                    f"more than the padded input of {size + sum(pad)}"
                )
            out.append(positions)
        self._set("output_size", tuple(out))
        self._check_extent()

    def _check_padding(self, size: int, pad: tuple[int, int]) -> None:
        # A transposed convolution with much output padding leaves the end of dx unread: padding below zero.
        if pad[0] < 0 or (pad[1] < 0 and self.padding_mode != "zeros"):
            raise ValueError(f"padding: must not be negative, got {pad}")
        limit = {"reflect": size - 1, "circular": size}.get(self.padding_mode)
        if limit is not None and max(pad) > limit:
            raise ValueError(
                f"padding: {max(pad)} is too wide for padding_mode={self.padding_mode!r} "
                f"on an input of {size} (at most {limit})"
            )

    @property
    def directions(self) -> tuple[str, ...]:
        return ("fprop", "dgrad", "wgrad", "bgrad")

    @property
    def x_shape(self) -> Sizes:
        return (self.n, self.ic, *self.input_size)

    @property
    def y_shape(self) -> Sizes:
        return (self.n, self.oc, *self.output_size)

    @property
    def w_shape(self) -> Sizes:
        shape = (self.oc, self.ic // self.groups, *self.kernel_size)
        return self.output_size + shape if self.is_local else shape

    @property
    def result_shape(self) -> Sizes:
        """The shape of what ``fprop`` or ``dgrad`` computes: ``residual`` has it too."""
        return self.x_shape if self.direction == "dgrad" else self.y_shape

    @property
    def bias_shape(self) -> Sizes:
        if self.bias == "position":
            return (*self.output_size, self.oc)
        return (self.ic if self.direction == "dgrad" else self.oc,)

    @property
    def is_local(self) -> bool:
        """Whether every output position has weights of its own."""
        return self.op == "locally_connected2d"

    @cached_property
    def inputs(self) -> tuple[Operand, ...]:
        x = Operand("x", self.x_shape, self.dtype, True)
        w = Operand("w", self.w_shape, self.dtype, False)
        dy = Operand("dy", self.y_shape, self.dtype, True)
        if self.direction == "bgrad":
            return (dy,)
        if self.direction == "wgrad":
            return (x, dy)
        epilogue: tuple[Operand, ...] = ()
        if self.bias != "none":
            epilogue += (Operand("bias", self.bias_shape, self.dtype, False),)
        if self.residual:
            epilogue += (Operand("residual", self.result_shape, self.dtype, True),)
        return (x if self.direction == "fprop" else dy, w, *epilogue)

    @cached_property
    def outputs(self) -> tuple[Operand, ...]:
        shape = {
            "fprop": self.y_shape,
            "dgrad": self.x_shape,
            "wgrad": self.w_shape,
            "bgrad": self.bias_shape,
        }[self.direction]
        name = {"fprop": "y", "dgrad": "dx", "wgrad": "dw", "bgrad": "db"}[self.direction]
        return (Operand(name, shape, self.dtype, self.direction in ("fprop", "dgrad")),)

    @cached_property
    def macs(self) -> int:
        if self.direction == "bgrad":
            return math.prod(self.y_shape)
        return math.prod(self.y_shape) * (self.ic // self.groups) * math.prod(self.kernel_size)

    @property
    def reduction(self) -> int:
        """Terms in the sum behind one result element, at most; what an error bound grows with."""
        taps = math.prod(self.kernel_size)
        return {
            "fprop": self.ic // self.groups * taps,
            "dgrad": self.oc // self.groups * taps * self._copies,
            "wgrad": max(self.n, 1) * (1 if self.is_local else math.prod(self.output_size)),
            "bgrad": max(self.n, 1) * (1 if self.bias == "position" else math.prod(self.output_size)),
        }[self.direction]

    @property
    def _copies(self) -> int:
        """Positions of the padded input that an element stands in, at most."""
        if self.padding_mode == "zeros":
            return 1
        # Reflected and wrapped it stands on either side of itself; the edge's element in all of the padding.
        edges = [(max(0, before) + max(0, after)) for before, after in self.padding]
        return math.prod(1 + (padded if self.padding_mode == "replicate" else min(2, padded)) for padded in edges)

    @property
    def parameters(self) -> int:
        """Weights and biases, as the textbooks count them."""
        return math.prod(self.w_shape) + (0 if self.bias == "none" else math.prod(self.bias_shape))


_GIVEN_OUTPUT = ("adaptive_avg_pool", "adaptive_max_pool", "max_unpool")
_SLIDING = ("max_pool", "avg_pool", "lp_pool", "unfold")

# The kinds to which a field means something, if that is not all of them.
_KINDS_WITH = {
    "output_size": _GIVEN_OUTPUT,
    "kernel_size": _SLIDING,
    "stride": _SLIDING,
    "padding": _SLIDING,
    "dilation": _SLIDING,
    "ceil_mode": ("max_pool", "avg_pool", "lp_pool"),
    "count_include_pad": ("avg_pool",),
    "divisor_override": ("avg_pool",),
    "norm_type": ("lp_pool",),
    "return_indices": ("max_pool", "adaptive_max_pool"),
    "index_dtype": ("max_pool", "adaptive_max_pool"),
}


def _kind_of(op: str) -> str:
    return op.rstrip("123d") if op != "unfold" else op


@dataclass(frozen=True, kw_only=True)
class PoolProblem(Problem):
    """A window operation without weights, in one direction.

    Parameters
    ----------
    op : str
        One of ``OPS``: the pools of 1 to 3 dimensions, ``max_unpool*`` and ``unfold``.
    direction : str
        ``fprop``: y from x. ``dgrad``: dx from dy (and what the op needs to keep). ``fold`` is the
        ``dgrad`` of ``unfold``.
    n, c : int
        Batch size, channels.
    input_size : tuple of int
        Spatial size of x.
    output_size : tuple of int
        Spatial size of y. Computed, but for adaptive pools and ``max_unpool``, where it is given.
    kernel_size, stride, padding, dilation
        As in `ConvProblem`, but that a pool's stride is the kernel's size if left out. Adaptive pools and
        ``max_unpool`` have none (ones and zeros stand there).
    ceil_mode : bool
        Round output sizes up (PyTorch's rule).
    count_include_pad : bool
        Average pools: padding counts in the divisor.
    divisor_override : int or None
        Average pools: the divisor.
    norm_type : float
        Lp pools: the exponent.
    return_indices : bool
        Max pools: ``fprop`` also writes, per output, the flat spatial index of the chosen input.
    index_dtype : str
        Max pools: what indices are stored as, ``int64`` or, where it holds the map's size, ``int32`` or ``int16``.
    dtype, layout, device : str
        As in `ConvProblem`.

    Raises
    ------
    TypeError, ValueError
        If the values do not describe a window operation, or a field that means nothing to it is not at its default;
        the message names the argument.
    """

    KINDS: ClassVar[tuple[str, ...]] = (
        "max_pool",
        "avg_pool",
        "lp_pool",
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "max_unpool",
        "unfold",
    )
    OPS: ClassVar[tuple[str, ...]] = (
        *(f"{kind}{ndim}d" for kind in KINDS if kind != "unfold" for ndim in (1, 2, 3)),
        "unfold",
    )

    output_size: Sizes = ()
    c: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None
    norm_type: float = 2.0
    return_indices: bool = False
    index_dtype: str = "int64"

    __hash__ = Problem.__hash__

    @classmethod
    def fields_of(cls, op: str) -> set[str]:
        kind = _kind_of(op)
        return {f.name for f in fields(cls) if kind in _KINDS_WITH.get(f.name, cls.KINDS)}

    def __post_init__(self) -> None:
        self._check(index_dtype=tuple(INDEX_DTYPES))
        self._set("c", arguments.integer("c", self.c, 1))
        for name in ("ceil_mode", "count_include_pad", "return_indices"):
            self._set(name, arguments.flag(name, getattr(self, name)))
        if self.divisor_override is not None and not arguments.integer("divisor_override", self.divisor_override):
            raise ValueError("divisor_override: must not be zero")
        self._set("norm_type", arguments.number("norm_type", self.norm_type))
        if not (0 < self.norm_type < math.inf):
            raise ValueError(f"norm_type: must be positive and finite, got {self.norm_type}")
        self._check_meaning()
        if self.index_dtype not in self.index_dtypes:
            raise ValueError(
                f"index_dtype: expected one of {', '.join(self.index_dtypes)} for maps of {self.input_size} "
                f"{'with' if self._has_indices else 'without'} indices, got {self.index_dtype}"
            )
        if self.given_output:
            self._set("output_size", arguments.shape("output_size", self.output_size))
            if len(self.output_size) != self.ndim or any(o < 1 for o in self.output_size):
                raise ValueError(f"output_size: expected {self.ndim} positive sizes, got {self.output_size}")
        else:
            self._set("output_size", self._computed_output())
        self._check_extent()

    def _check_meaning(self) -> None:
        ones = (1,) * self.ndim
        plain = {"kernel_size": ones, "stride": ones, "dilation": ones, "padding": ((0, 0),) * self.ndim}
        for f in fields(self):
            value, default = getattr(self, f.name), plain.get(f.name, f.default)
            if f.name != "output_size" and f.name not in self.fields_of(self.op) and value != default:
                raise ValueError(f"{f.name}: means nothing to {self.op}, where it must be {default}, got {value}")

    def _computed_output(self) -> Sizes:
        out = []
        for size, kernel, stride, dilation, pad in zip(
            self.input_size, self.kernel_size, self.stride, self.dilation, self.padding, strict=True
        ):
            span = dilation * (kernel - 1) + 1
            if min(pad) < 0:
                raise ValueError(f"padding: must not be negative, got {pad}")
            if self.op != "unfold" and max(pad) > span // 2:
                raise ValueError(f"padding: {max(pad)} is more than half of the kernel's span of {span}")
            positions = pool_output_size(size, kernel, stride, dilation, pad, self.ceil_mode)
            if positions < 1:
                raise ValueError(
                    f"kernel_size: {kernel} with dilation {dilation} spans {span}, "
                    f"more than the padded input of {size + sum(pad)}"
                )
            out.append(positions)
        return tuple(out)

    @property
    def kind(self) -> str:
        """The op's name without its dimension."""
        return _kind_of(self.op)

    @property
    def directions(self) -> tuple[str, ...]:
        return ("fprop", "dgrad")

    @property
    def is_max(self) -> bool:
        return self.kind in ("max_pool", "adaptive_max_pool")

    @property
    def _has_indices(self) -> bool:
        return self.is_max and (self.return_indices or self.direction == "dgrad")

    @property
    def index_dtypes(self) -> tuple[str, ...]:
        """What indices may be stored as, the narrowest last."""
        cells = math.prod(self.input_size) if self._has_indices else math.inf
        return tuple(name for name, size in INDEX_DTYPES.items() if name == "int64" or cells <= 2 ** (8 * size - 1))

    @property
    def index_itemsize(self) -> int:
        """Bytes of an index."""
        return INDEX_DTYPES[self.index_dtype]

    @property
    def is_adaptive(self) -> bool:
        return self.kind.startswith("adaptive")

    @property
    def given_output(self) -> bool:
        """Whether the output size is an argument rather than computed."""
        return self.kind in _GIVEN_OUTPUT

    @property
    def x_shape(self) -> Sizes:
        return (self.n, self.c, *self.input_size)

    @property
    def y_shape(self) -> Sizes:
        if self.op == "unfold":
            return (self.n, self.c * math.prod(self.kernel_size), math.prod(self.output_size))
        return (self.n, self.c, *self.output_size)

    @cached_property
    def inputs(self) -> tuple[Operand, ...]:
        x = Operand("x", self.x_shape, self.dtype, True)
        dy = Operand("dy", self.y_shape, self.dtype, self.op != "unfold")
        forward = self.direction == "fprop"
        if self.is_max and not forward:
            return (dy, Operand("indices", self.y_shape, self.index_dtype, True))
        if self.kind == "max_unpool":
            return (x if forward else dy, Operand("indices", self.x_shape, "int64", True))
        if self.kind == "lp_pool" and not forward:
            return (dy, x, Operand("y", self.y_shape, self.dtype, True))
        return (x,) if forward else (dy,)

    @cached_property
    def outputs(self) -> tuple[Operand, ...]:
        if self.direction == "dgrad":
            return (Operand("dx", self.x_shape, self.dtype, True),)
        y = Operand("y", self.y_shape, self.dtype, self.op != "unfold")
        if self.is_max and self.return_indices:
            return (y, Operand("indices", self.y_shape, self.index_dtype, True))
        return (y,)

    @cached_property
    def macs(self) -> int:
        if self.is_adaptive:
            window = math.prod(-(-i // o) for i, o in zip(self.input_size, self.output_size, strict=True))
        else:
            window = 1 if self.kind == "max_unpool" else math.prod(self.kernel_size)
        return self.n * self.c * math.prod(self.input_size if self.kind == "max_unpool" else self.output_size) * window

    @property
    def flops(self) -> int:
        """One comparison or addition an element visited."""
        return self.macs

    @property
    def reduction(self) -> int:
        """Terms in the sum behind one result element, at most."""
        if self.is_adaptive:
            sizes = zip(self.input_size, self.output_size, strict=True)
            # Elements of a window, or windows that an element is in.
            return math.prod(-(-i // o) + 1 if self.direction == "fprop" else -(-o // i) + 1 for i, o in sizes)
        return math.prod(self.kernel_size)
