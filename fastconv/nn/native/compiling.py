"""Compiling kernels, and running them on several threads.

A kernel is ``kernel(start, stop, *arguments)`` and does the units of work from start to stop. What a unit is does
not depend on the number of threads, and no two units write to the same place, so results do not depend on it either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from numba import njit

from fastconv.machine import available_cores, machine

# Elements below which handing work to another thread takes longer than the work.
_WORTH_A_THREAD = 1 << 17


def kernel(*, sums: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a kernel; with ``sums``, loops that add up are vectorised too.

    A compiled kernel is kept on disk where there is a directory for that.
    """
    # NaN and infinity stay what they are: no flag that assumes them away.
    fast = {"reassoc", "contract"} if sums else False

    def decorate(body: Callable[..., Any]) -> Any:
        try:
            return njit(nogil=True, cache=True, error_model="numpy", fastmath=fast)(body)
        except RuntimeError:  # there is no directory to keep anything in
            return njit(nogil=True, error_model="numpy", fastmath=fast)(body)

    return decorate


@cache
def _helpers(process: int) -> ThreadPoolExecutor | None:
    """Return the threads of a process beside the caller's: a forked child's are not its parent's."""
    others = available_cores() - 1
    return ThreadPoolExecutor(others, "fastconv.nn") if others else None


def run(kernel: Callable[..., Any], units: int, elements: int, *arguments: Any) -> None:
    """Do all units of a kernel, on as many threads as the options allow if that many elements are worth it."""
    threads = 1 + elements // _WORTH_A_THREAD
    if threads > 1:  # small networks call often: to ask costs as much as the work
        threads = min(machine().threads(), units, threads)
    helpers = _helpers(os.getpid()) if threads > 1 else None
    if helpers is None:
        kernel(0, units, *arguments)
        return
    bounds = [units * i // threads for i in range(threads + 1)]
    others = [helpers.submit(kernel, bounds[i], bounds[i + 1], *arguments) for i in range(1, threads)]
    kernel(0, bounds[1], *arguments)
    for other in others:
        other.result()
