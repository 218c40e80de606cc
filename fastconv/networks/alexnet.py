"""AlexNet (Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional networks", 2012).

In the form that is in use, for one device: that of Krizhevsky, "One weird trick for parallelizing convolutional neural
networks" (2014), with 64-192-384-256-256 channels and no local response normalisation. 61,100,840 parameters.
"""

from __future__ import annotations

from functools import partial

from fastconv.networks.description import Dropout, Flatten, Network, conv, linear, max_pool, seq

_conv = partial(conv, norm=False)

ALEXNET = Network(
    seq(
        conv1=_conv(64, 11, 4, padding=2),
        pool1=max_pool(3, 2),
        conv2=_conv(192, 5),
        pool2=max_pool(3, 2),
        conv3=_conv(384, 3),
        conv4=_conv(256, 3),
        conv5=_conv(256, 3),
        pool5=max_pool(3, 2),
        flatten=Flatten(),
        drop6=Dropout(0.5),
        fc6=linear(4096, "relu"),
        drop7=Dropout(0.5),
        fc7=linear(4096, "relu"),
        fc8=linear(1000),
    ),
    representative="conv1",
)
