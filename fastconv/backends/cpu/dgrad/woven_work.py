"""One strided input gradient made ready: the slab of ``dy`` that all phases read, and what each sums of it."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.dgrad.phases import Group, Line, forward_problem, groups_of
from fastconv.backends.cpu.dgrad.shifts import window_problem
from fastconv.backends.cpu.direct import work as direct
from fastconv.backends.cpu.phases import shuffles
from fastconv.backends.cpu.registers import LINE, Simd, whole_lines
from fastconv.problem import AXES, ConvProblem

# Of the second-level cache, what results take until they are woven.
_WAITING = 0.5

# Cycles to bring the phases of a row together, and of a vector of it beside its shuffles; to begin a phase of a block.
_ROW, _WEAVE, _PHASE = 10.0, 3.0, 500.0


class Phase(direct.Work):
    """A phase as the tiles take it: a forward convolution that reads what all phases read.

    Attributes
    ----------
    group : Group
        The phase's lines and taps.
    shift : tuple of int
        How many depths, rows and columns its first window lies behind the first that any phase reads.
    """

    regroups = False
    #: Rows of results begin with a line of the cache each.
    spans_rows = False

    def __init__(self, whole: Work, group: Group) -> None:
        self._slab, self.widths = whole.staged, whole.widths
        self.group = group
        gradient = whole.gradient
        super().__init__(forward_problem(gradient, group, 1, True, True), whole.simd, whole.workers, whole.cache)
        lifted = (Line(1, 1, 1, 0, 1),) * (len(AXES) - gradient.ndim) + group.lines
        self.shift = tuple(
            line.start - line.before + axis.before for line, axis in zip(lifted, whole.axes, strict=True)
        )

    def _needs_slab(self, padded: bool) -> bool:
        return self._slab

    @property
    def _is_read_often(self) -> bool:
        return self._slab

    @property
    def pitch(self) -> int:
        """Bytes of a row of results."""
        return whole_lines(self.output[1] * self.problem.itemsize)


class Work(direct.Work):
    """A gradient as the loops take it; ``problem`` is the forward one, whose slabs they fill."""

    #: Output depths that read one slab.
    deep = 1
    regroups = False

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        self.gradient = problem
        super().__init__(window_problem(problem), vectors, workers, cache)
        # All phases have blocks of as many channels.
        self.widths = (self.tile.vectors,)
        groups = groups_of(problem, together=False)
        #: The phases to which something contributes.
        self.phases = [Phase(self, group) for group in groups if not group.is_empty]
        #: Terms of a block before each phase's, and those of all.
        self.before = [sum(phase.terms for phase in self.phases[:i]) for i in range(len(self.phases))]
        idle = math.prod(problem.kernel_size) > sum(phase.group.taps for phase in self.phases)
        # Taps that meet nothing but padding are packed behind all others, where no phase reads.
        self.terms = sum(phase.terms for phase in self.phases) + int(idle)
        self.tile = self.tile._replace(rows=max(phase.tile.rows for phase in self.phases))
        for phase in self.phases:
            phase.band = self.band

    @cached_property
    def band(self) -> int:
        """Rows that all phases compute of a block before they are woven: the results wait in the cache, too."""
        band, rows = super().band, self.tile.rows
        most = max(rows, int(_WAITING * self.cache) // (self.block * sum(phase.pitch for phase in self.phases)))
        even = -(-band // -(-band // most))
        return band if band <= most else -(-even // rows) * rows

    @cached_property
    def result_bytes(self) -> list[int]:
        """Bytes of a channel of each phase's results."""
        # No multiple of a page, or a vector's channels would contend for one set of a first-level cache.
        return [self.band * phase.pitch + LINE for phase in self.phases]

    @property
    def zeros_bytes(self) -> int:
        """Bytes of a row of zeros, for phases to which nothing contributes."""
        return whole_lines(self.output[1] * self.problem.itemsize)

    @property
    def sums_bytes(self) -> int:
        return max(phase.sums_bytes for phase in self.phases)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a worker's slab, of sums that wait, and of a block's results."""
        return super().scratch_bytes + self.zeros_bytes + self.block * sum(self.result_bytes)

    @property
    def cycles(self) -> float:
        """Cycles on one core: all tiles, the filling of slabs and the weaving."""
        *outer, columns = self.gradient.x_shape
        rows = math.prod(outer)
        weave = _WEAVE + shuffles(self.gradient.stride[-1])
        weaving = rows * (_ROW + weave * columns / self.lanes)
        summing = sum(phase.summing_cycles for phase in self.phases)
        filling = self.axes[0].out * self.bands * self.parts * (direct.UNIT + self.filling_cycles)
        beginning = self.axes[0].out * self.bands * self.blocks * len(self.phases) * _PHASE
        return self.images * self.problem.groups * (summing + filling + beginning) + weaving
