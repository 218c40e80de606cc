"""Training: mini-batches, one step, early stopping, and the loop around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fastconv import arguments
from fastconv.arrays import Array
from fastconv.nn.containers import Auxiliary
from fastconv.nn.initialisation import Random
from fastconv.nn.layer import Layer
from fastconv.nn.losses import Loss
from fastconv.nn.optimisers import Optimiser
from fastconv.nn.plain import namespace

# What an auxiliary classifier's loss counts for (Szegedy et al., 2014).
AUXILIARY_WEIGHT = 0.3


def minibatches(x: Array, targets: Array, size: int, random: Random = None) -> Iterator[tuple[Array, Array]]:
    """Return an iterator over the data, once, in random order, in batches of ``size``; the last may be smaller.

    Raises
    ------
    ValueError
        If there are not as many targets as inputs, or the size is not positive.
    """
    count = arguments.integer("size", size, 1)
    if len(x) != len(targets):
        raise ValueError(f"targets: expected one for each of {len(x)} inputs, got {len(targets)}")
    order = np.random.default_rng(random).permutation(len(x))
    parts = (order[start : start + count] for start in range(0, len(x), count))
    return ((x[chosen], targets[chosen]) for chosen in parts)


def train_step(network: Layer, loss: Loss, optimiser: Optimiser, x: Array, targets: Array) -> float:
    """Run a batch forward and backward, change the parameters, and return the loss before.

    Auxiliary classifiers' losses are added with a weight of 0.3.
    """
    outputs = network.forward(x)
    value = loss.forward(outputs, targets)
    gradient = loss.backward()
    for _, layer in network.named_layers():
        if isinstance(layer, Auxiliary) and layer.output is not None:
            value += AUXILIARY_WEIGHT * loss.forward(layer.output, targets)
            layer.gradient = loss.backward() * layer.output.dtype.type(AUXILIARY_WEIGHT)
    network.backward(gradient, wanted=False)
    optimiser.step()
    return value


def predict(network: Layer, x: Array, size: int = 256) -> Array:
    """Return a network's outputs in evaluation mode, computed in batches; every layer's mode stays as it was."""
    arguments.integer("size", size, 1)
    with network.evaluating():
        # Of no images, one empty batch, which has the outputs' shape.
        parts = [network.forward(x[start : start + size]) for start in range(0, max(len(x), 1), size)]
    return namespace(x).concatenate(parts)


def accuracy(network: Layer, x: Array, labels: Array, size: int = 256) -> float:
    """Return the share of inputs whose largest output is at their label.

    Raises
    ------
    ValueError
        If there is not one label for each input, or there is none; or if an output is a map of more than 1x1.
    """
    shape = getattr(labels, "shape", None)
    if not len(x) or shape != (len(x),):
        raise ValueError(f"labels: expected an array with one for each of {len(x)} inputs, got shape {shape}")
    outputs = predict(network, x, size)
    if outputs.ndim < 2 or math.prod(outputs.shape[2:]) != 1:
        raise ValueError(f"network: expected a number for each class, got outputs of shape {outputs.shape}")
    best = outputs.reshape(len(x), -1).argmax(axis=1)
    return float((best == namespace(best).asarray(labels)).mean())


class EarlyStopping:
    """Tells when a score has stopped to rise, and keeps the best state.

    Parameters
    ----------
    patience : int
        How many epochs may pass without a better score.

    Attributes
    ----------
    best : float
        The best score so far.
    state : dict or None
        The network's state then: copies.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.best = arguments.integer("patience", patience, 1), -np.inf
        self.state: dict[str, Array] | None = None
        self._waited = 0

    def should_stop(self, score: float, network: Layer) -> bool:
        """Note an epoch's score (the higher the better); tell whether patience is at an end."""
        if score > self.best:
            self.best, self._waited = score, 0
            self.state = {name: array.copy() for name, array in network.state().items()}
        else:
            self._waited += 1
        return self._waited >= self.patience

    def restore(self, network: Layer) -> None:
        """Give the network the best state back."""
        if self.state is not None:
            network.load_state(self.state)


@dataclass
class History:
    """What happened in training.

    Attributes
    ----------
    losses : list of float
        Of every step, before its update.
    scores : list of float
        Of every epoch, on held-out data.
    """

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def fit(
    network: Layer,
    loss: Loss,
    optimiser: Optimiser,
    x: Array,
    targets: Array,
    *,
    epochs: int,
    batch: int,
    random: Random = None,
    score: Callable[[Layer], float] | None = None,
    stopping: EarlyStopping | None = None,
    augment: Callable[[Array], Array] | None = None,
    schedule: Callable[[int], float] | None = None,
) -> History:
    """Train a network by mini-batches.

    Parameters
    ----------
    network, loss, optimiser
    x, targets : array
        The training data.
    epochs, batch : int
        How often to go through the data, and in batches of how many.
    random : numpy.random.Generator or int, optional
        For the order.
    score : callable, optional
        Called with the network after each epoch; the accuracy on held-out data, say.
    stopping : EarlyStopping, optional
        Stops by the score, and restores the best state.
    augment : callable, optional
        Called with every batch of inputs: shifts, noise, ...
    schedule : callable, optional
        Called with the number of each epoch, from 0, before it: returns its learning rate.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        If stopping is asked for without a score, or a number is out of its range.
    """
    if stopping is not None and score is None:
        raise ValueError("stopping: takes a score to go by")
    generator, history = np.random.default_rng(random), History()
    for epoch in range(arguments.integer("epochs", epochs, 0)):
        network.train()
        if schedule is not None:
            optimiser.rate = schedule(epoch)
        for inputs, wanted in minibatches(x, targets, batch, generator):
            given = inputs if augment is None else augment(inputs)
            history.losses.append(train_step(network, loss, optimiser, given, wanted))
        if score is not None:
            history.scores.append(score(network))
            if stopping is not None and stopping.should_stop(history.scores[-1], network):
                break
    if stopping is not None:
        stopping.restore(network)
    return history
