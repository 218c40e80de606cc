"""One function offered in PyTorch's place: how a call of it finds its way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import has_torch_function

from fastconv.torch import arguments, asked
from fastconv.torch.core import Core
from fastconv.torch.counting import computed, leave
from fastconv.torch.tensors import PLAIN, Tensor, eager

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled


def _any_way(core: Core) -> Any:
    return core


def _recorded(core: Core) -> Any:
    return core.direct


class Offer:
    """A function of ``torch.nn.functional``, as fastconv computes it.

    Parameters
    ----------
    name : str
        Its name there.
    ndim : int
        Spatial axes of its first argument, a map.
    read : callable
        Makes of the arguments that are no tensors what `direct` and `through` take; refuses by a `ValueError`.
    direct : callable
        Computes without a gradient: tensors and what `read` made, two tuples, to tensors, by way of arrays.
    through : callable
        Computes by operators that have gradients and transforms; the map has a batch axis. Its first argument is a
        function from an operator to what calls it.
    """

    def __init__(
        self,
        name: str,
        ndim: int,
        read: Callable[..., tuple[Any, ...]],
        direct: Callable[..., Any],
        through: Callable[..., Any],
    ) -> None:
        self.name, self.ndim, self.direct, self.through = name, ndim, direct, through
        self.lowered = name.startswith("conv")
        """Whether autocast changes the dtype that it computes in."""
        self.theirs: Callable[..., Any] = getattr(functional, name)
        self.read = read
        self.remembered, self.remembered_lists = arguments.remembered(read)

    def compute(
        self, tensors: tuple[Any, ...], args: tuple[Any, ...], dtypes: Collection[torch.dtype] | None = None
    ) -> Any:
        """Compute by fastconv if it can, by PyTorch if it cannot or only other dtypes are asked for; count which."""
        if _is_compiling():
            return self.traced(tensors, args, dtypes)
        try:
            try:
                window = self.remembered(*args)
            except TypeError:  # a list cannot be looked up
                window = self.remembered_lists(*args)
            for t in tensors:
                if type(t) not in PLAIN and (t is not None or t is tensors[0]):
                    result = self.elsewhere(tensors, window, dtypes)
                    break
            else:
                if (dtypes is not None and tensors[0].dtype not in dtypes) or not eager():
                    result = self.elsewhere(tensors, window, dtypes)
                elif _is_grad_enabled() and _any_requires_grad(tensors):
                    result = self.operators(tensors, window, _recorded)
                else:
                    result = self.direct(tensors, window)
        except (TypeError, ValueError) as error:
            if has_torch_function(tensors):
                return self.theirs(*tensors, *args)  # whoever overrides PyTorch's functions knows theirs
            return leave(self.name, error, self.theirs, *tensors, *args)
        computed[self.name] += 1
        return result

    def routed(self, tensors: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """Compute in PyTorch's place, where the dtype is one that was asked for."""
        return self.compute(tensors, args, asked.dtypes)

    def traced(self, tensors: tuple[Any, ...], args: tuple[Any, ...], dtypes: Collection[torch.dtype] | None) -> Any:
        """Compute in a way that a compiler can follow, without a look at data."""
        x = tensors[0]
        if x.dim() not in (self.ndim + 1, self.ndim + 2) or self.refusal(tensors, dtypes) is not None:
            return self.theirs(*tensors, *args)
        try:
            window = self.read(*args)
        except ValueError:
            return self.theirs(*tensors, *args)
        return self.operators(tensors, window)

    def elsewhere(
        self, tensors: tuple[Any, ...], window: tuple[Any, ...], dtypes: Collection[torch.dtype] | None
    ) -> Any:
        """Compute by operators while something looks on, if they can serve it."""
        if has_torch_function(tensors):
            raise TypeError("a tensor of a class, or in a mode, that overrides PyTorch's functions")
        if not isinstance(tensors[0], Tensor) or not all(t is None or isinstance(t, Tensor) for t in tensors):
            raise TypeError("not a tensor")
        reason = arguments.watcher() or self.refusal(tensors, dtypes)
        if reason is not None:
            raise ValueError(reason)
        return self.operators(tensors, window)

    def refusal(self, tensors: tuple[Any, ...], dtypes: Collection[torch.dtype] | None) -> str | None:
        """Return why tensors are not for fastconv, as far as that can be told without their data; None if they are."""
        if dtypes is not None:
            dtype = tensors[0].dtype
            if self.lowered and torch.is_autocast_enabled("cpu") and dtype != torch.float64:
                dtype = torch.get_autocast_dtype("cpu")
            if dtype not in dtypes:
                return f"dtype {dtype}"
        return arguments.refusal(*tensors)

    def operators(
        self, tensors: tuple[Any, ...], window: tuple[Any, ...], call: Callable[[Core], Any] = _any_way
    ) -> Any:
        """Return the operators' result, for a map without a batch axis as well."""
        if tensors[0].dim() == self.ndim + 2:
            return self.through(call, *tensors, *window)
        x, *others = tensors
        if x.dim() != self.ndim + 1:
            raise ValueError(f"input: expected {self.ndim + 1} or {self.ndim + 2} dimensions")
        if self.name.startswith("max_unpool"):  # indices lie as the map does
            others = [t.unsqueeze(0) for t in others]
        result = self.through(call, x.unsqueeze(0), *others, *window)
        return tuple(r.squeeze(0) for r in result) if isinstance(result, tuple) else result.squeeze(0)


def _any_requires_grad(tensors: tuple[Any, ...]) -> bool:
    for t in tensors:  # noqa: SIM110 - a generator takes half a microsecond
        if t is not None and t.requires_grad:
            return True
    return False
