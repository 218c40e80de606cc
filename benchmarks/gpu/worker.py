"""A process of its own for work that may not end, may die, or may take the GPU from the process that it is in."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any, Self


class LostError(RuntimeError):
    """The process came to no end, or to a sudden one."""


class Worker:
    """Runs one job after another in a process of its own; when it is lost, the next job gets a new one.

    Jobs are functions of a module, with arguments and results that can be pickled.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(self, job: Callable[..., Any], *args: Any, deadline: float) -> Any:
        """Return what a job returns.

        Raises
        ------
        LostError
            If the process dies, or has no result when it is ``deadline`` by `time.monotonic`.
        RuntimeError
            If the job raises: with the exception in words.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send((job, args))
            if not self._pipe.poll(max(0.0, deadline - time.monotonic())):
                raise LostError("did not end in time")
            done, result = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode
            self.end()
            raise LostError(f"its process died with exit status {status}") from None
        except LostError:
            self.end()
            raise
        if not done:
            raise RuntimeError(result)
        return result

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        # A process that is forked cannot use the GPU after its parent has.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Any) -> None:
    while True:
        try:
            job, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, job(*args)))
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            pipe.send((False, f"{type(error).__name__}: {error}"[:500]))
