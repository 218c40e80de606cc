"""The launcher of the tests: kernels run in processes of their own, on copies of NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fastconv.backends.cuda import launching, sources
from fastconv.backends.cuda.device import Properties
from fastconv.backends.cuda.launching import Kernel, Launch

HERE = Path(__file__).parent
ORDERS = ("forward", "reverse", "shuffled")
CHECKING = ("-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fno-sanitize-recover=all")
FLAGS = (
    "-std=c++17",
    # Most kernels run for a moment: compiling them takes longer, and much longer at -O1.
    "-Og",
    "-g1",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-fsanitize=address",
    "-fno-omit-frame-pointer",
)
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0"}
# Memory of more bytes is passed on in parts: there are arrays whose elements lie far apart.
_WHOLE = 64 << 20
# A GPU of no particular kind: what predictions and choices of tiles go by.
PROPERTIES = Properties(
    name="emulated",
    capability=(9, 0),
    multiprocessors=4,
    hertz=1.5e9,
    bandwidth=1e12,
    shared_bytes=227 << 10,
    l2_bytes=1 << 20,
)


class EmulationError(AssertionError):
    """A kernel did what it must not: the message is the emulator's or AddressSanitizer's."""


class Emulator:
    """Compiles and launches as `fastconv.backends.cuda.launching.CupyLauncher` does, on NumPy arrays.

    Parameters
    ----------
    orders : sequence of str
        The orders in which threads run: the launches of each kernel take them in turn.
    properties : Properties
        Of the device that is played.
    """

    def __init__(self, orders: Sequence[str] = ORDERS, properties: Properties = PROPERTIES) -> None:
        self.orders = orders
        self.properties_shown = properties
        self.launched: list[tuple[Kernel, tuple[int, ...]]] = []
        self.launches: dict[str, int] = {}

    def missing(self) -> str | None:
        return None

    def properties(self) -> Properties:
        return self.properties_shown

    def on(self, array: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def empty(self, count: int, dtype: str) -> Any:
        scratch = np.empty(count, dtype)
        scratch.view(np.uint8)[...] = 0xFF
        return scratch

    def address(self, array: Any) -> int:
        """Return where an array would be if CuPy had allocated what it is a view of."""
        return 256 + _low(array) - _low(_owner(array)) + _origin(array)

    def prepare(self, kernel: Kernel, block: tuple[int, int, int], shared: int = 0) -> Launch:
        program = program_of(kernel.source, kernel.defines)

        def launch(grid: tuple[int, ...], parameters: bytes | bytearray, arrays: Sequence[Any]) -> None:
            assert grid[0] < 2**31 and all(size <= launching.MOST_ROWS for size in grid[1:]), (
                f"no GPU has a grid of {grid}"
            )
            # They begin anywhere, so that a kernel which most problems launch once has all orders among them.
            order = self.launches.setdefault(kernel.name, zlib.crc32(repr((kernel, grid)).encode()) >> 1)
            self.launches[kernel.name] += 1
            self.launched.append((kernel, grid))
            program.run(
                kernel.name, grid, block, shared, (self.orders[order % len(self.orders)], order), parameters, arrays
            )

        return launch


@contextmanager
def emulated(emulator: Emulator | None = None) -> Iterator[Emulator]:
    """Put an emulator in the place of the GPU."""
    emulator = emulator or Emulator()
    with launching.replaced(emulator):
        yield emulator


def _owner(array: Any) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _low(array: Any) -> int:
    return int(np.lib.array_utils.byte_bounds(array)[0])


def _origin(array: Any) -> int:
    """Return how far the first element is from the lowest."""
    return int(array.__array_interface__["data"][0]) - _low(array)


class Program:
    """A compiled translation unit, running: it answers one launch after another."""

    def __init__(self, executable: Path) -> None:
        self.executable = executable
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: Any = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process lives
            self.process = subprocess.Popen(
                [self.executable],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env={**os.environ, **SANITIZER_OPTIONS},
            )
        return self.process

    def run(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, int, int],
        shared: int,
        order: tuple[str, int],
        parameters: bytes | bytearray,
        arrays: Sequence[Any],
    ) -> None:
        """Launch: arrays stand for the pointers that the parameters begin with; None is a null pointer."""
        memory = [_Memory(owner) for owner in _extents(arrays)]
        pointers = []
        for i, array in enumerate(arrays):
            if array is not None:
                low = int(array.__array_interface__["data"][0])
                index = next(j for j, m in enumerate(memory) if m.low <= low < m.high)
                pointers.append(struct.pack("<IIQ", 8 * i, index, low - memory[index].low))
        request = [
            struct.pack("<I", len(name)),
            name.encode(),
            struct.pack("<6I", *(*grid, 1, 1)[:3], *block),
            struct.pack("<III", shared, ORDERS.index(order[0]), order[1]),
            struct.pack("<I", len(parameters)),
            bytes(parameters),
            struct.pack("<I", len(memory)),
            *(part for m in memory for part in (m.described, m.bytes)),
            struct.pack("<I", len(pointers)),
            *pointers,
        ]
        answers = self._ask(b"".join(request), [len(m.bytes) for m in memory])
        for m, answer in zip(memory, answers, strict=True):
            if m.writeable:
                m.write(answer)
            elif answer != m.bytes:
                raise EmulationError(f"{name} wrote to memory that it was given to read")

    def _ask(self, request: bytes, sizes: list[int]) -> list[bytes]:
        process = self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            answers = [process.stdout.read(size) for size in sizes]
            ended = process.stdout.read(1) != b"."
        except BrokenPipeError:
            ended = True
        if ended:
            process.stdin.close()
            process.wait()
            self.process = None
            self.errors.seek(0)
            raise EmulationError(self.errors.read().decode(errors="replace")[:8000])
        return answers


class _Memory:
    """The memory that some arrays lie in, from their lowest byte to their highest.

    Attributes
    ----------
    runs : list of (int, int)
        The parts of it that are passed on, each from its first byte to its last: all, unless elements lie far apart.
    bytes : bytes
        What they hold.
    """

    def __init__(self, arrays: list[Any]) -> None:
        bounds = [np.lib.array_utils.byte_bounds(a) for a in arrays]
        self.low, self.high = min(b[0] for b in bounds), max(b[1] for b in bounds)
        self.shift = (self.low - _low(_owner(arrays[0]))) % 256
        self.writeable = any(a.flags.writeable for a in arrays)
        size = self.high - self.low
        self.runs = [(0, size)] if size <= _WHOLE else _runs(arrays, self.low)
        self._view = np.frombuffer((ctypes.c_uint8 * size).from_address(self.low), np.uint8)
        self.bytes = b"".join(self._view[first:stop].tobytes() for first, stop in self.runs)

    @property
    def described(self) -> bytes:
        """Sizes, as the emulator reads them."""
        runs = (struct.pack("<QQ", first, stop - first) for first, stop in self.runs)
        return struct.pack("<QQI", self.high - self.low, self.shift, len(self.runs)) + b"".join(runs)

    def write(self, answer: bytes) -> None:
        at = 0
        for first, stop in self.runs:
            self._view[first:stop] = np.frombuffer(answer, np.uint8, stop - first, at)
            at += stop - first


def _runs(arrays: list[Any], low: int) -> list[tuple[int, int]]:
    """Return where the elements of arrays are, from a byte on: the first byte and the last of each run."""
    places: list[tuple[int, int]] = []
    for array in arrays:
        first = array.__array_interface__["data"][0] - low
        steps = np.indices(array.shape).reshape(array.ndim, -1).T @ np.array(array.strides, np.int64)
        places += [(first + step, first + step + array.itemsize) for step in steps.tolist()]
    found: list[tuple[int, int]] = []
    for start, stop in sorted(places):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def _extents(arrays: Sequence[Any]) -> list[list[Any]]:
    """Group arrays whose memory overlaps."""
    groups: list[list[Any]] = []
    for array in arrays:
        if array is None:
            continue
        meets = [g for g in groups if any(np.may_share_memory(array, other) for other in g)]
        groups = [g for g in groups if g not in meets] + [[array, *(a for g in meets for a in g)]]
    return groups


@cache
def program_of(source: str, defines: tuple[tuple[str, str], ...]) -> Program:
    return Program(build(sources.translation_unit(source, defines)))


def build(text: str) -> Path:
    """Return the executable of a translation unit, compiled unless the cache has it."""
    header = (HERE / "emulation.h").read_text()
    key = hashlib.sha256("\0".join((_runtime().name, header, *FLAGS, *CHECKING, text)).encode()).hexdigest()[:32]
    executable = _cache_directory() / key
    if not executable.exists():
        with tempfile.TemporaryDirectory(dir=_cache_directory()) as folder:
            cpp, out = Path(folder, "kernel.cpp"), Path(folder, "kernel")
            cpp.write_text(text)
            given = "-include", str(_header()), str(cpp), str(_runtime())
            _compile(*FLAGS, *CHECKING, "-Werror", *given, "-o", str(out))
            out.replace(executable)
    return executable


def _runtime() -> Path:
    """Return the emulator's own half, compiled once."""
    return _compiled_once(("runtime.cpp", "emulation.h"), "runtime", ".o", ("-O2", "-c"))


def _header() -> Path:
    """Return what every kernel includes: g++ reads it as it was compiled, once, from the file with ``.gch`` added."""
    compiled = _compiled_once(("emulation.h",), "emulation", ".h.gch", (*CHECKING, "-x", "c++-header"))
    header = compiled.with_suffix("")
    if not header.exists():
        with tempfile.TemporaryDirectory(dir=_cache_directory()) as folder:
            Path(shutil.copy(HERE / "emulation.h", folder)).replace(header)
    return header


@cache
def _compiled_once(names: tuple[str, ...], stem: str, suffix: str, flags: tuple[str, ...]) -> Path:
    """Return what the first of some files compiles to; the others are what it includes."""
    parts = [(HERE / name).read_text() for name in names]
    key = hashlib.sha256("\0".join((*parts, *FLAGS, *flags)).encode()).hexdigest()[:32]
    target = _cache_directory() / f"{stem}-{key}{suffix}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_cache_directory()) as folder:
            out = Path(folder, "compiled")
            _compile(*FLAGS, *flags, str(HERE / names[0]), "-o", str(out))
            out.replace(target)
    return target


def _compile(*arguments: str) -> None:
    compiler = shutil.which("g++")
    assert compiler, "g++ is needed to test the kernels on the CPU: install it (Debian: apt-get install g++)"
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(done.stderr[:8000])


@cache
def _cache_directory() -> Path:
    """Return where executables are kept: those of an earlier run are used again."""
    chosen = os.environ.get("FASTCONV_EMULATION_CACHE") or Path(
        tempfile.gettempdir(), f"fastconv-emulation-{os.getuid()}"
    )
    path = Path(chosen)
    path.mkdir(parents=True, exist_ok=True)
    return path
