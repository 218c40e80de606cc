"""A core operator: one computation, made known to PyTorch's dispatcher and to its autograd.

There are two ways to it. Where nothing but autograd looks on, it is called directly, which takes microseconds less
than the dispatcher needs for an operator written in Python. Everywhere else (tracing, vmap, functional transforms,
autocast, modes) it is called as ``torch.ops.fastconv.<name>``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from fastconv.torch.tensors import PLAIN, Tensor, eager

NAMESPACE = "fastconv"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")

# A result's strides follow those of the inputs, so a compiler must keep them as they were when it asked.
_STRIDES = "needs_exact_strides" if hasattr(torch.Tag, "needs_exact_strides") else "needs_fixed_stride_order"
_TAGS = tuple(getattr(torch.Tag, name) for name in ("pt2_compliant_tag", _STRIDES))


class Core(ABC):
    """An operator: `compute` on memory, `fake` on shapes, `backward` by other operators, `vmap` by itself.

    ``schema`` is its declaration; its first ``tensors`` arguments are tensors, some of which may be None.
    """

    schema: ClassVar[str]
    tensors: ClassVar[int] = 1

    def __init__(self) -> None:
        self.name = self.schema.partition("(")[0]
        LIBRARY.define(self.schema, tags=_TAGS)
        LIBRARY.impl(self.name, self.compute, "CPU")
        qualified = f"{NAMESPACE}::{self.name}"
        torch.library.register_fake(qualified, self.fake, lib=LIBRARY)
        torch.library.register_autograd(qualified, self.backward, setup_context=self.keep, lib=LIBRARY)
        torch.library.register_vmap(qualified, self.vmap, lib=LIBRARY)
        self.op = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        self.direct = direct(self)
        self.transformed = _transformed(self)

    @abstractmethod
    def compute(self, *args: Any) -> Any:
        """Return the result for tensors in the CPU's memory."""

    @abstractmethod
    def fake(self, *args: Any) -> Any:
        """Return tensors of the shape and strides that `compute` returns."""

    @abstractmethod
    def keep(self, ctx: Any, inputs: Any, output: Any) -> None:
        """Save what `backward` needs."""

    @abstractmethod
    def backward(self, ctx: Any, *grads: Any) -> Any:
        """Return a gradient for each argument, by operators that can be differentiated again."""

    @abstractmethod
    def vmap(self, info: Any, dims: Any, *args: Any) -> Any:
        """Return the result for one more batch axis, and where that axis lies in it."""

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.op(*args)
        if torch._C._are_functorch_transforms_active():
            return self.transformed(*args)
        given = [a for a in args[: self.tensors] if a is not None]
        if not eager() or any(type(t) not in PLAIN for t in given):
            return self.op(*args)
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return self.direct(*args)
        return self.compute(*args)


def _named(function: type, core: Core) -> type:
    function.__name__ = function.__qualname__ = f"Fastconv{core.name.title().replace('_', '')}"
    return function


def direct(core: Core) -> Any:
    """Return what calls an operator by way of autograd alone."""

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = core.compute(*args)
            core.keep(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return core.backward(ctx, *grads)

    # The base's apply: `Function.apply` looks whether a transform is active, which `eager` has done.
    return super(torch.autograd.Function, _named(Direct, core)).apply  # type: ignore[misc]


def _transformed(core: Core) -> Any:
    """Return what calls an operator within functional transforms, which the library's autograd does not know."""

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return core(*args)

        setup_context = staticmethod(core.keep)
        vmap = staticmethod(core.vmap)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return core.backward(ctx, *grads)

    return _named(Transformed, core).apply  # type: ignore[attr-defined]


def front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with its batch axis of vmap in front, made if there is none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def folded(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Return a tensor with its batch axis of vmap folded into its first one."""
    return front(tensor, dim, size).flatten(0, 1)
