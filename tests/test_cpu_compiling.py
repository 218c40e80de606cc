"""Machine code that is kept on disk: what several processes keep at once."""

from __future__ import annotations

import ctypes
import operator
import threading
import time

import numba
import pytest
from numba import types
from numba.core import caching

from fastconv.backends.cpu import codegen
from fastconv.backends.cpu.compiling import callback, function
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


@pytest.mark.parametrize("whole", [types.int64, types.int32, types.uint64])
@pytest.mark.parametrize("real", [types.float64, types.float32])
def test_operators_of_numbers_have_the_types_that_numba_gives_them(whole, real):
    def compute(n, x, truth):
        shift = (n + 3) // 2 - (n % 5) * (n - 3)
        return (shift + x / 4.0 + n / 4) * (x - 1) if truth & (n < 10) else -x + truth

    for _ in range(2):
        compiled = function(types.float64(whole, real, types.boolean), short=True)(compute)
        for arguments in ((7, 2.5, True), (12, -0.75, True), (4, 1.5, False)):
            assert compiled(*arguments) == compute(*arguments)


def test_numba_is_asked_once_for_the_type_of_a_sum(monkeypatch):
    asked = []

    def resolve(function, context, args, kws):
        asked.append((function, args))
        return original(function, context, args, kws)

    def compiled():
        @function(types.int64(types.int64), short=True)
        def steps(n):
            total = n
            for step in range(n):
                total = total + step + 1
                total = total - step * n
                total = total + n
            return total

        return steps

    original = codegen._resolve
    monkeypatch.setattr(codegen, "_resolve", resolve)
    monkeypatch.setattr(caching.Cache, "load_overload", lambda *_: None)
    assert compiled()(3) == 3 + sum(step + 1 - 3 * step + 3 for step in range(3))
    del asked[:]
    assert compiled()(2) == 2 + sum(step + 1 - 2 * step + 2 for step in range(2))
    assert not [f for f, args in asked if f.typing_key in (operator.add, operator.sub, operator.mul)]
    assert "get_call_type" not in vars(types.Function)
