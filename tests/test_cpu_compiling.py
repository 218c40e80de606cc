"""Machine code that is kept on disk: what several processes keep at once."""

from __future__ import annotations

import ctypes

import numba
from numba import types
from numba.core import caching

from fastconv.backends.cpu.compiling import callback


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
