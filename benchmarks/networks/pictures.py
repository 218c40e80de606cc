"""Pictures of training: loss and accuracy, first-layer filters, and where gradients vanish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.networks.digits import Trained, digits, perceptron
from fastconv import nn

# As deep as the textbooks' example of a network that sigmoid cannot train.
DEPTH, WIDTH = 10, 64


def draw(trained: dict[str, Trained], directory: Path) -> list[Path]:
    """Draw everything, and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = {"training": curves(trained), "filters": filters(trained), "vanishing_gradients": vanishing()}
    drawn = []
    for name, figure in figures.items():
        drawn.append(directory / f"{name}.png")
        figure.savefig(drawn[-1], dpi=110)
    return drawn


def curves(trained: dict[str, Trained]) -> Figure:
    """Return the loss of each epoch, averaged, and the accuracy after it."""
    figure = Figure((11, 5), layout="constrained")
    loss, score = figure.subplots(1, 2)
    for axis in (loss, score):
        axis.set_prop_cycle(color=colormaps["tab20"].colors)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for name, run in trained.items():
        parts = np.array_split(run.losses, len(run.scores))
        loss.semilogy(range(1, len(parts) + 1), [np.mean(part) for part in parts])
        score.plot(range(1, len(parts) + 1), run.scores, label=name)
    loss.set(xlabel="epoch", ylabel="loss on the training data")
    score.set(xlabel="epoch", ylabel="share of held-out digits right", ylim=(0.8, 1))
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def filters(trained: dict[str, Trained]) -> Figure:
    """Return the first layer's filters of every network, one row each."""
    figure, shown = Figure((9, 0.8 * len(trained) + 0.4), layout="constrained"), 16
    figure.get_layout_engine().set(h_pad=0.12)
    axes = figure.subplots(len(trained), shown, squeeze=False)
    for row, (name, run) in zip(axes, trained.items(), strict=True):
        for axis in row:
            axis.axis("off")
        # Not in the layout, which would make the first column as wide as the name.
        row[0].text(0, 1.1, name, transform=row[0].transAxes, fontsize="small").set_in_layout(False)
        for axis, image in zip(row, _first_filters(run.network), strict=False):
            axis.imshow(image, cmap="gray")
    return figure


def _first_filters(network: nn.Sequential) -> Any:
    weight = next(value for value in network.state().values() if value.ndim > 1)
    side = round(weight[0].size ** 0.5)
    return weight.reshape(len(weight), side, side)


def gradient_norms(activation: type[nn.Layer], depth: int = DEPTH) -> list[float]:
    """Return the root mean square of every layer's weight gradient in a fresh deep perceptron, on one batch."""
    data = digits(8)
    network = perceptron(64, *[WIDTH] * (depth - 1), 10, activation=activation)
    loss = nn.SoftmaxCrossEntropy()
    loss.forward(network.forward(data.x[:256]), data.labels[:256])
    network.backward(loss.backward(), wanted=False)
    weights = [parameter for name, parameter in network.parameters().items() if name.endswith("weight")]
    return [float(np.sqrt(np.mean(np.square(weight.gradient)))) for weight in weights]


def vanishing() -> Figure:
    """Return the size of gradients layer by layer: sigmoid's vanish towards the input, the rectifier's do not."""
    figure = Figure((6, 4), layout="constrained")
    axis = figure.subplots()
    for activation in (nn.Sigmoid, nn.ReLU):
        axis.semilogy(range(1, DEPTH + 1), gradient_norms(activation), "o-", label=activation.__name__)
    axis.set(xlabel="layer, from the input", ylabel="root mean square of the weights' gradient")
    axis.set_title(f"A perceptron of {DEPTH} layers, before training")
    axis.legend()
    return figure
