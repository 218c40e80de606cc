"""DenseNet (Huang et al., "Densely connected convolutional networks", 2016): DenseNet-BC-121, 7,978,856 parameters.

Normalisation and activation come before each convolution, which therefore has neither and no bias.
"""

from __future__ import annotations

from functools import partial

from fastconv.networks.description import (
    BatchNorm,
    Network,
    Node,
    Sequence,
    avg_pool,
    concat,
    conv,
    global_avg_pool,
    identity,
    linear,
    max_pool,
    relu,
    seq,
)

_conv = partial(conv, norm=False, bias=False, activation=None)


def _dense_layer(growth: int) -> Node:
    """Add ``growth`` channels to those that came in, through a bottleneck of four times as many."""
    return concat(
        identity(),
        seq(
            norm1=BatchNorm(),
            relu1=relu(),
            conv1=_conv(4 * growth, 1),
            norm2=BatchNorm(),
            relu2=relu(),
            conv2=_conv(growth, 3),
        ),
    )


def _transition(channels: int) -> Sequence:
    return seq(norm=BatchNorm(), relu=relu(), conv=_conv(channels, 1), pool=avg_pool(2, 2))


def _densenet(depths: tuple[int, ...], growth: int, representative: str) -> Network:
    """Dense blocks of ``depths[i]`` layers, with a transition that halves the channels between any two."""
    channels = 2 * growth
    parts: dict[str, Node] = {"conv0": conv(channels, 7, 2), "pool0": max_pool(3, 2, 1)}
    for block, depth in enumerate(depths, 1):
        if block > 1:
            channels //= 2
            parts[f"transition{block - 1}"] = _transition(channels)
        parts[f"denseblock{block}"] = seq(**{f"denselayer{i}": _dense_layer(growth) for i in range(1, depth + 1)})
        channels += depth * growth
    return Network(
        seq(**parts, norm5=BatchNorm(), relu5=relu(), pool5=global_avg_pool(), classifier=linear(1000)),
        representative,
    )


DENSENET121 = _densenet((6, 12, 24, 16), growth=32, representative="denseblock1.denselayer6.conv1")
