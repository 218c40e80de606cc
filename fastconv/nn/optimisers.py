"""Optimisers: what a gradient does to a parameter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from fastconv.nn.compute import for_array
from fastconv.nn.layer import Layer, Parameter
from fastconv.nn.plain import namespace


class Optimiser(ABC):
    """Changes parameters by their gradients, in place.

    Attributes
    ----------
    parameters : dict of str to Parameter
    rate : float
        The learning rate; change it between steps for a schedule.
    """

    def __init__(self, parameters: Layer | Mapping[str, Parameter], rate: float, max_norm: float | None) -> None:
        found = parameters.parameters() if isinstance(parameters, Layer) else parameters
        self.parameters = dict(found)
        if rate <= 0:
            raise ValueError(f"rate: expected a positive number, got {rate}")
        self.rate, self.max_norm = rate, max_norm
        self._memory: dict[str, Any] = {}

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        for name, parameter in self.parameters.items():
            if parameter.gradient is not None:
                self._update(name, parameter)
                if self.max_norm is not None and parameter.value.ndim > 1:
                    limit_norm(parameter.value, self.max_norm)

    @abstractmethod
    def _update(self, name: str, parameter: Parameter) -> None:
        """Change one parameter."""

    def _remembered(self, name: str, parameter: Parameter, count: int) -> Any:
        """Return arrays like the parameter that last from step to step, zero at first."""
        if name not in self._memory:
            zeros = namespace(parameter.value).zeros_like
            self._memory[name] = [zeros(parameter.value) for _ in range(count)]
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
    ValueError
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
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected 0 <= momentum < 1, got {momentum}")
        if nesterov and not momentum:
            raise ValueError("nesterov: there is nothing to look ahead to without momentum")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay

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
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers from 0 to below 1, got {betas}")
        self.betas, self.epsilon = betas, epsilon
        self.weight_decay, self.decoupled = weight_decay, decoupled
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        super().step()

    def _update(self, name: str, parameter: Parameter) -> None:
        value = parameter.value
        first, second = self._remembered(name, parameter, 2)
        how = self.rate, *self.betas, self.epsilon, self.weight_decay, self.decoupled, self.steps
        for_array(value).adam(value, parameter.gradient, first, second, *how)


def limit_norm(weight: Any, largest: float) -> None:
    """Scale every filter (the first axis) down, in place, whose weights have a larger norm (max-norm).

    Raises
    ------
    ValueError
        If the norm is not positive.
    """
    if largest <= 0:
        raise ValueError(f"max_norm: expected a positive number, got {largest}")
    xp, axes = namespace(weight), tuple(range(1, weight.ndim))
    norms = xp.sqrt((weight * weight).sum(axis=axes, keepdims=True))
    weight *= xp.minimum(1, largest / xp.maximum(norms, xp.finfo(weight.dtype).tiny)).astype(weight.dtype)
