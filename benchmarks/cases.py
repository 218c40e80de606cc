"""What is measured: problems with a name, taken from the tables of networks."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fastconv import networks, registry
from fastconv.algorithm import Algorithm, AnyProblem
from fastconv.networks import Layer
from fastconv.problem import ConvProblem, PoolProblem


class Case(NamedTuple):
    """A problem to measure.

    Attributes
    ----------
    name : str
        What its rows are called, such as ``resnet50/layer1.0.conv2``.
    problem : ConvProblem or PoolProblem
    inputs : tuple of array, optional
        The arrays of ``problem.inputs``; random ones by default.
    """

    name: str
    problem: AnyProblem
    inputs: tuple[Any, ...] | None = None


def representatives(n: int = 1, direction: str = "fprop") -> list[Case]:
    """Return the layer that stands for each network, and if that is a pool, its heaviest convolution too."""
    found: list[Layer] = []
    for name in networks.NETWORKS:
        layer = networks.representative(name, n)
        found.append(layer)
        if isinstance(layer.problem, PoolProblem):
            found.append(_heaviest(name, n, ConvProblem))
    return _turned(found, direction)


def heaviest_pools(n: int = 1, direction: str = "fprop") -> list[Case]:
    """Return the pool with the most work of each network, no two alike."""
    return _turned((_heaviest(name, n, PoolProblem) for name in networks.NETWORKS), direction)


def layers(names: Sequence[str], n: int = 1, direction: str = "fprop") -> list[Case]:
    """Return the distinct layers of networks that have this direction.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    return _turned((layer for name in names for layer in networks.layers(name, n)), direction)


def _heaviest(name: str, n: int, kind: type[AnyProblem]) -> Layer:
    found = [layer for layer in networks.layers(name, n) if isinstance(layer.problem, kind)]
    return max(found, key=lambda layer: layer.problem.flops)


def _turned(found: Iterable[Layer], direction: str) -> list[Case]:
    """Return layers, each once, as cases in one direction, but for those that do not have it."""
    return [_case(layer, direction) for layer in networks.distinct(found) if direction in layer.problem.directions]


def _case(layer: Layer, direction: str) -> Case:
    changes: dict[str, Any] = {"direction": direction}
    if isinstance(layer.problem, ConvProblem):
        # A network's weights do not change between forward passes, so they are packed beforehand, as peers do.
        changes |= {"prepacked": True} if direction == "fprop" else {"bias": "none"}
        if direction == "bgrad":
            changes["bias"] = "channel"
    elif direction == "dgrad":
        changes |= {"index_dtype": layer.problem.replace(direction=direction).index_dtypes[-1]}  # what `vjp` keeps
    batch = f" n{layer.problem.n}" if layer.problem.n > 1 else ""
    turned = "" if direction == "fprop" else f" {direction}"
    return Case(f"{layer.name}{batch}{turned}", layer.problem.replace(**changes))


def register(place: str) -> Algorithm:
    """Register the algorithm at ``module:Class``, so that it is measured beside fastconv's own.

    Raises
    ------
    ValueError
        If there is no such class.
    TypeError
        If it is no algorithm.
    """
    module, _, name = place.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"register: expected module:Class of an algorithm, got {place!r} ({error})") from None
    return registry.register(made)
