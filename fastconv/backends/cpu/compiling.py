"""Compiling kernels, and keeping them on disk for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numba import cfunc, njit
from numba.np import linalg

from fastconv.backends.cpu.codegen import whole
from fastconv.code_files import named_files


def _load_array_functions() -> None:
    """Import what Numba knows of arrays, which it would do at the first compilation, without SciPy.

    Numba asks whether SciPy is installed by importing its linear algebra: a third of the time of a first call. Where
    it is asked for here, being installed is enough; code that needs it still imports it.
    """
    ensure_blas = linalg.ensure_blas

    def is_installed() -> None:
        if find_spec("scipy") is None:
            raise ImportError("scipy")

    linalg.ensure_blas = is_installed
    try:
        import numba.np.arraymath  # noqa: F401
    finally:
        linalg.ensure_blas = ensure_blas


_load_array_functions()


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


def function(signature: Any, *, short: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: compile for one signature, release the interpreter's lock while running unless ``short``.

    What it makes is called without Numba's dispatcher, which would look at the arguments' types for as long again.
    """
    options = {"nogil": not short, "error_model": "numpy", "no_cfunc_wrapper": True}
    return _kept(lambda body, kept: _entry(njit(signature, cache=kept, **options)(body)))


def _entry(compiled: Any) -> Callable[..., Any]:
    (result,) = compiled.overloads.values()
    entry: Callable[..., Any] = result.entry_point
    return entry


def inlined(body: Callable[..., Any]) -> Any:
    """Compile what only compiled functions call, with their literal arguments; there is no calling it from Python."""
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(body)


def callback(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator: compile to native code that is called by its ``address``."""
    return _kept(lambda body, kept: cfunc(signature, error_model="numpy", cache=kept)(body))


_compiled = 0


def count() -> int:
    """Return how many functions were compiled, or loaded from disk, in this process."""
    return _compiled


def _kept(compile: Callable[[Callable[..., Any], bool], Any]) -> Callable[[Callable[..., Any]], Any]:
    def decorate(body: Callable[..., Any]) -> Any:
        global _compiled
        _compiled += 1
        with whole(), named_files():
            try:
                return compile(body, True)
            except RuntimeError:  # there is no directory to keep anything in
                return compile(body, False)

    return decorate
