"""The graph of a compiled model: it may be pickled, and may stand for a module of which others ask more than a call."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torch.nn import functional

from fastconv.torch.functional import OFFERS

FUNCTIONS = {getattr(functional, name): ours for name, ours in OFFERS.items()}
"""Fastconv's functions by PyTorch's."""


class Compiled(fx.GraphModule):
    """A graph of PyTorch's operators and fastconv's.

    Attributes
    ----------
    stands_for : tuple of Module
        The module whose place it has in a model that was not traced, if there is one: what a graph has not, its
        attributes and its parts, are that module's. Another dtype reaches it, what is loaded into the graph does not.
    """

    stands_for: tuple[nn.Module, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not self.stands_for:
                raise
            return getattr(self.stands_for[0], name)

    def __iter__(self) -> Any:
        return iter(self._parts())

    def __len__(self) -> int:
        return len(self._parts())

    def __getitem__(self, index: Any) -> Any:
        return self._parts()[index]

    def __bool__(self) -> bool:
        return True

    def _parts(self) -> Any:
        if not self.stands_for:
            raise TypeError("a compiled model has no parts")
        return self.stands_for[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.stands_for = tuple(copy.deepcopy(module)._apply(fn, recurse) for module in self.stands_for)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        copied = super().__deepcopy__(memo)
        assert isinstance(copied, Compiled)
        copied.stands_for = copy.deepcopy(self.stands_for, memo)
        return copied

    def __reduce__(self) -> Any:
        return _restored, (super().__reduce__(), self.stands_for)


def _restored(reduced: tuple[Any, ...], stands_for: tuple[nn.Module, ...]) -> Compiled:
    """Make a graph that was pickled: PyTorch traces its code anew, and takes fastconv's functions for its own."""
    make, arguments = reduced[:2]
    plain = make(*arguments)
    for node in plain.graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
    made = Compiled(plain, plain.graph)
    made.stands_for = stands_for
    return made.eval()
