"""Compiling kernels, and keeping them on disk for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import cfunc, njit


@cache
def fingerprint() -> int:
    """Return a number that changes with any source file of this folder; never 0.

    Numba's disk cache sees changes of the file that a function stands in, and of what the function encloses. A
    kernel made of several files encloses this.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return int.from_bytes(digest.digest()[:7], "little") | 1


def function(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: compile for one signature, release the interpreter's lock while running."""
    return _kept(lambda body, kept: njit(signature, nogil=True, error_model="numpy", cache=kept)(body))


def callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: compile to native code that is called by its ``address``."""
    return _kept(lambda body, kept: cfunc(signature, cache=kept)(body))


_compiled = 0


def count() -> int:
    """Return how many functions were compiled, or loaded from disk, in this process."""
    return _compiled


def _kept(compile: Callable[[Callable[..., Any], bool], Any]) -> Callable[[Callable[..., Any]], Any]:
    def decorate(body: Callable[..., Any]) -> Any:
        global _compiled
        _compiled += 1
        try:
            return compile(body, True)
        except RuntimeError:  # there is no directory to keep anything in
            return compile(body, False)

    return decorate
