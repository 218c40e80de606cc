"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998).

The layers have the paper's names. As in the usual re-implementations, every feature map of C3 sees all those of S2,
subsampling is plain averaging, and the output is a fully connected layer: 61,706 parameters.
"""

from __future__ import annotations

from functools import partial

from fastconv.networks.description import Flatten, Network, avg_pool, conv, linear, seq

_conv = partial(conv, kernel=5, padding=0, norm=False, activation="sigmoid")

LENET5 = Network(
    seq(
        c1=_conv(6),
        s2=avg_pool(2, 2),
        c3=_conv(16),
        s4=avg_pool(2, 2),
        c5=_conv(120),
        flatten=Flatten(),
        f6=linear(84, "sigmoid"),
        output=linear(10),
    ),
    representative="c3",
    input_shape=(1, 32, 32),
)
