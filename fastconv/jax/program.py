"""Sending a program's convolutions and pools to fastconv without changing the program."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax import lax

from fastconv.jax import lax as ours

_NAMES = ("conv_general_dilated", "conv_with_general_padding", "conv", "conv_transpose", "reduce_window")

# What is jitted is traced anew where this changes.
_on = jax.make_user_context(False)
_lock = threading.Lock()
_users = 0
_calls: Counter[str] = Counter()


def stats(clear: bool = False) -> dict[str, int]:
    """Return how many calls were traced within `use`, by who computes them: fastconv, or JAX and why.

    A function under `jax.jit` is traced once for arguments of one form, however often it is called.

    Parameters
    ----------
    clear : bool
        Begin anew after this.
    """
    with _lock:
        found = dict(_calls)
        if clear:
            _calls.clear()
    return found


def _either(name: str) -> Callable[..., Any]:
    """Return JAX's function, or fastconv's where `use` says so."""
    theirs, mine = getattr(lax, name), getattr(ours, name)

    @functools.wraps(theirs)
    def function(*args: Any, **kwargs: Any) -> Any:
        if not _on.value:
            return theirs(*args, **kwargs)
        try:
            if jax.default_backend() != "cpu":
                raise ValueError(f"JAX computes on {jax.default_backend()} here, and fastconv on the CPU")
            result = mine(*args, **kwargs)
            done = f"{name}: fastconv"
        except (TypeError, ValueError) as reason:
            result = theirs(*args, **kwargs)
            done = f"{name}: JAX, since {reason}"
        with _lock:
            _calls[done] += 1
        return result

    return function


_originals = {name: getattr(lax, name) for name in _NAMES}
_replacements = {name: _either(name) for name in _NAMES}


@contextmanager
def use() -> Iterator[None]:
    """Compute with fastconv what is traced in a ``with`` block: convolutions and pools of `jax.lax`, and gradients.

    Whatever calls ``jax.lax.conv_general_dilated``, ``conv``, ``conv_with_general_padding``, ``conv_transpose`` or
    ``reduce_window`` by these names is served, and so is what is built on them (Flax, Equinox, Haiku). Calls that
    fastconv does not compute stay with JAX; `stats` counts both. Functions under `jax.jit` are traced anew within the
    block, and again without it.

    Examples
    --------
    >>> with fastconv.jax.use():
    ...     y = jax.jit(model.apply)(parameters, x)
    """
    global _users
    with _lock:
        _users += 1
        for name, function in _replacements.items():
            setattr(lax, name, function)
    try:
        with _on(True):
            yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for name, function in _originals.items():
                    setattr(lax, name, function)
