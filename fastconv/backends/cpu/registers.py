"""The vector registers: how wide, how many, and whether a multiplication and an addition are one instruction."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastconv import environment
from fastconv.machine import machine

#: Bytes of a cache line.
LINE = 64


def whole_lines(size: int) -> int:
    """Return a number of bytes rounded up to whole lines of the cache."""
    return -(-size // LINE) * LINE


@dataclass(frozen=True)
class Simd:
    """A register file: how wide, how many, and whether it multiplies and adds in one instruction, how often."""

    name: str
    vector_bytes: int
    registers: int
    fma: bool
    fma_per_cycle: float = 2.0

    def lanes(self, itemsize: int) -> int:
        return self.vector_bytes // itemsize


_KNOWN = {
    "avx512": Simd("avx512", 64, 32, True),
    "avx2": Simd("avx2", 32, 16, True),
    "neon": Simd("neon", 16, 32, True),
    "none": Simd("none", 16, 16, False),
}


def simd() -> Simd:
    """Return the machine's register file, or the narrower one that ``FASTCONV_SIMD`` asks for."""
    here = machine()
    known = _KNOWN[environment.read("FASTCONV_SIMD") or here.simd]
    return replace(known, fma_per_cycle=here.fma_per_cycle) if known.name == here.simd else known
