"""How many threads BLAS may use, through threadpoolctl where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fastconv.algorithm import Run
from fastconv.options import current


def missing() -> str | None:
    """Return why the options' number of threads cannot be obeyed, None if it can."""
    if current().threads is None or _has_threadpoolctl():
        return None
    return "options(threads=...) needs threadpoolctl to limit BLAS: pip install threadpoolctl"


@cache
def _has_threadpoolctl() -> bool:
    return find_spec("threadpoolctl") is not None


@cache
def _limit() -> Callable[..., Any]:
    # Finding the loaded libraries takes a hundred microseconds, setting a limit six.
    return import_module("threadpoolctl").ThreadpoolController().limit  # type: ignore[no-any-return]


def limited(run: Run) -> Run:
    """Return ``run`` under the number of threads of the options in force now."""
    threads = current().threads
    if threads is None:
        return run
    limit = _limit()

    def with_limit(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        with limit(limits=threads, user_api="blas"):
            run(inputs, outputs)

    return with_limit
