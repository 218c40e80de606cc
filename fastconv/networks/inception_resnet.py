"""Inception-ResNet-v2 (Szegedy et al., "Inception-v4, Inception-ResNet and the impact of residual connections", 2016).

With the sizes of the model that its authors released, which are not in all places the paper's: 55,843,464 parameters.
"""

from __future__ import annotations

from fastconv.networks.description import (
    Concat,
    Network,
    Scale,
    Sequence,
    add,
    avg_pool,
    concat,
    conv,
    global_avg_pool,
    identity,
    linear,
    max_pool,
    relu,
    seq,
    stack,
)


def _residual(towers: Concat, channels: int, scale: float, activation: bool = True) -> Sequence:
    """Towers whose concatenation is brought to the input's channels, scaled, and added to the input."""
    body = seq(
        towers,
        project=conv(channels, 1, norm=False, activation=None),
        scale=Scale(scale),
    )
    return seq(add(body, identity()), **({"relu": relu()} if activation else {}))


def _block35() -> Sequence:
    """Inception-ResNet-A, on 35x35 maps."""
    towers = concat(
        tower0=conv(32, 1),
        tower1=stack([conv(32, 1), conv(32, 3)]),
        tower2=stack([conv(32, 1), conv(48, 3), conv(64, 3)]),
    )
    return _residual(towers, 320, 0.17)


def _block17() -> Sequence:
    """Inception-ResNet-B, on 17x17 maps."""
    towers = concat(
        tower0=conv(192, 1),
        tower1=stack([conv(128, 1), conv(160, (1, 7)), conv(192, (7, 1))]),
    )
    return _residual(towers, 1088, 0.1)


def _block8(scale: float = 0.2, activation: bool = True) -> Sequence:
    """Inception-ResNet-C, on 8x8 maps."""
    towers = concat(
        tower0=conv(192, 1),
        tower1=stack([conv(192, 1), conv(224, (1, 3)), conv(256, (3, 1))]),
    )
    return _residual(towers, 2080, scale, activation)


_mixed_5b = concat(
    tower0=conv(96, 1),
    tower1=stack([conv(48, 1), conv(64, 5)]),
    tower2=stack([conv(64, 1), conv(96, 3), conv(96, 3)]),
    tower_pool=seq(pool=avg_pool(3, 1, 1, count_include_pad=False), project=conv(64, 1)),
)

_mixed_6a = concat(
    tower0=conv(384, 3, 2, padding=0),
    tower1=stack([conv(256, 1), conv(256, 3), conv(384, 3, 2, padding=0)]),
    pool=max_pool(3, 2),
)

_mixed_7a = concat(
    tower0=stack([conv(256, 1), conv(384, 3, 2, padding=0)]),
    tower1=stack([conv(256, 1), conv(288, 3, 2, padding=0)]),
    tower2=stack([conv(256, 1), conv(288, 3), conv(320, 3, 2, padding=0)]),
    pool=max_pool(3, 2),
)

INCEPTION_RESNET_V2 = Network(
    seq(
        conv1a=conv(32, 3, 2, padding=0),
        conv2a=conv(32, 3, padding=0),
        conv2b=conv(64, 3),
        pool3a=max_pool(3, 2),
        conv3b=conv(80, 1),
        conv4a=conv(192, 3, padding=0),
        pool5a=max_pool(3, 2),
        mixed5b=_mixed_5b,
        block35=stack(_block35() for _ in range(10)),
        mixed6a=_mixed_6a,
        block17=stack(_block17() for _ in range(20)),
        mixed7a=_mixed_7a,
        block8=stack([*(_block8() for _ in range(9)), _block8(scale=1.0, activation=False)]),
        conv7b=conv(1536, 1),
        pool=global_avg_pool(),
        fc=linear(1000),
    ),
    representative="block17.0.tower1.2",
    input_shape=(3, 299, 299),
)
