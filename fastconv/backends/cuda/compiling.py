"""From a CUDA source to a cubin, by NVRTC, and once for every machine: what was compiled is kept on disk.

NVRTC needs neither a GPU nor a driver, so that the tests compile for every architecture anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastconv import environment, files
from fastconv.backends.cuda import sources

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
"""What every kernel is tested to compile for."""

OPTIONS = ("-std=c++17", "--restrict", "--ptxas-options=-v")


class CompilationError(RuntimeError):
    """A kernel does not compile; the message is the compiler's."""


class Usage(NamedTuple):
    """What one kernel takes of a multiprocessor: registers a thread, and local memory, which it should not need."""

    registers: int
    stack: int
    spilled: int


class Compiled(NamedTuple):
    """A module for one architecture: a cubin, or PTX where the architecture is newer than the compiler."""

    image: bytes
    log: str

    @property
    def usage(self) -> dict[str, Usage]:
        """By kernel, read out of the compiler's log."""
        return {
            name: Usage(int(used), int(stack), int(out) + int(back))
            for name, stack, out, back, used in _USAGE(self.log)
        }


_USAGE = re.compile(
    r"Function properties for (\w+)\n\D*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r"\D*Used (\d+) registers"
).findall


def architecture(capability: tuple[int, int]) -> str:
    """Return what to compile for a GPU of a compute capability."""
    number = capability[0] * 10 + capability[1]
    supported = _nvrtc().getSupportedArchs()
    if number in supported:
        return f"sm_{number}a" if number == 90 else f"sm_{number}"
    return f"compute_{max(n for n in supported if n <= number)}"


def compiled(name: str, defines: tuple[tuple[str, str], ...], arch: str) -> Compiled:
    """Compile a source of ``kernels/``.

    Raises
    ------
    CompilationError
        If it does not compile.
    """
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(sources.translation_unit(name, defines), name, (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={arch}"))
        image = nvrtc.getCUBIN(program) if arch.startswith("sm") else nvrtc.getPTX(program)
        return Compiled(image, nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        raise CompilationError(f"{name} for {arch}: {error}\n{nvrtc.getProgramLog(program)}") from None
    finally:
        nvrtc.destroyProgram(program)


def image_file(name: str, defines: tuple[tuple[str, str], ...], arch: str) -> Path:
    """Return the file of a compiled source, compiled now if the cache on disk does not hold it whole."""
    text = sources.translation_unit(name, defines)
    key = hashlib.sha256("\0".join((text, arch, *OPTIONS, str(_nvrtc().getVersion()))).encode()).hexdigest()[:40]
    called, kind = f"{Path(name).stem}-{key}", "cubin" if arch.startswith("sm") else "ptx"
    found = _kept(_cache_directory(), called, kind) or (_kept(_own_directory(), called, kind) if key in _own else None)
    if found:
        return found
    image = compiled(name, defines, arch).image
    called += f"-{_checksum(image)}.{kind}"
    try:
        return _stored(_cache_directory() / called, image)
    except OSError:  # there is no place to keep it: for this process it must do
        _own.add(key)
        return _stored(_own_directory() / called, image)


def _checksum(image: bytes) -> str:
    """Return what the name of a kept file says of its contents: what was damaged is compiled again."""
    return hashlib.sha256(image).hexdigest()[:16]


def _kept(directory: Path, called: str, kind: str) -> Path | None:
    with suppress(OSError):  # what cannot be read is not there
        for path in directory.glob(f"{called}-*.{kind}"):
            if path.stem == f"{called}-{_checksum(path.read_bytes())}":
                return path
    return None


def _stored(path: Path, image: bytes) -> Path:
    """Write a file in one step: other processes find none, or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)  # noqa: SIM115 - closed below
    try:
        with file:
            file.write(image)
        os.replace(file.name, path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    return path


# The keys of what this process keeps for itself.
_own: set[str] = set()


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a directory of this process, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="fastconv-cuda-")


def _own_directory() -> Path:
    return Path(_temporary().name)


def _cache_directory() -> Path:
    chosen = environment.read("FASTCONV_CACHE_DIR")
    return (Path(chosen) if chosen else files.user_cache() / "fastconv") / "cuda"


def _nvrtc() -> Any:
    from cupy.cuda import nvrtc

    return nvrtc
