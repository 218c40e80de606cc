"""How many threads BLAS may use, through threadpoolctl where it is installed."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
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
    threads = current().threads
    if threads is None or threads >= (os.cpu_count() or math.inf) or _has_threadpoolctl():
        return None
    return "options(threads=...) needs threadpoolctl to limit BLAS: pip install threadpoolctl"


@cache
def _has_threadpoolctl() -> bool:
    return find_spec("threadpoolctl") is not None


class _Limit:
    """The limit in force. BLAS has one for the whole process: runs with the same share it, others take turns.

    Turns are taken in the order of coming: who wants the limit in force waits behind those who wait for another.
    """

    def __init__(self) -> None:
        # Finding the loaded libraries takes a hundred microseconds, setting a limit six.
        library = import_module("threadpoolctl")
        self._controller = library.ThreadpoolController()
        # Of late the thread that set a limit is the only one that may change it, until it lets go.
        self._let_go = getattr(library.OpenBLASController, "clear_controlling_thread", lambda force: None)
        self._in_force: Any = None
        self._forget_others()

    def _forget_others(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._threads = 0
        self._users = 0

    @contextmanager
    def __call__(self, threads: int) -> Iterator[None]:
        self._enter(threads)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, threads: int) -> None:
        with self._changed:
            self._queue.append(turn := object())
            try:
                while self._queue[0] is not turn or self._users and self._threads != threads:
                    self._changed.wait()
                if not self._users:
                    self._let_go(force=True)
                    self._in_force = self._controller.limit(limits=threads, user_api="blas")
                    self._threads = threads
                self._users += 1
            finally:
                self._queue.remove(turn)
                self._changed.notify_all()

    def _leave(self) -> None:
        with self._changed:
            self._users -= 1
            if not self._users:
                self._lift()
                self._changed.notify_all()

    def _lift(self) -> None:
        self._let_go(force=True)
        self._in_force.restore_original_limits()
        self._in_force = None

    def before_fork(self) -> None:
        """Let no thread be changing BLAS's threads: a child would have the limit half set, and BLAS's lock for ever."""
        self._changed.acquire()

    def after_fork_in_parent(self) -> None:
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Only the thread that forked lives on: nobody else is inside, waits, or holds a lock."""
        if self._in_force is not None:
            self._lift()
        self._forget_others()


_making = threading.Lock()
_made: _Limit | None = None


def _limit() -> _Limit:
    global _made
    with _making:  # two of them would not know of each other
        if _made is None:
            _made = _Limit()
        return _made


def _before_fork() -> None:
    _making.acquire()
    if _made is not None:
        _made.before_fork()


def _after_fork_in_parent() -> None:
    if _made is not None:
        _made.after_fork_in_parent()
    _making.release()


def _after_fork_in_child() -> None:
    if _made is not None:
        _made.after_fork_in_child()
    _making.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def limited(run: Run) -> Run:
    """Return ``run`` under the number of threads of the options in force now."""
    threads = current().threads
    if threads is None or not _has_threadpoolctl():
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
