"""Xception (Chollet, "Xception: deep learning with depthwise separable convolutions", 2017): 22,855,952 parameters."""

from __future__ import annotations

from fastconv.networks.description import (
    Add,
    Network,
    Node,
    Sequence,
    add,
    conv,
    global_avg_pool,
    identity,
    linear,
    max_pool,
    relu,
    separable_conv,
    seq,
)


def _separable(*channels: int, relu_first: bool = True) -> Sequence:
    """Separable convolutions with activations between them, and before the first if wanted."""
    parts: dict[str, Node] = {}
    for i, c in enumerate(channels, 1):
        if i > 1 or relu_first:
            parts[f"relu{i}"] = relu()
        parts[f"sep{i}"] = separable_conv(c)
    return seq(**parts)


def _shrinking(*channels: int, relu_first: bool = True) -> Add:
    """A block that halves the map, with a strided 1x1 convolution in its shortcut."""
    return add(
        seq(_separable(*channels, relu_first=relu_first), pool=max_pool(3, 2, 1)),
        skip=conv(channels[-1], 1, 2, activation=None),
    )


XCEPTION = Network(
    seq(
        conv1=conv(32, 3, 2, padding=0),
        conv2=conv(64, 3, padding=0),
        block1=_shrinking(128, 128, relu_first=False),
        block2=_shrinking(256, 256),
        block3=_shrinking(728, 728),
        **{f"block{i}": add(_separable(728, 728, 728), identity()) for i in range(4, 12)},
        block12=_shrinking(728, 1024),
        sep3=separable_conv(1536),
        relu3=relu(),
        sep4=separable_conv(2048),
        relu4=relu(),
        pool=global_avg_pool(),
        fc=linear(1000),
    ),
    representative="block1.sep2.depthwise",
    input_shape=(3, 299, 299),
)
