"""GoogLeNet, or Inception-v1 (Szegedy et al., "Going deeper with convolutions", 2014).

As in the paper's table 1 and its Caffe model: real 5x5 convolutions (a widespread port has 3x3 ones in their place),
biases and no batch normalisation, pools that round up. 6,998,552 parameters, 13,378,280 with the two auxiliary
classifiers.
"""

from __future__ import annotations

from functools import partial

from fastconv.networks.description import (
    Auxiliary,
    Concat,
    Dropout,
    Flatten,
    LocalResponseNorm,
    Network,
    avg_pool,
    concat,
    conv,
    global_avg_pool,
    linear,
    max_pool,
    seq,
)

_conv = partial(conv, norm=False)
_max_pool = partial(max_pool, ceil_mode=True)


def _inception(c1: int, reduce3: int, c3: int, reduce5: int, c5: int, pooled: int) -> Concat:
    """Figure 2(b) of the paper; the arguments are a row of its table 1."""
    return concat(
        tower1x1=_conv(c1, 1),
        tower3x3=seq(reduce=_conv(reduce3, 1), conv=_conv(c3, 3)),
        tower5x5=seq(reduce=_conv(reduce5, 1), conv=_conv(c5, 5)),
        tower_pool=seq(pool=_max_pool(3, 1, 1), project=_conv(pooled, 1)),
    )


def _auxiliary() -> Auxiliary:
    return Auxiliary(
        seq(
            pool=avg_pool(5, 3),
            conv=_conv(128, 1),
            flatten=Flatten(),
            fc1=linear(1024, "relu"),
            drop=Dropout(0.7),
            fc2=linear(1000),
        )
    )


GOOGLENET = Network(
    seq(
        conv1=_conv(64, 7, 2),
        pool1=_max_pool(3, 2),
        norm1=LocalResponseNorm(),
        conv2_reduce=_conv(64, 1),
        conv2=_conv(192, 3),
        norm2=LocalResponseNorm(),
        pool2=_max_pool(3, 2),
        inception3a=_inception(64, 96, 128, 16, 32, 32),
        inception3b=_inception(128, 128, 192, 32, 96, 64),
        pool3=_max_pool(3, 2),
        inception4a=_inception(192, 96, 208, 16, 48, 64),
        aux1=_auxiliary(),
        inception4b=_inception(160, 112, 224, 24, 64, 64),
        inception4c=_inception(128, 128, 256, 24, 64, 64),
        inception4d=_inception(112, 144, 288, 32, 64, 64),
        aux2=_auxiliary(),
        inception4e=_inception(256, 160, 320, 32, 128, 128),
        pool4=_max_pool(3, 2),
        inception5a=_inception(256, 160, 320, 32, 128, 128),
        inception5b=_inception(384, 192, 384, 48, 128, 128),
        pool5=global_avg_pool(),
        drop=Dropout(0.4),
        fc=linear(1000),
    ),
    representative="inception3b.tower5x5.conv",
)
