"""Optimisers: what a gradient does to a parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastconv import arguments
from fastconv.nn import checks
from fastconv.nn.compute import for_array
from fastconv.nn.layer import Layer, Parameter, Shape
from fastconv.nn.plain import namespace, wide


class Optimiser(ABC):
    """Changes parameters by their gradients, in place.

    Attributes
    ----------
    parameters : dict of str to Parameter

    Raises
    ------
    ValueError
        If two names are of the same parameter.
    """

    def __init__(self, parameters: Layer | Mapping[str, Parameter], rate: float, max_norm: float | None) -> None:
        found = parameters.parameters() if isinstance(parameters, Layer) else parameters
        self.parameters = dict(found)
        names: dict[int, str] = {}
        for name, parameter in self.parameters.items():
            first = names.setdefault(id(parameter), name)
            if first != name:
                raise ValueError(f"parameters: {first} and {name} are one parameter, whose gradients would not add up")
        self.rate = rate
        self.max_norm = None if max_norm is None else arguments.inside("max_norm", max_norm, "(0, inf)")
        self._memory: dict[str, Any] = {}

    @property
    def rate(self) -> float:
        """The learning rate, from 0; set it between steps for a schedule."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate = arguments.inside("rate", value, "[0, inf)")

    def step(self) -> None:
        """Change every parameter that has a gradient.

        Raises
        ------
        TypeError, ValueError
            If a gradient is not of its value's shape, or a value cannot be written to. Nothing is changed then.
        """
        due = {name: parameter for name, parameter in self.parameters.items() if parameter.gradient is not None}
        for name, parameter in due.items():
            value = parameter.value
            checks.alike(f"{name}: gradient", parameter.gradient, value.shape)
            if isinstance(value, np.ndarray) and not value.flags.writeable:
                raise ValueError(f"{name}: value is read-only, and optimisers change it in place")
        for name, parameter in due.items():
            self._update(name, parameter)
            if self.max_norm is not None and parameter.filters is not None:
                shape, axes = parameter.filters
                _limit(parameter.value, self.max_norm, shape, axes)
            parameter.note_change()

    @abstractmethod
    def _update(self, name: str, parameter: Parameter) -> None:
        """Change one parameter."""

    def _remembered(self, name: str, parameter: Parameter, count: int) -> Any:
        """Return arrays like the parameter that last from step to step, zero at first: of float32 for half types."""
        if name not in self._memory:
            zeros, value = namespace(parameter.value).zeros, parameter.value
            dtype = np.result_type(value.dtype, np.float32)
            self._memory[name] = [zeros(value.shape, dtype) for _ in range(count)]
        return self._memory[name]


class SGD(Optimiser):
    """Gradient descent: ``value -= rate * step``.

    With momentum the step is a velocity, ``v = momentum * v + gradient``; Nesterov's looks one step ahead.

    Parameters
    ----------
    parameters : Layer or mapping of str to Parameter
    rate : float
        The learning rate.
    momentum : float
        From 0 to below 1.
    nesterov : bool
    weight_decay : float
        This share of the value is added to its gradient.
    max_norm : float, optional
        The largest norm of a filter's weights, to which larger ones are scaled down after each step.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, or Nesterov's momentum is asked for without momentum.
    """

    def __init__(
        self,
        parameters: Layer | Mapping[str, Parameter],
        rate: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, rate, max_norm)
        self.momentum, self.nesterov = arguments.inside("momentum", momentum, "[0, 1)"), nesterov
        if nesterov and not momentum:
            raise ValueError("nesterov: there is nothing to look ahead to without momentum")
        self.weight_decay = arguments.inside("weight_decay", weight_decay, "[0, inf)")

    def _update(self, name: str, parameter: Parameter) -> None:
        value = parameter.value
        velocity = self._remembered(name, parameter, 1)[0] if self.momentum else None
        how = self.rate, self.momentum, self.nesterov, self.weight_decay
        for_array(value).sgd(value, parameter.gradient, velocity, *how)


class Adam(Optimiser):
    """Adam (Kingma and Ba, 2014), or with ``decoupled`` AdamW (Loshchilov and Hutter, 2017).

    Parameters
    ----------
    parameters : Layer or mapping of str to Parameter
    rate : float
    betas : (float, float)
        How much of the running means of gradient and squared gradient is kept from step to step.
    epsilon : float
    weight_decay : float
        This share of the value is added to its gradient, or with ``decoupled`` taken from the value.
    decoupled : bool
    max_norm : float, optional
        As in `SGD`.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range.
    """

    def __init__(
        self,
        parameters: Layer | Mapping[str, Parameter],
        rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(parameters, rate, max_norm)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas: expected two numbers in [0, 1), got {betas}")
        self.betas = tuple(arguments.inside("betas", beta, "[0, 1)") for beta in betas)
        self.epsilon = arguments.inside("epsilon", epsilon, "(0, inf)")
        self.weight_decay, self.decoupled = arguments.inside("weight_decay", weight_decay, "[0, inf)"), decoupled
        # Of each parameter by itself: one that has no gradient at first begins later.
        self._steps: dict[str, int] = {}

    def _update(self, name: str, parameter: Parameter) -> None:
        value = parameter.value
        first, second = self._remembered(name, parameter, 2)
        step = self._steps[name] = self._steps.get(name, 0) + 1
        how = self.rate, *self.betas, self.epsilon, self.weight_decay, self.decoupled, step
        for_array(value).adam(value, parameter.gradient, first, second, *how)


def limit_norm(weight: Any, largest: float) -> None:
    """Scale every filter (the first axis) down, in place, whose weights have a larger norm (max-norm).

    Raises
    ------
    TypeError, ValueError
        If the norm is not positive, or the weight is no array of floating-point numbers.
    """
    arguments.inside("largest", largest, "(0, inf)")
    checks.floats("weight", weight)
    _limit(weight, largest, weight.shape, tuple(range(1, weight.ndim)))


def _limit(weight: Any, largest: float, shape: Shape, axes: tuple[int, ...]) -> None:
    """Scale filters down: they are seen in the shape, along the axes."""
    xp, seen = namespace(weight), wide(weight).reshape(shape)
    norms = xp.sqrt((seen * seen).sum(axis=axes, keepdims=True))
    weight[...] = (seen * (largest / xp.maximum(norms, largest))).reshape(weight.shape)
