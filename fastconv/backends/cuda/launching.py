"""The one seam between algorithms and a GPU: what compiles, allocates and launches.

An algorithm asks `launcher` and knows nothing of CuPy. The tests put an emulator in its place (`replaced`), so that the
same host code runs on NumPy arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from fastconv.backends.cuda import compiling, device
from fastconv.backends.cuda.device import Properties

Grid: TypeAlias = tuple[int, ...]
MOST_ROWS = 65535
"""The most that the second and the third number of a grid may be."""

Block: TypeAlias = tuple[int, int, int]
Defines: TypeAlias = tuple[tuple[str, str], ...]

Launch: TypeAlias = Callable[[Grid, "bytes | bytearray", Sequence[Any]], None]
"""``launch(grid, parameters, arrays)``: starts a kernel on the caller's current stream.

``parameters`` are the bytes of the kernel's one parameter struct. It begins with a pointer for each of ``arrays``, in
order, which are filled in here; None is a null pointer.
"""

# Shared memory that a block may have without asking, what its kernel declares included.
_USUAL_SHARED = 48 << 10


class Kernel(NamedTuple):
    """A kernel of ``kernels/``: its file, its name there, and the macros that it is compiled with."""

    source: str
    name: str
    defines: Defines = ()


class Launcher(Protocol):
    """What algorithms need of a GPU."""

    def missing(self) -> str | None:
        """Return what stands in the way of using it; None if nothing does."""

    def properties(self) -> Properties:
        """Return the current device's properties."""

    def on(self, array: Any) -> AbstractContextManager[Any]:
        """Return a context in which an array's device is the current one."""

    def empty(self, count: int, dtype: str) -> Any:
        """Return scratch memory, a flat array, on the current device."""

    def address(self, array: Any) -> int:
        """Return the address of an array's first element."""

    def prepare(self, kernel: Kernel, block: Block, shared: int = 0) -> Launch:
        """Return what launches a kernel with blocks of a size and bytes of dynamic shared memory."""


class CupyLauncher:
    """The launcher that computes: CuPy's arrays, streams and memory pool."""

    def missing(self) -> str | None:
        return device.refusal()

    def properties(self) -> Properties:
        import cupy

        return device.properties(cupy.cuda.runtime.getDevice())

    def on(self, array: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = array.device
        return context

    def empty(self, count: int, dtype: str) -> Any:
        import cupy

        return cupy.empty(count, dtype)

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    def prepare(self, kernel: Kernel, block: Block, shared: int = 0) -> Launch:
        import cupy

        functions: dict[int, Any] = {}
        current = cupy.cuda.runtime.getDevice

        def load() -> Any:
            index = current()
            arch = compiling.architecture(device.properties(index).capability)
            module = cupy.RawModule(path=str(compiling.image_file(kernel.source, kernel.defines, arch)))
            function = module.get_function(kernel.name)
            # CuPy loads a file once: other plans launch the same function, whose limit must not become lower.
            if shared and shared + function.shared_size_bytes > _USUAL_SHARED:
                allowed = function.max_dynamic_shared_size_bytes
                function.max_dynamic_shared_size_bytes = max(allowed, shared)
            functions[index] = function
            return function

        def launch(grid: Grid, parameters: bytes | bytearray, arrays: Sequence[Any]) -> None:
            function = functions.get(current()) or load()
            filled = bytearray(parameters)
            pointers = [0 if array is None else array.data.ptr for array in arrays]
            struct.pack_into(f"{len(pointers)}Q", filled, 0, *pointers)
            # An array of one element goes to a kernel by value, whatever that element is.
            argument = np.frombuffer(filled, np.dtype((np.void, len(filled))))
            function(grid, block, (argument,), shared_mem=shared)

        load()
        return launch


_launcher: Launcher = CupyLauncher()


def launcher() -> Launcher:
    """Return the launcher in force."""
    return _launcher


@contextmanager
def replaced(other: Launcher) -> Iterator[None]:
    """Put another launcher in force, for all threads: plans made meanwhile keep it."""
    global _launcher
    before, _launcher = _launcher, other
    try:
        yield
    finally:
        _launcher = before
