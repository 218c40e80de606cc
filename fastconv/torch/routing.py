"""The one line: `use` puts fastconv's functions in the places of PyTorch's, for the length of a block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import ContextDecorator
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastconv.torch import asked
from fastconv.torch.fully_connected import linear
from fastconv.torch.functional import ROUTED
from fastconv.torch.tensors import DTYPES

_OURS: dict[str, Callable[..., Any]] = {**ROUTED, "linear": linear}
_THEIRS = {name: getattr(functional, name) for name in _OURS}
# Convolutions and some pools are in ``torch`` as well: the very same functions.
_PLACES = [
    (module, name)
    for name, theirs in _THEIRS.items()
    for module in (functional, torch)
    if getattr(module, name, None) is theirs
]

_lock = threading.RLock()
_blocks: list[use] = []


class _Caught(TorchFunctionMode):
    """Sends PyTorch's functions to fastconv under whatever name a program holds them."""

    # Some that are in `torch.nn.functional` are wrappers, which a mode sees by what is inside of them.
    ours: ClassVar[dict[Any, Callable[..., Any]]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.ours.get(function, function)(*args, **(kwargs or {}))


_Caught.ours.update({theirs: _OURS[name] for name, theirs in _THEIRS.items()})


class use(ContextDecorator):  # noqa: N801 - a verb, as torch.no_grad is
    """Send a program's convolutions and pools to fastconv: ``with fastconv.torch.use(): ...``, or as a decorator.

    Within the block, `torch.nn.functional`'s convolutions, transposed convolutions, pools, unfold and fold, and the
    modules of `torch.nn` that call them, are computed by fastconv, with their gradients. What it cannot do stays with
    PyTorch; `stats` tells what, and why. Fully connected layers are fastconv's where a large weight meets few rows and
    no gradient is recorded; others are not counted. The block holds for the whole process, all its threads; blocks may
    be nested.

    A parameter's packed form is kept while nothing is learnt, and so is memory of such convolutions' large results, of
    which 64 MB may wait to be used again (see `forget`). `torch.jit.trace` sees PyTorch's operators; `torch.jit.script`
    reads functions' sources, so call it outside of the block.

    Parameters
    ----------
    dtypes : collection of torch.dtype
        The dtypes that go to fastconv. Without the half types by default, which PyTorch is faster at on processors
        that have instructions for them.
    bound_names : bool
        Also catch functions that a module has imported by name (``from torch.nn.functional import conv2d``). In this
        thread alone, and at the price of a microsecond for every function of PyTorch that is called.

    Raises
    ------
    ValueError
        If a dtype is none that fastconv computes.

    Examples
    --------
    >>> with fastconv.torch.use():
    ...     y = model(x)
    """

    def __init__(
        self, *, dtypes: Collection[torch.dtype] = (torch.float32, torch.float64), bound_names: bool = False
    ) -> None:
        for dtype in dtypes:
            if dtype not in DTYPES:
                raise ValueError(f"dtypes: expected some of {', '.join(map(str, DTYPES))}, got {dtype!r}")
        self._dtypes = frozenset(dtypes)
        self._bound_names = bound_names
        self._modes: list[_Caught] = []

    def _recreate_cm(self) -> use:
        return use(dtypes=self._dtypes, bound_names=self._bound_names)

    def __enter__(self) -> Self:
        with _lock:
            _blocks.append(self)
            _install()
        if self._bound_names:
            self._modes.append(_Caught())
            self._modes[-1].__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._bound_names:
            self._modes.pop().__exit__(*failure)
        with _lock:
            _blocks.remove(self)
            _install()


def _install() -> None:
    """Put into PyTorch's places what the innermost open block asks for."""
    asked.dtypes = _blocks[-1]._dtypes if _blocks else frozenset()
    functions = _OURS if _blocks else _THEIRS
    for module, name in _PLACES:
        setattr(module, name, functions[name])
