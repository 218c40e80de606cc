"""How many threads BLAS may use, through threadpoolctl where it is installed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

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


class _Limit:
    """The limit in force. BLAS has one for the whole process: runs with the same share it, others take turns."""

    def __init__(self) -> None:
        # Finding the loaded libraries takes a hundred microseconds, setting a limit six.
        library = import_module("threadpoolctl")
        self._controller = library.ThreadpoolController()
        # Of late the thread that set a limit is the only one that may change it, until it lets go.
        self._let_go = getattr(library.OpenBLASController, "clear_controlling_thread", lambda force: None)
        self._changed = threading.Condition()
        self._threads = 0
        self._users = 0
        self._in_force: Any = None

    @contextmanager
    def __call__(self, threads: int) -> Iterator[None]:
        with self._changed:
            while self._users and self._threads != threads:
                self._changed.wait()
            if not self._users:
                self._threads = threads
                self._let_go(force=True)
                self._in_force = self._controller.limit(limits=threads, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users:
                    self._let_go(force=True)
                    self._in_force.restore_original_limits()
                    self._changed.notify_all()


_making = threading.Lock()


@cache
def _made() -> _Limit:
    return _Limit()


def _limit() -> _Limit:
    with _making:  # two of them would not know of each other
        return _made()


def limited(run: Run) -> Run:
    """Return ``run`` under the number of threads of the options in force now."""
    threads = current().threads
    if threads is None:
        return run
    limit = _limit()

    def with_limit(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        with limit(threads):
            run(inputs, outputs)

    return with_limit


def quiet(run: Run) -> Run:
    """Return ``run`` without NumPy's warnings: NaN and infinity are results like any other here."""

    def silently(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        with np.errstate(all="ignore"):
            run(inputs, outputs)

    return silently
