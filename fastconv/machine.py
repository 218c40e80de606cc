"""What predictions assume of this machine: cores, vector width, peak rate, bandwidth."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastconv.options import current

# Nobody's clock is known beforehand; predictions only rank algorithms, for which a common value serves.
_ASSUMED_HZ = 3.0e9
# What is near: so many second-level caches' worth, moved so many times faster than from memory.
_NEAR_CACHES, _NEAR_RATE = 8, 4
# How much faster memory is that is only read, from its beginning to its end.
_READING = 1.6
# To wait for the first line of a piece, while others are on their way.
_NEAR_SECONDS, _FAR_SECONDS = 1.5e-9, 15e-9
_ASSUMED_BANDWIDTH = 15e9
# What a core has just written, others get from its cache, line by line; what was too much for it has left it by then.
_HANDED_RATE, _HANDED_SHARE = 2.5e9, 0.2


@dataclass(frozen=True)
class Machine:
    """A machine as predictions see it.

    Attributes
    ----------
    cpu : str
        The processor's name.
    cores : int
        Cores this process may use (affinity and cgroup limits counted).
    simd : str
        ``avx512``, ``avx2``, ``neon`` or ``none``.
    vector_bytes : int
        Width of a vector register.
    l2_bytes : int
        Size of a core's second-level cache.
    bandwidth : float
        Bytes a second that one core moves from and to memory.
    fma_per_cycle : float
        Fused multiply-adds of whole vectors that a core starts in a cycle.
    hertz : float
        Cycles a second.
    """

    cpu: str
    cores: int
    simd: str
    vector_bytes: int
    l2_bytes: int = 1 << 20
    bandwidth: float = _ASSUMED_BANDWIDTH
    fma_per_cycle: float = 2.0
    hertz: float = _ASSUMED_HZ

    def peak(self, dtype: str, threads: int | None = None) -> float:
        """Return FLOP/s of fused multiply-adds in ``dtype`` on that many threads (the options' if None)."""
        lanes = self.vector_bytes // (8 if dtype == "float64" else 4)
        return 2 * lanes * self.fma_per_cycle * self.hertz * self.threads(threads)

    def moving(self, count: float, pieces: float = 0.0) -> float:
        """Return the seconds that one core takes to move so many bytes, in pieces that lie apart.

        Beyond the second level is a cache of unknown size, several times as large and as fast as memory. Nothing
        fetches the beginning of a piece ahead.
        """
        if not count:
            return 0.0
        near = min(count, _NEAR_CACHES * self.l2_bytes)
        waiting = 0.0
        if count > self.l2_bytes:
            waiting = pieces * (near * _NEAR_SECONDS + (count - near) * _FAR_SECONDS) / count
        return (near / _NEAR_RATE + count - near) / self.bandwidth + waiting

    def reading(self, count: float) -> float:
        """Return the seconds that one core takes to read so many bytes in one go, and write nothing."""
        return self.moving(count) / _READING

    def handing(self, count: float) -> float:
        """Return the seconds that other cores wait for so many bytes that one core has just written."""
        return min(count, _HANDED_SHARE * self.l2_bytes) / _HANDED_RATE

    def threads(self, threads: int | None = None) -> int:
        """Return how many threads the options allow, at most the cores."""
        return min(threads or current().threads or self.cores, self.cores)

    @property
    def key(self) -> str:
        """What measurements are valid for."""
        return f"{self.cpu} ({self.simd}, {self.cores} cores)"


@cache
def machine() -> Machine:
    """Return this machine."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    simd, width = next(
        (known for flag, known in _SIMD.items() if features.get(flag)),
        ("none", 16),
    )
    return Machine(
        cpu=_cpu_name(),
        cores=available_cores(),
        simd=simd,
        vector_bytes=width,
        l2_bytes=_l2_bytes(),
        fma_per_cycle=1.0 if simd == "avx512" and binding.get_host_cpu_name() in _HALVES else 2.0,
    )


# Processors that do a 512-bit instruction as two halves.
_HALVES = {"znver4"}

_SIMD = {"avx512f": ("avx512", 64), "avx2": ("avx2", 32), "neon": ("neon", 16)}


def available_cores() -> int:
    """Return the cores that affinity and the cgroup's CPU quota leave to this process."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(affinity, math.ceil(quota)) if quota else affinity)


def _cgroup_quota() -> float | None:
    try:  # version 2
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:  # version 1
        root = Path("/sys/fs/cgroup/cpu")
        limit, period = ((root / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if int(limit) < 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def free_bytes() -> float:
    """Return the bytes of memory that this process can still get; infinity where the system does not tell."""
    free = math.inf
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next((1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), free)
    except (OSError, ValueError):
        pass
    for folder, limit, used, total in _CGROUPS:
        try:
            room = float(Path(folder, limit).read_text()) - float(Path(folder, used).read_text())
            stated = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # there is no such file, or no limit in it but the word "max"
            continue
        # Files that are kept in memory make room for programs.
        free = min(free, room + sum(float(stated.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive")))
    return max(0.0, free)


# Of either version: where the limit stands, what is used of it, and how the sums over its children begin.
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


def _l2_bytes() -> int:
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) << 10
    except (OSError, ValueError):
        return 1 << 20


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
