"""GoogLeNet, or Inception-v1 (Szegedy et al., "Going deeper with convolutions", 2014).

`GOOGLENET` is as in the paper's table 1 and its Caffe model: 5x5 convolutions, biases and no batch normalisation, pools
that round up. 6,998,552 parameters, 13,378,280 with the two auxiliary classifiers.

`GOOGLENET_BN` is what is commonly implemented: batch normalisation after every convolution in place of biases and of
local response normalisation, and 3x3 convolutions in place of the 5x5 ones. 6,624,904 and 13,004,888 parameters.
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

_max_pool = partial(max_pool, ceil_mode=True)


def _inception(c1: int, reduce3: int, c3: int, reduce5: int, c5: int, pooled: int, *, common: bool) -> Concat:
    """Figure 2(b) of the paper; the arguments are a row of its table 1."""
    _conv = partial(conv, norm=common)
    return concat(
        tower1x1=_conv(c1, 1),
        tower3x3=seq(reduce=_conv(reduce3, 1), conv=_conv(c3, 3)),
        tower5x5=seq(reduce=_conv(reduce5, 1), conv=_conv(c5, 3 if common else 5)),
        tower_pool=seq(pool=_max_pool(3, 1, 1), project=_conv(pooled, 1)),
    )


def _auxiliary(common: bool) -> Auxiliary:
    return Auxiliary(
        seq(
            pool=avg_pool(5, 3),
            conv=conv(128, 1, norm=common),
            flatten=Flatten(),
            fc1=linear(1024, "relu"),
            drop=Dropout(0.7),
            fc2=linear(1000),
        )
    )


def _googlenet(common: bool, representative: str) -> Network:
    _conv, inception = partial(conv, norm=common), partial(_inception, common=common)
    norm1, norm2 = ({} if common else {f"norm{i}": LocalResponseNorm()} for i in (1, 2))
    body = seq(
        conv1=_conv(64, 7, 2),
        pool1=_max_pool(3, 2),
        **norm1,
        conv2_reduce=_conv(64, 1),
        conv2=_conv(192, 3),
        **norm2,
        pool2=_max_pool(3, 2),
        inception3a=inception(64, 96, 128, 16, 32, 32),
        inception3b=inception(128, 128, 192, 32, 96, 64),
        pool3=_max_pool(3, 2),
        inception4a=inception(192, 96, 208, 16, 48, 64),
        aux1=_auxiliary(common),
        inception4b=inception(160, 112, 224, 24, 64, 64),
        inception4c=inception(128, 128, 256, 24, 64, 64),
        inception4d=inception(112, 144, 288, 32, 64, 64),
        aux2=_auxiliary(common),
        inception4e=inception(256, 160, 320, 32, 128, 128),
        pool4=_max_pool(3, 2),
        inception5a=inception(256, 160, 320, 32, 128, 128),
        inception5b=inception(384, 192, 384, 48, 128, 128),
        pool5=global_avg_pool(),
        drop=Dropout(0.4),
        fc=linear(1000),
    )
    return Network(body, representative)


GOOGLENET = _googlenet(common=False, representative="inception3b.tower5x5.conv")
GOOGLENET_BN = _googlenet(common=True, representative="conv2")
