"""ResNet-50 and MobileNetV2 in PyTorch, as compactly as they can be written, with random weights."""

from __future__ import annotations

import torch
from torch import nn


def _conv(inside: int, outside: int, size: int = 1, stride: int = 1, groups: int = 1, act: type | None = None) -> list:
    layers = [nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outside)]
    return layers if act is None else [*layers, act(inplace=True)]


class _Bottleneck(nn.Module):
    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = 4 * width
        self.body = nn.Sequential(
            *_conv(inside, width, act=nn.ReLU),
            *_conv(width, width, 3, stride, act=nn.ReLU),
            *_conv(width, outside),
        )
        self.shortcut = nn.Identity() if inside == outside else nn.Sequential(*_conv(inside, outside, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return self.relu(out)


class _Inverted(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inside * expansion
        self.body = nn.Sequential(
            *(_conv(inside, width, act=nn.ReLU6) if expansion > 1 else []),
            *_conv(width, width, 3, stride, groups=width, act=nn.ReLU6),
            *_conv(width, outside),
        )
        self.residual = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def resnet50() -> nn.Module:
    """Return a ResNet-50 (He et al. 2015; the stride in the 3x3 convolution)."""
    layers: list[nn.Module] = [*_conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for stride in (first, *[1] * (blocks - 1)):
            layers.append(_Bottleneck(inside, width, stride))
            inside = 4 * width
    return _headed(layers, inside)


def mobilenet_v2() -> nn.Module:
    """Return a MobileNetV2 (Sandler et al. 2018)."""
    layers: list[nn.Module] = _conv(3, 32, 3, 2, act=nn.ReLU6)
    inside = 32
    for expansion, channels, blocks, first in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for stride in (first, *[1] * (blocks - 1)):
            layers.append(_Inverted(inside, channels, stride, expansion))
            inside = channels
    return _headed([*layers, *_conv(inside, 1280, act=nn.ReLU6)], 1280)


def _headed(layers: list[nn.Module], channels: int) -> nn.Module:
    """Return a classifier whose batch norms hold numbers such as training leaves there."""
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.0),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.9, 1.1),
            ):
                nn.init.uniform_(values, low, high)
    return model.eval()
