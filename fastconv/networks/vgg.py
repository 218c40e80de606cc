"""VGG (Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014).

Configurations D and E: stages of 3x3 convolutions, each stage ended by a 2x2 pool, then three fully connected layers.
138,357,544 parameters with 16 layers and 143,667,240 with 19.
"""

from __future__ import annotations

from fastconv.networks.description import Dropout, Flatten, Network, Node, conv, linear, max_pool, seq

_CHANNELS = (64, 128, 256, 512, 512)


def _vgg(depths: tuple[int, ...], representative: str) -> Network:
    """A network with ``depths[i]`` convolutions in stage i + 1."""
    stages: dict[str, Node] = {}
    for stage, (channels, depth) in enumerate(zip(_CHANNELS, depths, strict=True), 1):
        stages |= {f"conv{stage}_{i}": conv(channels, 3, norm=False) for i in range(1, depth + 1)}
        stages[f"pool{stage}"] = max_pool(2, 2)
    return Network(
        seq(
            **stages,
            flatten=Flatten(),
            fc6=linear(4096, "relu"),
            drop6=Dropout(0.5),
            fc7=linear(4096, "relu"),
            drop7=Dropout(0.5),
            fc8=linear(1000),
        ),
        representative,
    )


VGG16 = _vgg((2, 2, 3, 3, 3), representative="conv2_2")
VGG19 = _vgg((2, 2, 4, 4, 4), representative="conv4_4")
