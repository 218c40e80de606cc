"""One depthwise convolution made ready: which lanes, which tile, how large a slab."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.registers import Simd
from fastconv.problem import ConvProblem

# Bytes of a slab that stays in the first-level cache beside what is stored.
_SLAB = 24 << 10
# Units of work a thread, so that an uneven end costs little.
_UNITS = 4
_LINE = 64


class Work:
    """A problem as the loops take it.

    Parameters
    ----------
    problem : ConvProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.
    last : bool, optional
        Whether lanes are channels; by default if the problem says channels-last, and they can be.
    """

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int, last: bool | None = None) -> None:
        self.problem, self.simd, self.workers, self.cache = problem, vectors, workers, cache
        self.size = problem.itemsize
        self.lanes = vectors.lanes(self.size)
        _, self.height, self.width = lifted_axes(problem)
        self.multiplier = problem.oc // problem.groups
        self.taps = math.prod(problem.kernel_size)
        self.last = problem.layout == "channels_last" and self.multiplier == 1 if last is None else last
        self.item = self.size * problem.ic if self.last else self.size
        self.phases = 1 if self.last else self.width.stride
        # What the vectors run along, and what the rows of a tile run along.
        self.along, self.across = (problem.ic, self.width.out) if self.last else (self.width.out, self.height.out)
        needed = -(-self.along // self.lanes)
        self.vectors = min(range(1, min(needed, 4) + 1), key=lambda v: (-(-needed // v) * v, -v))
        # Half of the registers hold sums; the others what is multiplied.
        self.rows = max(1, min(self.across, vectors.registers // 2 // self.vectors))

    @property
    def phase(self) -> int:
        """Bytes of a phase of a slab's row."""
        return -(-self.width.extent(self.width.out) // self.phases) * self.item

    @property
    def row_bytes(self) -> int:
        return self.phase * self.phases

    @cached_property
    def band(self) -> int:
        """Output rows done together: few enough for the cache, and for every worker to get some."""
        least = 1 if self.last else self.rows
        limit = self.cache // 2 if self.last else _SLAB
        outer = self.problem.n * (1 if self.last else self.problem.ic)
        wanted = -(-_UNITS * self.workers // outer) if self.workers > 1 else 1
        band = max(least, -(-self.height.out // wanted))
        while band > least and self.height.extent(band) * self.row_bytes > limit:
            band = max(least, band - least)
        # Even bands: as few rows as may be are done twice.
        return max(least, -(-self.height.out // -(-self.height.out // band)))

    @property
    def bands(self) -> int:
        return -(-self.height.out // self.band)

    @property
    def units(self) -> int:
        return self.problem.n * self.bands * (1 if self.last else self.problem.ic)

    @property
    def slab_bytes(self) -> int:
        """Bytes of what a band reads, and what lies behind, which lanes that are not stored read."""
        beyond = self.vectors * self.lanes * self.size
        return -(-(self.height.extent(self.band) * self.row_bytes + beyond) // _LINE) * _LINE

    @property
    def packed_width(self) -> int:
        """Channels of a tap of the packed weight, where lanes are channels."""
        step = self.vectors * self.lanes
        return -(-self.along // step) * step

    @property
    def packed_bytes(self) -> int:
        return self.taps * self.packed_width * self.size if self.last else 0

    def tap_offset(self, row: int, col: int) -> int:
        """Return where in a slab the first output's kernel position lies, in bytes."""
        down, right = row * self.height.dilation, col * self.width.dilation
        return down * self.row_bytes + right % self.phases * self.phase + right // self.phases * self.item

    @property
    def cycles(self) -> float:
        """Cycles on one core: a load and a multiplication a tap, and the copy into the slab."""
        p = self.problem
        tiles = -(-self.along // (self.vectors * self.lanes)) * self.vectors
        outer = p.n * (1 if self.last else p.oc)
        positions = self.height.out * (1 if not self.last else self.width.out)
        filled = (
            p.n * p.ic * self.bands * self.height.extent(self.band) * self.width.extent(self.width.out) / self.lanes
        )
        fill = filled * (1 if self.phases <= 2 else self.lanes)
        return outer * positions * tiles * (self.taps + 1) + fill
