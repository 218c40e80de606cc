"""A launcher that launches nothing: it compiles what algorithms would launch, for an architecture, and keeps count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from fastconv.backends.cuda import compiling, launching
from fastconv.backends.cuda.compiling import Usage
from fastconv.backends.cuda.device import Properties
from fastconv.backends.cuda.launching import Kernel, Launch

# Of an H100 with SXM, by its data sheet.
PROPERTIES = Properties(
    name="H100",
    capability=(9, 0),
    multiprocessors=132,
    hertz=1.755e9,
    bandwidth=3.35e12,
    shared_bytes=227 << 10,
    l2_bytes=50 << 20,
)


@cache
def usage(source: str, defines: tuple[tuple[str, str], ...], arch: str) -> dict[str, Usage]:
    """Return what a source's kernels take on an architecture."""
    return compiling.compiled(source, defines, arch).usage


class Compiler:
    """Notes every kernel that an algorithm prepares, with the threads and the shared memory of its blocks."""

    def __init__(self, properties: Properties = PROPERTIES) -> None:
        self.shown = properties
        self.kernels: dict[Kernel, tuple[tuple[int, int, int], int]] = {}

    def missing(self) -> str | None:
        return None

    def properties(self) -> Properties:
        return self.shown

    def on(self, array: Any) -> Any:
        return nullcontext()

    def empty(self, count: int, dtype: str) -> Any:
        raise AssertionError("nothing is launched here")

    def address(self, array: Any) -> int:
        raise AssertionError("nothing is launched here")

    def prepare(self, kernel: Kernel, block: tuple[int, int, int], shared: int = 0) -> Launch:
        self.kernels[kernel] = block, shared

        def launch(grid: Any, parameters: Any, arrays: Any) -> None:
            raise AssertionError("nothing is launched here")

        return launch


@contextmanager
def compiling_only(compiler: Compiler) -> Iterator[Compiler]:
    """Put a compiler in the place of the GPU."""
    with launching.replaced(compiler):
        yield compiler
