"""Pre-activation ResNet (He et al., "Identity mappings in deep residual networks", 2016): 25,549,352 parameters.

Batch normalisation and activation come before each convolution, so that nothing stands between one sum and the next.
A block that changes the size takes its shortcut from the activated input. The stride is in the 3x3 convolution, as in
the ResNet beside it.
"""

from __future__ import annotations

from functools import partial

from fastconv.networks.description import (
    BatchNorm,
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
    seq,
    stack,
)

_conv = partial(conv, norm=False, bias=False, activation=None)


def _activated(number: int, layer: Node) -> dict[str, Node]:
    """A convolution with what comes before it."""
    return {f"norm{number}": BatchNorm(), f"relu{number}": relu(), f"conv{number}": layer}


def _stage(depth: int, width: int, stride: int) -> Sequence:
    """Bottleneck blocks; the first has the stride, and a convolution in its shortcut."""

    def block(first: bool) -> Node:
        step = stride if first else 1
        before = {"norm1": BatchNorm(), "relu1": relu()}
        rest = {
            "conv1": _conv(width, 1),
            **_activated(2, _conv(width, 3, step)),
            **_activated(3, _conv(4 * width, 1)),
        }
        if first:
            return seq(**before, sum=add(seq(**rest), downsample=_conv(4 * width, 1, step)))
        return add(seq(**before, **rest), identity())

    return stack(block(i == 0) for i in range(depth))


PREACT_RESNET50 = Network(
    seq(
        conv1=_conv(64, 7, 2),
        maxpool=max_pool(3, 2, 1),
        **{f"layer{i + 1}": _stage(depth, 64 << i, 1 if i == 0 else 2) for i, depth in enumerate((3, 4, 6, 3))},
        norm=BatchNorm(),
        relu=relu(),
        avgpool=global_avg_pool(),
        fc=linear(1000),
    ),
    representative="layer2.1.conv2",
)
