"""The context options: filters on which algorithms may be chosen, and what they may use."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

from fastconv import environment

# name: (type, whether None is allowed, least value)
_ALLOWED: dict[str, tuple[Any, bool, int | None]] = {
    "backend": (str, True, None),
    "algorithm": (str, True, None),
    "max_workspace": (int, False, 0),
    "deterministic": (bool, False, None),
    "strict": (bool, False, None),
    "tf32": (bool, False, None),
    "threads": (int, True, 1),
    "autotune": (bool, False, None),
}


# The numbers of the options that were met, as many as are kept.
_numbers: dict[tuple[Any, ...], int] = {}
_MOST_NUMBERS = 4096
_counted = itertools.count()


@dataclass(frozen=True)
class Options:
    """What the dispatcher obeys. Immutable, so that it can be part of a plan's key.

    Attributes
    ----------
    number : int
        Different options have different ones, and equal ones the same unless thousands came in between: a key that
        Python compares and hashes in no time.
    """

    backend: str | None = None
    algorithm: str | None = None
    max_workspace: int = 64 << 20
    deterministic: bool = False
    strict: bool = False
    tf32: bool = False
    threads: int | None = None
    autotune: bool = False
    number: ClassVar[int]
    _hash: ClassVar[int]

    def __post_init__(self) -> None:
        for name, (kind, optional, least) in _ALLOWED.items():
            value: Any = getattr(self, name)
            if value is None and optional:
                continue
            if type(value) is not kind:  # nor a bool for an int
                raise TypeError(f"{name}: expected {kind.__name__}, got {value!r}")
            if least is not None and value < least:
                raise ValueError(f"{name}: must be at least {least}, got {value}")
        values = tuple(getattr(self, f.name) for f in fields(self))
        if len(_numbers) >= _MOST_NUMBERS:
            _numbers.clear()
        object.__setattr__(self, "number", _numbers.setdefault(values, next(_counted)))
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        # Not the number, which another process gives to others.
        return partial(Options, **{f.name: getattr(self, f.name) for f in fields(self)}), ()

    def replace(self, **changes: Any) -> Options:
        """Return a copy with some options changed; an unknown name is a `TypeError`."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"options: unknown option {name!r}; expected one of {', '.join(known)}")
        return replace(self, **changes)


_current: ContextVar[Options] = ContextVar("fastconv_options")
_default: Options | None = None
_default_lock = threading.Lock()


def _from_environment() -> Options:
    global _default
    with _default_lock:
        if _default is None:
            _default = Options(**{f.name: environment.read(f"FASTCONV_{f.name.upper()}") for f in fields(Options)})
        return _default


def current() -> Options:
    """Return the options in force here: the innermost `options` block's, else the environment's."""
    return _current.get(None) or _default or _from_environment()


class applied:  # noqa: N801 - as a context manager of contextlib, and three times as fast
    """Put options in force that were resolved before."""

    __slots__ = ("_chosen", "_token")

    def __init__(self, chosen: Options) -> None:
        self._chosen = chosen

    def __enter__(self) -> None:
        self._token = _current.set(self._chosen)

    def __exit__(self, *failure: object) -> None:
        _current.reset(self._token)


@contextmanager
def options(**changes: Any) -> Iterator[Options]:
    """Change options within a ``with`` block, for this thread (or asyncio task) alone.

    Parameters
    ----------
    backend, algorithm : str, optional
        Only algorithms of this backend, or of this name, may be chosen.
    max_workspace : int
        Bytes of scratch memory an algorithm may use per thread. Default 64 MiB. The backends that must solve every
        problem (reference, naive) are exempt.
    deterministic : bool
        Only algorithms whose results are bit-identical from run to run and for any number of threads; and the choice
        among them is made as for one thread, so that it does not depend on that number either.
    strict : bool
        Only algorithms that sum plainly (no Winograd, no FFT): for data whose largest values hide the small ones, such
        as masks and "no data" values, since what is computed together shares its rounding.
    tf32 : bool
        On a GPU, float32 may be rounded to TF32 (8 bits of exponent, 10 of fraction) before it is multiplied.
    threads : int, optional
        How many threads to use; all cores by default.
    autotune : bool
        Measure every problem when it is first met and remember the fastest algorithm.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown or its value makes no sense.

    Examples
    --------
    >>> with fastconv.options(backend="im2col", threads=1):
    ...     y = fastconv.conv2d(x, w)
    """
    token = _current.set(current().replace(**changes))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def _after_fork() -> None:
    """In a child, where only the thread that forked lives on: nobody is left to release a lock."""
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
