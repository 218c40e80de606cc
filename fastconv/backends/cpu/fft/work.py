"""A convolution cut for Fourier transforms: how large tiles are, and how many groups go together."""

from __future__ import annotations

import itertools
import math
from functools import cached_property, lru_cache

from fastconv.geometry import Axis, axes_of
from fastconv.problem import ConvProblem, Sizes

_COMPLEX = 16  # bytes
# Scratch of a unit of work, in L2 caches; NumPy holds about this many arrays of a tile at a time.
_CACHES, _COPIES = 2, 3


@lru_cache(maxsize=4096)
def fast_length(least: int) -> int:
    """Return the smallest length, ``least`` at least, that has no prime factors above 5."""
    best = 1 << (least - 1).bit_length()
    for threes, fives in itertools.product(range(20), range(14)):
        odd = 3**threes * 5**fives
        if odd < best:
            best = min(best, odd << max(0, -(-least // odd) - 1).bit_length())
    return best


class Work:
    """A problem as overlapping tiles.

    Parameters
    ----------
    problem : ConvProblem
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.
    """

    def __init__(self, problem: ConvProblem, workers: int, cache: int) -> None:
        self.problem, self.workers = problem, workers
        self._room = _CACHES * cache
        self.axes: tuple[Axis, ...] = tuple(axis for axis in axes_of(problem) if isinstance(axis, Axis))
        self.inputs, self.outputs = problem.ic // problem.groups, problem.oc // problem.groups

    @cached_property
    def lengths(self) -> Sizes:
        """The lengths of the transforms along every axis: those that cost least."""
        choices = itertools.product(*map(self._lengths, self.axes))
        return min(choices, key=self._cost)

    def _lengths(self, axis: Axis) -> list[int]:
        reach = axis.extent(1)
        whole = fast_length(axis.extent(axis.out))
        return sorted({min(whole, fast_length(reach * times)) for times in (2, 3, 4, 6, 8, 16)} | {whole})

    def _cost(self, lengths: Sizes) -> float:
        tiles = math.prod(self._tiles(axis, length) for axis, length in zip(self.axes, lengths, strict=True))
        fits = self._bytes(lengths, 1) <= self._room
        bins = math.prod(lengths)
        channels = self.inputs + self.outputs
        work = channels * 2.5 * bins * math.log2(max(2, bins)) + 4 * bins * self.inputs * self.outputs
        return tiles * work * (1.0 if fits else 4.0)

    def _tiles(self, axis: Axis, length: int) -> int:
        return -(-axis.out // self.outputs_of(axis, length))

    def outputs_of(self, axis: Axis, length: int) -> int:
        """Return how many outputs along an axis a transform of a length gives."""
        return (length - axis.extent(1)) // axis.stride + 1

    def _bytes(self, lengths: Sizes, groups: int) -> int:
        return _COPIES * groups * (self.inputs + self.outputs) * self._bins(lengths) * _COMPLEX

    @staticmethod
    def _bins(lengths: Sizes) -> int:
        return math.prod(lengths[:-1]) * (lengths[-1] // 2 + 1)

    @property
    def bins(self) -> int:
        """Complex numbers of a transform of real numbers."""
        return self._bins(self.lengths)

    @cached_property
    def groups(self) -> int:
        """Groups of channels done together."""
        most = max(1, self._room // self._bytes(self.lengths, 1))
        least_units = 2 * self.workers if self.workers > 1 else 1
        tiles = self.problem.n * math.prod(self.tiles)
        wanted = -(-least_units // tiles)
        return max(1, min(most, -(-self.problem.groups // wanted)))

    @property
    def tiles(self) -> Sizes:
        """Tiles along every axis."""
        return tuple(self._tiles(axis, length) for axis, length in zip(self.axes, self.lengths, strict=True))

    @property
    def units(self) -> int:
        return self.problem.n * math.prod(self.tiles) * -(-self.problem.groups // self.groups)

    @property
    def unit_bytes(self) -> int:
        """Scratch of a unit of work."""
        return self._bytes(self.lengths, self.groups)

    @property
    def packed_bytes(self) -> int:
        return self.problem.oc * self.inputs * self.bins * _COMPLEX

    @property
    def _transform(self) -> float:
        size = math.prod(self.lengths)
        return 2.5 * size * math.log2(max(2, size))

    @property
    def transforms(self) -> float:
        """Operations of all transforms."""
        return self.problem.n * math.prod(self.tiles) * (self.problem.ic + self.problem.oc) * self._transform

    @property
    def products(self) -> float:
        """Operations of all products."""
        return 8.0 * self.problem.n * math.prod(self.tiles) * self.problem.oc * self.inputs * self.bins

    @property
    def copied(self) -> float:
        """Bytes that are copied in and out of tiles."""
        size = 8 * math.prod(self.lengths)
        return self.problem.n * math.prod(self.tiles) * (self.problem.ic + self.problem.oc) * size

    @property
    def packing(self) -> float:
        """Operations of transforming the weight."""
        return self.problem.oc * self.inputs * self._transform
