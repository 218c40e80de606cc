"""Residual networks with bottleneck blocks, and their descendants.

- ResNet (He et al., "Deep residual learning for image recognition", 2015) in the variant called v1.5, with the stride
  in the 3x3 convolution: 25,557,032 parameters with 50 layers, 60,192,808 with 152.
- ResNeXt (Xie et al., "Aggregated residual transformations for deep neural networks", 2016) with 32 groups of 4
  channels: 25,028,904.
- SE-ResNet (Hu et al., "Squeeze-and-excitation networks", 2017): 28,088,024.
"""

from __future__ import annotations

from fastconv.networks.description import (
    Multiply,
    Network,
    Sequence,
    add,
    conv,
    global_avg_pool,
    identity,
    linear,
    max_pool,
    multiply,
    relu,
    seq,
    stack,
)


def _squeeze_excite(channels: int, reduction: int = 16) -> Multiply:
    """Every channel times a weight that is computed from the averages of all channels."""
    return multiply(
        identity(),
        seq(
            squeeze=global_avg_pool(),
            fc1=linear(channels // reduction, "relu"),
            fc2=linear(channels, "sigmoid"),
        ),
    )


def _stage(depth: int, width: int, channels: int, stride: int, groups: int, squeeze: bool) -> Sequence:
    """Bottleneck blocks; the first has the stride, and a convolution in its shortcut."""

    def block(first: bool) -> Sequence:
        step = stride if first else 1
        body = seq(
            conv1=conv(width, 1),
            conv2=conv(width, 3, step, groups=groups),
            conv3=conv(channels, 1, activation=None),
            se=_squeeze_excite(channels) if squeeze else identity(),
        )
        shortcut = conv(channels, 1, step, activation=None) if first else identity()
        return seq(add(body, downsample=shortcut), relu=relu())

    return stack(block(i == 0) for i in range(depth))


def _resnet(
    depths: tuple[int, int, int, int],
    representative: str,
    *,
    groups: int = 1,
    group_width: int = 64,
    squeeze: bool = False,
) -> Network:
    """A network of four stages; ``group_width`` is the number of channels of a group in the first."""
    stages = {
        f"layer{i + 1}": _stage(depth, groups * group_width << i, 256 << i, 1 if i == 0 else 2, groups, squeeze)
        for i, depth in enumerate(depths)
    }
    return Network(
        seq(
            conv1=conv(64, 7, 2),
            maxpool=max_pool(3, 2, 1),
            **stages,
            avgpool=global_avg_pool(),
            fc=linear(1000),
        ),
        representative,
    )


RESNET50 = _resnet((3, 4, 6, 3), representative="layer1.0.conv2")
RESNET152 = _resnet((3, 8, 36, 3), representative="layer3.1.conv2")
RESNEXT50 = _resnet((3, 4, 6, 3), groups=32, group_width=4, representative="layer1.0.conv2")
SE_RESNET50 = _resnet((3, 4, 6, 3), squeeze=True, representative="layer1.0.se.squeeze")
