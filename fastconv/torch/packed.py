"""A convolution or linear layer of a compiled model: weights packed into plans, with what follows it fused."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from fastconv import choice, ops
from fastconv.choice import BoundPlan
from fastconv.options import current
from fastconv.torch import functional as offered
from fastconv.torch.counting import computed, leave
from fastconv.torch.tensors import PLAIN, Tensor, array, eager, optional_array, run, tensor

# Plans that a layer keeps, one for every form of input that it meets. Each holds a packed weight: so many at most, and
# so many bytes of weights, but two in any case.
_MOST = 16
_MOST_BYTES = 256 << 20

_changes = 0


def changes() -> int:
    """Return how often the weights of any layer have been replaced: plans made before may hold others."""
    return _changes


ACTIVATIONS = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""What can be fused behind a convolution, by fastconv's name, as PyTorch computes it."""


class Geometry(NamedTuple):
    """A function's name, and what it takes besides tensors, in that order."""

    name: str
    arguments: tuple[Any, ...] = ()

    @property
    def theirs(self) -> Any:
        """PyTorch's function."""
        return getattr(functional, self.name)

    @property
    def offered(self) -> Any:
        """The function that serves gradients and transforms: fastconv's, where it has one."""
        return getattr(offered, self.name, self.theirs)


class PackedConv(torch.nn.Module):
    """A convolution or linear layer with constant weights, and what is fused behind it: a residual, an activation.

    Parameters
    ----------
    geometry : Geometry
    weight : Tensor
    bias : Tensor or None
    activation : str or None
        One of `ACTIVATIONS`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, geometry: Geometry, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
        super().__init__()
        self.geometry, self.activation = geometry, activation
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._plans: OrderedDict[Any, BoundPlan] = OrderedDict()

    def forward(self, x: Tensor, residual: Any = None) -> Tensor:
        """Return the layer's result for x, with the residual (a number, too) added and the activation applied."""
        plain = type(x) in PLAIN and (residual is None or type(residual) in PLAIN)
        if torch.compiler.is_compiling() or not eager() or not plain:
            return self.unfused(self.geometry.offered, x, residual)
        if torch.is_grad_enabled() and (x.requires_grad or (residual is not None and residual.requires_grad)):
            return self.unfused(self.geometry.offered, x, residual)
        try:
            result = tensor(self.plan(x, residual)(array(x), residual=optional_array(residual)))
        except (TypeError, ValueError) as error:
            return leave(self.geometry.name, error, self.unfused, self.geometry.theirs, x, residual)
        computed[self.geometry.name] += 1
        return result

    def unfused(self, function: Any, x: Tensor, residual: Any = None) -> Tensor:
        """Return the same, one thing after the other."""
        y = function(x, self.weight, self.bias, *self.geometry.arguments)
        if residual is not None:
            y = y + residual
        return y if self.activation is None else ACTIVATIONS[self.activation](y)

    def plan(self, x: Tensor, residual: Tensor | None) -> BoundPlan:
        """Return a plan for such inputs, made before or now.

        Raises
        ------
        TypeError, ValueError
            What fastconv raises.
        """
        # Of where the weight is, too: a plan may read it there, and `share_memory_` moves it.
        kept = self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr()
        key = x.shape, x.stride(), x.dtype, residual is None, kept, torch.get_num_threads(), current()
        return self._plans.get(key) or self._planned(key, x, residual)

    def _planned(self, key: Any, x: Tensor, residual: Tensor | None) -> BoundPlan:
        like = None if residual is None else array(residual)
        if like is not None:  # a plan keeps the arrays it is made with: this one has a single element
            like = np.broadcast_to(np.zeros((), like.dtype), like.shape)
        arrays = array(x), array(self.weight), optional_array(self.bias)

        def make() -> BoundPlan:
            fused = {"activation": self.activation, "residual": like}
            return choice.plan(getattr(ops, self.geometry.name), *arrays, *self.geometry.arguments, **fused)

        plan: BoundPlan = run(make)
        self._plans[key] = plan
        while len(self._plans) > max(2, min(_MOST, _MOST_BYTES // (self.weight.nbytes or 1))):
            self._plans.popitem(last=False)
        return plan

    def _forget(self) -> None:
        """Drop the plans: they were made with what is about to change."""
        global _changes
        _changes += 1
        self._plans.clear()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": OrderedDict()}

    def extra_repr(self) -> str:
        return f"{self.geometry.name}, weight={tuple(self.weight.shape)}, activation={self.activation}"
