"""The files that keep compiled functions' machine code, each named after what it is of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import caching
from numba.core.compiler_lock import global_compiler_lock


class _Files(caching.IndexDataCacheFile):  # type: ignore[misc]
    """One function's files.

    Numba counts them, so that two processes that compile at once take the same name, and an index that one of them
    writes leads to the code of the other. Here the worst is that an index forgets what the other has compiled.
    """

    def save(self, key: Any, data: Any) -> None:
        of = repr((self._version, self._source_stamp, key)).encode()
        name = self._data_name_pattern.format(number=int.from_bytes(hashlib.sha256(of).digest()[:8], "little"))
        self._save_data(name, data)
        self._save_index(self._load_index() | {key: name})


@contextmanager
def named_files() -> Iterator[None]:
    """Functions that are decorated meanwhile, to be kept on disk, have such files. One thread waits for another."""
    with global_compiler_lock:
        numbas, caching.IndexDataCacheFile = caching.IndexDataCacheFile, _Files
        try:
            yield
        finally:
            caching.IndexDataCacheFile = numbas
