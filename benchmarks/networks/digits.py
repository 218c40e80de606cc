"""Training for real, on the handwritten digits that scikit-learn ships: the networks, and how each is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from fastconv import nn
from fastconv.options import current, options

# A fifth of the digits is held out.
_HELD_OUT = 0.2


class Digits(NamedTuple):
    """Images (N, 1, size, size) with mean 0 and variance 1, and their labels; for training and held out."""

    x: Any
    labels: Any
    held_x: Any
    held_labels: Any


def digits(size: int = 32, dtype: Any = np.float32) -> Digits:
    """Return the 1797 digits of 8x8 pixels, each pixel repeated to fill images of a size."""
    images, labels = load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 1, 8, 8), np.ones((1, 1, size // 8, size // 8)))
    order = np.random.default_rng(0).permutation(len(labels))
    held = int(_HELD_OUT * len(labels))
    images = ((images - images[order[held:]].mean()) / images[order[held:]].std()).astype(dtype)[order]
    labels = labels[order].astype(np.int64)
    return Digits(images[held:], labels[held:], images[:held], labels[:held])


class Task(NamedTuple):
    """A network for the digits, and how it is trained; ``shift`` is by how many pixels batches are moved at most."""

    build: Callable[[int], nn.Sequential]
    size: int
    rate: float
    epochs: int
    shift: int = 0


def perceptron(*widths: int, activation: type[nn.Layer] = nn.ReLU, random: int = 0) -> nn.Sequential:
    """Return fully connected layers with an activation between any two."""
    how = "he" if activation is nn.ReLU else "xavier"
    generator = np.random.default_rng(random)
    layers: list[nn.Layer] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, initialisation=how, random=generator), activation()]
    return nn.Sequential(*layers[:-1])


def small_vgg(norm: bool, dropout: float, random: int = 0) -> nn.Sequential:
    """Return two stages of two 3x3 convolutions, each ended by a pool."""
    generator, layers, channels = np.random.default_rng(random), [], 1
    for width in (16, 16, 0, 32, 32, 0):
        if width == 0:
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout, random=generator)]
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm, random=generator))
        layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10, random=generator))


def small_resnet(norm: bool, dropout: float, random: int = 0) -> nn.Sequential:
    """Return a convolution and three residual blocks, the second of which halves the map."""
    generator = np.random.default_rng(random)

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Layer]:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not norm, random=generator)
        return [layer, *[nn.BatchNorm2d(outputs)] * norm]

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Layer]:
        body = nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU(), *conv(outputs, outputs, 3))
        shortcut = nn.Sequential(*conv(inputs, outputs, 1, stride)) if inputs != outputs else None
        return [nn.Residual(body, shortcut), nn.ReLU()]

    blocks = [layer for sizes in ((16, 16, 1), (16, 32, 2), (32, 32, 1)) for layer in block(*sizes)]
    head = [
        nn.GlobalAvgPool(),
        nn.Flatten(),
        nn.Dropout(dropout, random=generator),
        nn.Linear(32, 10, random=generator),
    ]
    return nn.Sequential(*conv(1, 16, 3), nn.ReLU(), *blocks, *head)


def lenet5(random: int = 0) -> nn.Sequential:
    """Return LeNet-5 in its common form: 61,706 parameters."""
    return nn.build("lenet5", random=random)


TASKS = {
    "lenet5": Task(lenet5, 32, 5e-3, 20, shift=2),
    **{
        f"perceptron of {len(widths)} layers, {activation.__name__}": Task(
            lambda r, widths=widths, activation=activation: perceptron(64, *widths, activation=activation, random=r),
            8,
            rate,
            20,
        )
        for widths in ((64, 10), (64, 32, 10))
        for activation, rate in ((nn.Sigmoid, 1e-2), (nn.ReLU, 3e-3))
    },
    **{
        f"small {kind}, {'with' if norm else 'without'} batch normalisation, dropout {dropout}": Task(
            lambda r, make=make, norm=norm, dropout=dropout: make(norm, dropout, r), 16, 3e-3, 6
        )
        for kind, make in (("VGG", small_vgg), ("ResNet", small_resnet))
        for norm, dropout in ((False, 0.0), (False, 0.25), (True, 0.0), (True, 0.25))
    },
}


class Trained(NamedTuple):
    """A trained network, the loss of every step, and the share of held-out digits right after every epoch."""

    network: nn.Sequential
    losses: list[float]
    scores: list[float]


def shifted(generator: np.random.Generator, most: int) -> Callable[[Any], Any]:
    """Return an augmentation: each batch moved by up to so many pixels, up or down, left or right."""

    def augment(x: Any) -> Any:
        return np.roll(x, tuple(generator.integers(-most, most + 1, 2)), (2, 3))

    return augment


def train(name: str, *, threads: int | None = None, random: int = 0, batch: int = 32) -> Trained:
    """Train a network on the digits; the same numbers come out every time, for any number of threads."""
    task = TASKS[name]
    data = digits(task.size)
    network = task.build(random)
    with options(threads=threads or current().threads, deterministic=True):
        history = nn.fit(
            network,
            nn.SoftmaxCrossEntropy(),
            nn.Adam(network, task.rate),
            data.x,
            data.labels,
            epochs=task.epochs,
            batch=batch,
            random=random,
            schedule=lambda epoch: task.rate * (1 + math.cos(math.pi * epoch / task.epochs)) / 2,
            augment=shifted(np.random.default_rng(random), task.shift) if task.shift else None,
            score=lambda trained: nn.accuracy(trained, data.held_x, data.held_labels),
        )
    return Trained(network, history.losses, history.scores)
