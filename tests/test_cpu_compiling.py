"""Machine code that is kept on disk: what several processes keep at once."""

from __future__ import annotations

import ctypes
import threading
import time

import numba
from numba import types
from numba.core import caching

from fastconv.backends.cpu.compiling import callback
from fastconv.code_files import named_files


def _returning(number):
    @callback(types.int64())
    def compiled():
        return number

    return ctypes.CFUNCTYPE(ctypes.c_int64)(compiled.address)()


def test_processes_that_compile_at_once_keep_apart_what_they_compile(tmp_path, monkeypatch):
    """Each has read the index before the other wrote it; of the code, the first one's is written last."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    files = caching.IndexDataCacheFile
    assert _returning(1) == 1
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.nbc")}
    with monkeypatch.context() as patch:
        patch.setattr(files, "_load_index", lambda self: {})
        assert _returning(2) == 2
    for path, data in written.items():
        path.write_bytes(data)
    assert written
    assert [_returning(number) for number in (1, 2, 1, 2)] == [1, 2, 1, 2]


def test_threads_that_decorate_at_once_leave_numbas_files_to_others():
    """The one that began later must not put back what the other had put there."""
    numbas, began, ended = caching.IndexDataCacheFile, threading.Event(), threading.Event()

    def later():
        began.set()
        with named_files():
            ended.wait(60)

    thread = threading.Thread(target=later)
    with named_files():
        thread.start()
        began.wait(60)
        time.sleep(0.1)  # enough to get in, if nothing kept it out
    ended.set()
    thread.join(60)
    assert caching.IndexDataCacheFile is numbas
