"""A convolution as a matrix product: its sizes, in the terms of `kernels/tensorcore.cu`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastconv.backends.cuda.geometry import Phase, phases
from fastconv.backends.cuda.tensorcore.packing import CHUNK_BYTES
from fastconv.problem import ConvProblem


class Size(NamedTuple):
    """Rows, columns, and steps of the reduction of one product."""

    rows: int
    columns: int
    steps: int


@dataclass(frozen=True)
class Product:
    """The matrix product of one problem: a product a group, and a phase."""

    problem: ConvProblem

    @cached_property
    def phases(self) -> list[Phase]:
        return phases(self.problem)

    @property
    def is_wgrad(self) -> bool:
        return self.problem.direction == "wgrad"

    @property
    def count(self) -> int:
        """Elements of a chunk."""
        return CHUNK_BYTES // self.problem.itemsize

    @property
    def axes(self) -> int:
        """Spatial axes that the kernel is compiled for."""
        return 3 if self.problem.ndim == 3 else 2

    @property
    def channels(self) -> int:
        """Channels of the gathered array, a group."""
        p = self.problem
        return (p.oc if p.direction == "dgrad" else p.ic) // p.groups

    @property
    def results(self) -> int:
        """Channels of the result, a group; of dy in a weight gradient."""
        p = self.problem
        return (p.ic if p.direction == "dgrad" else p.oc) // p.groups

    @property
    def chunks(self) -> int:
        """Chunks of the gathered array's channels, a group."""
        return -(-self.channels // self.count)

    def taps(self, phase: Phase) -> int:
        return math.prod(axis.taps for axis in phase)

    def size(self, phase: Phase, images: int) -> Size:
        """Return the size of a phase's product for some images, a group."""
        positions = images * math.prod(axis.positions for axis in phase)
        taps = self.taps(phase) * self.chunks * self.count
        return Size(self.results, taps, positions) if self.is_wgrad else Size(positions, self.results, taps)

    @property
    def line(self) -> int:
        """Sums that a row of the result takes as scratch."""
        return -(-self.size(self.phases[0], 1).columns // 8) * 8
