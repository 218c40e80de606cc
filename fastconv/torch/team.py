"""PyTorch's threads, lent to fastconv: one team computes both."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from fastconv import borrowed

# What PyTorch's kernels start and ask; GNU's library has these, and LLVM's and Intel's have them as well.
_FUNCTIONS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_max_threads")


def lend() -> bool:
    """Let fastconv work on PyTorch's threads in this process, if they are OpenMP's; return whether they are."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return False
    try:  # by what PyTorch itself was linked with: there may be several such libraries in a process
        library = ctypes.CDLL(str(path))
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in _FUNCTIONS]
    except (OSError, AttributeError):
        return False
    borrowed.lend(borrowed.Team(*addresses))
    return True
