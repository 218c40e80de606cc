"""From a CUDA source to a cubin, by NVRTC, and once for every machine: what was compiled is kept on disk.

NVRTC needs neither a GPU nor a driver, so that the tests compile for every architecture anywhere.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
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
    """Return the file of a compiled source, compiled now if the cache on disk does not hold it."""
    text = sources.translation_unit(name, defines)
    key = hashlib.sha256("\0".join((text, arch, *OPTIONS, str(_nvrtc().getVersion()))).encode()).hexdigest()[:40]
    called = f"{Path(name).stem}-{key}.{'cubin' if arch.startswith('sm') else 'ptx'}"
    path = _cache_directory() / called
    if path.exists():
        return path
    image = compiled(name, defines, arch).image
    try:
        return _stored(path, image)
    except OSError:  # there is no place to keep it: for this process it must do
        return _stored(Path(_own_directory().name) / called, image)


def _stored(path: Path, image: bytes) -> Path:
    """Write a file in one step: other processes find none, or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(image)
    os.replace(file.name, path)
    return path


@cache
def _own_directory() -> tempfile.TemporaryDirectory[str]:
    """Return a directory of this process, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="fastconv-cuda-")


def _cache_directory() -> Path:
    chosen = environment.read("FASTCONV_CACHE_DIR")
    return (Path(chosen) if chosen else files.user_cache() / "fastconv") / "cuda"


def _nvrtc() -> Any:
    from cupy.cuda import nvrtc

    return nvrtc
