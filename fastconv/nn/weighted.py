"""Layers with weights: convolutions, transposed and locally connected ones, and fully connected layers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from fastconv import arguments, grad
from fastconv.arrays import Array
from fastconv.grad import vjp
from fastconv.nn import checks
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Value
from fastconv.nn.initialisation import Initialisation, Random, draw
from fastconv.nn.layer import Ending, Parameter, Shape, Window
from fastconv.ops import conv2d, conv_transpose2d, linear, locally_connected2d, transposed_size
from fastconv.problem import PADDING_MODES
from fastconv.sizes import conv_output_size

_FUSED = frozenset({"relu", "leaky_relu", "relu6", "sigmoid", "tanh"})
_SLOPE = 0.01


class Weighted(Ending):
    """A layer that is one of fastconv's ops on its input, a weight and a bias.

    Attributes
    ----------
    weight : Parameter
    bias : Parameter or None
    op : callable
        The public function.
    settings : dict
        Its keyword arguments.
    channel_axis : int
        The weight's axis that belongs to output channels.
    ndim : int or None
        The axes of its inputs, with the batch; None for any number.
    """

    op: ClassVar[Any]
    channel_axis: ClassVar[int] = 0
    ndim: ClassVar[int | None] = 4

    def __init__(self, weight: Any, bias: Any, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.weight = Parameter(weight, self._filters(weight.shape))
        self.bias = None if bias is None else Parameter(bias, limited=False)

    def _filters(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        """Return how a weight of this shape is seen as filters, as `Parameter` describes."""
        return shape, tuple(range(self.channel_axis + 1, len(shape)))

    @property
    def fuses(self) -> frozenset[str]:
        return _FUSED

    def _arguments(self, x: Array) -> tuple[Array, Array, Array | None]:
        return x, self.weight.value, None if self.bias is None else self.bias.value

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        checks.batch(self, x, ndim=self.ndim)
        settings = {**self.settings, "activation": activation, "residual": residual}
        if not self.training:
            return type(self).op(*self._arguments(x), **settings)
        y, pullback = vjp(type(self).op, *self._arguments(x), **settings)
        self._keep(y, pullback)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (pullback,) = self._take(dy)
        names = ("input",) * wanted + ("weight",) + ("bias",) * (self.bias is not None)
        dx, self.weight.gradient, db, *_ = pullback(dy, wrt=names)
        if self.bias is not None:
            self.bias.gradient = db
        return dx

    def trace(self, graph: Graph, value: Value) -> Value:
        shape, weight = self.output_shape(value.shape[1:]), self.weight.value
        # A locally connected layer's outputs have two axes of the weight, a transposed convolution's have one a group.
        whole = weight.ndim < 6 and (self.channel_axis == 0 or self.settings.get("groups", 1) == 1)
        return graph.write(
            "weighted",
            [value],
            shape,
            layer=self,
            weight=weight,
            bias=None if self.bias is None else self.bias.value,
            channel_axis=self.channel_axis if whole else None,
            fuses=self.fuses,
            adds=len(shape) == 3,
        )


class Conv2d(Weighted):
    """A convolution: `fastconv.conv2d` with a weight and a bias of its own.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, padding, dilation, groups, padding_mode
        As `fastconv.conv2d` takes them.
    bias : bool
        Whether a number is added to each output channel.
    initialisation : {'he', 'xavier'} or callable
        Of the weight; biases begin at zero.
    random : numpy.random.Generator or int, optional
        What the weights are drawn from.
    dtype : dtype

    Raises
    ------
    ValueError
        If the channels are no multiples of the groups.
    """

    op: ClassVar[Any] = staticmethod(conv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        initialisation: Initialisation = "he",
        random: Random = None,
        dtype: Any = np.float32,
    ) -> None:
        _check_groups(in_channels, out_channels, groups)
        kernel = arguments.sizes("kernel_size", kernel_size, 2)
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode: expected {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        shape = (out_channels, in_channels // groups, *kernel)
        window = math.prod(kernel)
        fans = in_channels // groups * window, out_channels // groups * window
        weight = draw(initialisation, shape, *fans, random, dtype)
        super().__init__(
            weight,
            np.zeros(out_channels, dtype) if bias else None,
            {
                "stride": arguments.sizes("stride", stride, 2),
                "padding": checks.padding(padding, kernel),
                "dilation": arguments.sizes("dilation", dilation, 2),
                "groups": groups,
                "padding_mode": padding_mode,
            },
        )

    @property
    def adds(self) -> bool:
        return True

    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        checks.batch(self, x, ndim=self.ndim)
        y = conv2d(*self._arguments(x), activation=activation, residual=residual, **self.settings)
        own = None if residual is not None else activation
        self._keep(y, x, own, y if own else None)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        dy, x = self._weight_gradients(dy)
        return grad.conv2d_input(x.shape, self.weight.value, dy, **self.settings) if wanted else None

    def backward_onto(self, dy: Array, added: Array) -> Array:
        dy, x = self._weight_gradients(dy)
        dx: Array = grad.conv2d_input(x.shape, self.weight.value, dy, residual=added, **self.settings)
        return dx

    def _weight_gradients(self, dy: Array) -> tuple[Array, Array]:
        """Set the parameters' gradients; return the gradient before the activation, and the input."""
        # As the pullback of `vjp` does, but for the activation and the bias, which take one pass together.
        x, activation, y = self._take(dy)
        compute = for_array(dy)
        if self.bias is not None:
            dy, self.bias.gradient = compute.bias_gradient(dy, y, activation, _SLOPE)
        elif activation is not None:
            dy = compute.activation_gradient(dy, y, activation, _SLOPE)
        self.weight.gradient = grad.conv2d_weight(x, self.weight.value.shape, dy, **self.settings)
        return dy, x

    def output_shape(self, shape: Shape) -> Shape:
        oc, ic, *kernel = self.weight.value.shape
        _check_map(self, shape, ic * self.settings["groups"])
        stride, dilation = self.settings["stride"], self.settings["dilation"]
        padding = arguments.padding(self.settings["padding"], shape[1:], tuple(kernel), stride, dilation)
        return checks.not_empty(self, shape, (oc, *map(conv_output_size, shape[1:], kernel, stride, dilation, padding)))

    def macs(self, shape: Shape) -> int:
        return int(math.prod(self.output_shape(shape)) * math.prod(self.weight.value.shape[1:]))

    def window(self) -> Window:
        kernel, dilation = self.weight.value.shape[-2:], self.settings["dilation"]
        span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        return span, self.settings["stride"]

    def details(self) -> str:
        oc, ic, *kernel = self.weight.value.shape
        shown = {k: v for k, v in self.settings.items() if v not in ((1, 1), 0, 1, "zeros")}
        extra = "".join(f", {k}={v}" for k, v in shown.items()) + (", bias=False" if self.bias is None else "")
        return f"{ic * self.settings['groups']}, {oc}, {tuple(kernel)}{extra}"


class ConvTranspose2d(Weighted):
    """A transposed convolution: `fastconv.conv_transpose2d` with a weight and a bias of its own.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or (int, int)
    stride, padding, output_padding, groups, dilation
        As `fastconv.conv_transpose2d` takes them.
    bias, initialisation, random, dtype
        As in `Conv2d`.

    Raises
    ------
    ValueError
        If the channels are no multiples of the groups.
    """

    op: ClassVar[Any] = staticmethod(conv_transpose2d)
    channel_axis: ClassVar[int] = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        initialisation: Initialisation = "he",
        random: Random = None,
        dtype: Any = np.float32,
    ) -> None:
        _check_groups(in_channels, out_channels, groups)
        kernel = arguments.sizes("kernel_size", kernel_size, 2)
        window = math.prod(kernel)
        fans = in_channels // groups * window, out_channels // groups * window
        steps, holes = arguments.sizes("stride", stride, 2), arguments.sizes("dilation", dilation, 2)
        pads, extra = checks.padding(padding, kernel), arguments.sizes("output_padding", output_padding, 2, 0)
        # What is refused does not depend on the input's size.
        some = tuple(sum(pair) + 2 for pair in arguments.padding(pads, kernel, kernel, steps, holes))
        transposed_size(some, kernel, steps, pads, extra, holes)
        weight = draw(initialisation, (in_channels, out_channels // groups, *kernel), *fans, random, dtype)
        super().__init__(
            weight,
            np.zeros(out_channels, dtype) if bias else None,
            {"stride": steps, "padding": pads, "output_padding": extra, "groups": groups, "dilation": holes},
        )

    def output_shape(self, shape: Shape) -> Shape:
        ic, oc, *kernel = self.weight.value.shape
        _check_map(self, shape, ic)
        names = ("stride", "padding", "output_padding", "dilation")
        size, _ = transposed_size(shape[1:], tuple(kernel), *(self.settings[name] for name in names))
        return (oc * self.settings["groups"], *size)

    def macs(self, shape: Shape) -> int:
        return int(math.prod(shape) * math.prod(self.weight.value.shape[1:]))

    def _filters(self, shape: Shape) -> tuple[Shape, tuple[int, ...]]:
        ic, *rest = shape
        groups = self.settings["groups"]
        return (groups, ic // groups, *rest), (1, 3, 4)

    def window(self) -> Window:
        # An output sees only every stride-th position of the kernel, and lies a stride-th of a pixel from the next.
        kernel, settings = self.weight.value.shape[-2:], self.settings
        spans = ((k - 1) * d + 1 for k, d in zip(kernel, settings["dilation"], strict=True))
        (sh, sw), (h, w) = settings["stride"], spans
        return (-(-h // sh), -(-w // sw)), (Fraction(1, sh), Fraction(1, sw))

    def details(self) -> str:
        ic, oc, *kernel = self.weight.value.shape
        return f"{ic}, {oc * self.settings['groups']}, {tuple(kernel)}, stride={self.settings['stride']}"


class LocallyConnected2d(Weighted):
    """A convolution that shares no weights: `fastconv.locally_connected2d`, for inputs of one size.

    Parameters
    ----------
    in_channels, out_channels : int
    input_size : int or (int, int)
        Height and width of the inputs: there are filters of its own for every output position.
    kernel_size : int or (int, int)
    stride, padding, dilation
        As `fastconv.locally_connected2d` takes them.
    bias : bool
        Whether a number is added to each output channel at each position.
    initialisation, random, dtype
        As in `Conv2d`.
    """

    op: ClassVar[Any] = staticmethod(locally_connected2d)
    channel_axis: ClassVar[int] = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int | tuple[int, int],
        kernel_size: int | tuple[int, int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = True,
        *,
        initialisation: Initialisation = "he",
        random: Random = None,
        dtype: Any = np.float32,
    ) -> None:
        _check_groups(in_channels, out_channels, 1)
        kernel, given = arguments.sizes("kernel_size", kernel_size, 2), arguments.sizes("input_size", input_size, 2)
        steps, holes = arguments.sizes("stride", stride, 2), arguments.sizes("dilation", dilation, 2)
        pads = arguments.padding(padding, given, kernel, steps, holes)
        size = tuple(map(conv_output_size, given, kernel, steps, holes, pads))
        if min(size) < 1:
            raise ValueError(f"kernel_size: {kernel} does not fit into maps of {given} with padding {pads}")
        window = math.prod(kernel)
        shape = (*size, out_channels, in_channels, *kernel)
        weight = draw(initialisation, shape, in_channels * window, out_channels * window, random, dtype)
        self.input_size = given
        super().__init__(
            weight,
            np.zeros((*size, out_channels), dtype) if bias else None,
            {"stride": steps, "padding": pads, "dilation": holes},
        )

    def output_shape(self, shape: Shape) -> Shape:
        oh, ow, oc, ic, *_ = self.weight.value.shape
        _check_map(self, shape, ic)
        if shape[1:] != self.input_size:
            raise ValueError(f"shape: {type(self).__name__} is for maps of {self.input_size}, got {shape[1:]}")
        return oc, oh, ow

    def macs(self, shape: Shape) -> int:
        return int(self.weight.value.size)

    def window(self) -> Window:
        kernel, dilation = self.weight.value.shape[-2:], self.settings["dilation"]
        span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        return span, self.settings["stride"]

    def details(self) -> str:
        _, _, oc, ic, *kernel = self.weight.value.shape
        return f"{ic}, {oc}, {self.input_size}, {tuple(kernel)}"


class Linear(Weighted):
    """A fully connected layer: `fastconv.linear` with a weight and a bias of its own.

    Parameters
    ----------
    in_features, out_features : int
    bias, initialisation, random, dtype
        As in `Conv2d`.
    """

    op: ClassVar[Any] = staticmethod(linear)
    ndim: ClassVar[int | None] = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        initialisation: Initialisation = "he",
        random: Random = None,
        dtype: Any = np.float32,
    ) -> None:
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            arguments.integer(name, value, 1)
        weight = draw(initialisation, (out_features, in_features), in_features, out_features, random, dtype)
        super().__init__(weight, np.zeros(out_features, dtype) if bias else None, {})

    def output_shape(self, shape: Shape) -> Shape:
        features, expected = self.weight.value.shape
        if shape != (expected,):
            raise ValueError(f"shape: Linear takes {expected} features, got {shape}")
        return (features,)

    def macs(self, shape: Shape) -> int:
        return int(self.weight.value.size)

    def details(self) -> str:
        oc, ic = self.weight.value.shape
        return f"{ic}, {oc}" + (", bias=False" if self.bias is None else "")


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        arguments.integer(name, value, 1)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups: {in_channels} and {out_channels} channels cannot be divided into {groups} groups")


def _check_map(layer: Weighted, shape: Shape, channels: int) -> None:
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"shape: {type(layer).__name__} takes maps of {channels} channels, got {shape}")
