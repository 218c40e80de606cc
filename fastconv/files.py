"""Files that several processes share: where they go, how they are replaced, how two writers keep apart."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK_TIMEOUT = 10.0


def user_cache() -> Path:
    """Return where the platform wants caches: as platformdirs has it, which is not among the dependencies."""
    try:
        home = Path.home()
    except RuntimeError:  # a nameless user, as containers have
        return Path(tempfile.gettempdir())
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")


def signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written to; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def replace(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it finds the old text or the new one, whole.

    Raises
    ------
    OSError
        If it cannot be written; the message names the file, not the draft beside it.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            draft.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside a file, against other processes.

    The lock file stays: were it removed, two processes could each hold one of the same name.

    Raises
    ------
    TimeoutError
        If another process does not let go of it.
    """
    lock = path.with_name(path.name + ".lock")
    deadline = time.monotonic() + _LOCK_TIMEOUT
    with lock.open("ab") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{lock} is held by another process")
            time.sleep(0.01)
        yield  # closing the file lets go of the lock


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
