"""An input gradient made ready: its phases, the forward convolutions that compute them, and what lies between."""

from __future__ import annotations

import math
from functools import cached_property

from fastconv.backends.cpu.dgrad.phases import forward_problem, groups_of
from fastconv.backends.cpu.formats import format_of
from fastconv.backends.cpu.registers import whole_lines
from fastconv.problem import ConvProblem, Sizes

# Bytes of a block of the weight that is transposed, so that it stays in the first-level cache.
_BLOCK_BYTES = 16 << 10

# Of the caches, how much phases may take that are not yet interleaved.
_SHARE = 1.0


class Work:
    """A problem as its forward convolutions take it.

    Parameters
    ----------
    problem : ConvProblem
        In the direction ``dgrad``.
    lanes : int
        Elements of a vector.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of the L2 caches in which phases lie until they are interleaved.
    views : int
        Whether the forward algorithm takes a weight that is turned by its strides alone: 1 if it has one tap, 2 if it
        has more.
    in_place : bool
        Whether it reads such a weight where it is, and packs nothing.
    """

    def __init__(
        self, problem: ConvProblem, lanes: int, workers: int, cache: int, views: int = 0, in_place: bool = False
    ) -> None:
        self.problem, self.lanes, self.workers, self.cache = problem, lanes, workers, cache
        self.format, self.size, self._views = format_of(problem), problem.itemsize, views
        self._in_place = in_place
        # Columns of several phases lie between one another: no vectors of one phase can be stored.
        self.interleaved = problem.layout == "channels_first" and problem.ndim > 0 and problem.stride[-1] > 1
        groups = groups_of(problem, together=self.interleaved)
        self.groups = [group for group in groups if not group.is_empty]
        self.empty = [group for group in groups if group.is_empty]

    @property
    def whole(self) -> bool:
        """Whether the weight is turned whole, all taps together."""
        return self.is_one and self.groups[0].taps == math.prod(self.problem.kernel_size)

    @property
    def is_one(self) -> bool:
        """Whether one forward convolution computes the whole gradient, where it is to be."""
        return math.prod(self.problem.stride) == 1 and not self.empty

    @property
    def as_view(self) -> bool:
        """Whether the forward convolutions read the weight where it is."""
        if self.problem.groups > 1 or not self._views:
            return False
        if self._views > 1:
            return self.whole
        one_tap = all(group.taps == len(group.members) == 1 for group in self.groups)
        return one_tap and math.prod(self.problem.kernel_size) == 1

    @property
    def is_padded(self) -> bool:
        """Whether the weight is multiplied by zeros that no gradient has."""
        return any(group.is_padded for group in self.groups)

    @property
    def is_straight(self) -> bool:
        """Whether one forward convolution is all there is to do, on the weight as it comes or as it was packed."""
        if not self.is_one or self.is_padded or not (self.as_view or self.problem.prepacked):
            return False
        read = [(line.start, line.size) for line in self.groups[0].lines]
        return read == [(0, size) for size in self.problem.output_size]

    @property
    def image_bytes(self) -> int:
        """Bytes of the phases of one image."""
        positions = sum(math.prod(line.length for line in g.lines) * len(g.members) for g in self.groups)
        return self.problem.ic * positions * self.size

    @cached_property
    def images(self) -> int:
        """Images done together: as many as the caches hold until they are interleaved."""
        n = self.problem.n
        if not self.interleaved:
            return n
        most = int(_SHARE * self.cache) // max(1, self.image_bytes)
        return max(k for k in range(1, n + 1) if n % k == 0 and k <= max(1, most))

    @property
    def rounds(self) -> int:
        return self.problem.n // self.images

    @cached_property
    def forward(self) -> list[ConvProblem]:
        """The convolutions, one a group of phases."""
        prepacked = self.problem.prepacked or self.is_packed_once
        return [forward_problem(self.problem, group, self.images, prepacked, self.is_one) for group in self.groups]

    @property
    def is_packed_once(self) -> bool:
        """Whether the weight is packed before several rounds, which one that is read where it is must never be."""
        return self.rounds > 1 and not (self.as_view and self._in_place)

    @property
    def turns(self) -> bool:
        """Whether every run turns the weight."""
        return not (self.problem.prepacked or self.as_view)

    @cached_property
    def block(self) -> int:
        """Output channels whose weights are turned together."""
        return max(1, min(self.lanes, _BLOCK_BYTES // self._vector_bytes))

    @property
    def room_bytes(self) -> int:
        """Bytes in which a worker turns a block."""
        return self.block * self._vector_bytes

    @property
    def _vector_bytes(self) -> int:
        """Bytes of the filters of a vector of channels."""
        return math.prod(self.problem.kernel_size) * self.lanes * self.size

    @cached_property
    def places(self) -> list[tuple[Sizes, int]]:
        """Shape and bytes of what lies in scratch memory: phases that are not yet interleaved, and weights turned."""
        shapes = [forward.y_shape for forward in self.forward] if self.interleaved else []
        shapes += [forward.w_shape for forward in self.forward] if self.turns else []
        return [(shape, whole_lines(math.prod(shape) * self.size)) for shape in shapes]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight turned round."""
        return sum(math.prod(forward.w_shape) for forward in self.forward) * self.size

    def shape_of(self, index: int) -> Sizes:
        """Return the shape of a group's result: images, groups, members, channels of a group, positions."""
        p, group = self.problem, self.groups[index]
        counts = tuple(line.length for line in group.lines)
        return (self.images, p.groups, len(group.members), p.ic // p.groups, *counts)
