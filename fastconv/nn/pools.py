"""Pooling layers: fastconv's pools, whose pullbacks keep indices or nothing."""

from __future__ import annotations

from typing import Any, ClassVar

from fastconv import arguments
from fastconv.arrays import Array
from fastconv.grad import vjp
from fastconv.nn import checks
from fastconv.nn.layer import Layer, Shape, Window
from fastconv.pooling import adaptive_avg_pool2d, avg_pool2d, lp_pool2d, max_pool2d
from fastconv.sizes import pool_output_size


class Pool(Layer):
    """A layer that is one of fastconv's pools.

    Attributes
    ----------
    op : callable
        The public function.
    settings : dict
        Its keyword arguments.
    """

    op: ClassVar[Any]

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def forward(self, x: Array) -> Array:
        checks.batch(self, x, ndim=4)
        if not self.training:
            return type(self).op(x, **self.settings)
        y, pullback = vjp(type(self).op, x, **self.settings)
        self._keep(y, pullback)
        return y

    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        (pullback,) = self._take(dy)
        return pullback(dy)[0] if wanted else None

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise ValueError(f"shape: {type(self).__name__} takes maps, got {shape}")
        settings = self.settings
        kernel, stride = settings["kernel_size"], settings["stride"]
        dilation = settings.get("dilation", (1, 1))
        pads = arguments.padding(settings.get("padding", 0), shape[1:], kernel, stride, dilation)
        ceil = (settings["ceil_mode"],) * 2
        sizes = map(pool_output_size, shape[1:], kernel, stride, dilation, pads, ceil)
        return checks.not_empty(self, shape, (shape[0], *sizes))

    def window(self) -> Window | None:
        kernel, dilation = self.settings["kernel_size"], self.settings.get("dilation", (1, 1))
        return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)), self.settings["stride"]

    def details(self) -> str:
        kernel, stride, *_ = self.settings["kernel_size"], self.settings["stride"]
        return f"{kernel}, stride={stride}"


def _window(kernel_size: Any, stride: Any, ceil_mode: bool, **others: Any) -> dict[str, Any]:
    kernel = arguments.sizes("kernel_size", kernel_size, 2)
    steps = kernel if stride is None else arguments.sizes("stride", stride, 2)
    if "padding" in others:
        others["padding"] = checks.padding(others["padding"], kernel)
    return {"kernel_size": kernel, "stride": steps, "ceil_mode": arguments.flag("ceil_mode", ceil_mode), **others}


class MaxPool2d(Pool):
    """The maximum of every window: `fastconv.max_pool2d`, whose arguments it takes."""

    op: ClassVar[Any] = staticmethod(max_pool2d)

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        holes = arguments.sizes("dilation", dilation, 2)
        super().__init__(_window(kernel_size, stride, ceil_mode, padding=padding, dilation=holes))


class AvgPool2d(Pool):
    """The mean of every window: `fastconv.avg_pool2d`, whose arguments it takes."""

    op: ClassVar[Any] = staticmethod(avg_pool2d)

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        includes = arguments.flag("count_include_pad", count_include_pad)
        super().__init__(_window(kernel_size, stride, ceil_mode, padding=padding, count_include_pad=includes))


class LpPool2d(Pool):
    """The Lp norm of every window: `fastconv.lp_pool2d`, whose arguments it takes."""

    op: ClassVar[Any] = staticmethod(lp_pool2d)

    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> None:
        super().__init__(_window(kernel_size, stride, ceil_mode, norm_type=arguments.number("norm_type", norm_type)))


class GlobalAvgPool(Pool):
    """The mean of every channel, as a map of 1x1."""

    op: ClassVar[Any] = staticmethod(adaptive_avg_pool2d)

    def __init__(self) -> None:
        super().__init__({"output_size": 1})

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise ValueError(f"shape: GlobalAvgPool takes maps, got {shape}")
        return shape[0], 1, 1

    def window(self) -> None:
        return None  # it sees the whole map, however large

    def details(self) -> str:
        return ""
