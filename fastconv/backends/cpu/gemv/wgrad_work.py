"""The weight gradient of a fully connected layer made ready: its tile, how the work is cut, what it costs."""

from __future__ import annotations

from functools import cached_property

from fastconv.backends.cpu.work import ConvWork
from fastconv.machine import Machine

# Output channels, and vectors of inputs, of a tile: the first whose vectors the layer fills.
_ROWS, _VECTORS = (4, 2, 1), (4, 2, 1)
# Units of work a thread, so that an uneven end costs little; bytes of dw that are worth a thread of their own.
_UNITS, _WORTH = 4, 64 << 10
# Seconds of a call; cycles: of a tile's beginning and end; of a vector that is stored; before a sum is added to.
_OVERHEAD, _TILE_CYCLES, _STORE_CYCLES, _LATENCY = 2.5e-6, 20, 2, 4
# Bytes a cycle from the second-level cache: the images' inputs are longer than the first can hold.
_L2_RATE = 32
# Bytes of a page of memory, pages that a processor finds without a walk, and cycles of the walks of an image.
_PAGE, _PAGES, _WALK = 4096, 2500, 40


class Work(ConvWork):
    """A problem as the loops take it; see `ConvWork`."""

    @property
    def terms(self) -> int:
        """Elements of a row of dw."""
        return self.inputs * self.taps

    @cached_property
    def rows(self) -> int:
        """Rows of a tile."""
        return next(rows for rows in _ROWS if rows <= self.outputs)

    @cached_property
    def vectors(self) -> int:
        """Vectors of a tile, beside which registers hold as many of the inputs, and a factor."""
        most = self.simd.registers // (self.rows + 1) - 1
        return next(vectors for vectors in _VECTORS if vectors == 1 or vectors <= min(most, self.terms // self.lanes))

    @property
    def panel(self) -> int:
        """Elements of a row, whole tiles, whose inputs take a quarter of the second-level cache."""
        width = self.vectors * self.lanes
        return max(1, self.cache // 4 // (self.problem.n * width * self.size)) * width

    @property
    def share(self) -> int:
        """Rows of a unit of work: whole tiles."""
        worth = self.outputs * self.terms * self.size // _WORTH
        units = max(1, min(_UNITS * self.workers, worth)) if self.workers > 1 else 1
        tiles = -(-self.outputs // self.rows)
        return -(-tiles // units) * self.rows

    @property
    def units(self) -> int:
        return -(-self.outputs // self.share)

    def seconds(self, machine: Machine) -> float:
        """Return what a run should take."""
        n, sums = self.problem.n, self.rows * self.vectors
        tiles = -(-self.outputs // self.rows) * -(-self.terms // (self.vectors * self.lanes))
        inputs = self.vectors * self.simd.vector_bytes
        # The inputs of many images come from the second-level cache for every tile.
        near = n * self.terms * self.size <= self.cache // 32
        step = max(sums / self.simd.fma_per_cycle, 0 if near else inputs / _L2_RATE, _LATENCY)
        if sum(min(n, -(-n * row * self.size // _PAGE)) for row in (self.terms, self.outputs)) > _PAGES:
            step += _WALK
        # A tile is stored while the next is computed.
        computing = tiles * (max(n * step, _STORE_CYCLES * sums) + _TILE_CYCLES) / machine.hertz
        dw = self.outputs * self.terms * self.size
        return _OVERHEAD + max(computing, machine.moving(dw)) / min(self.workers, self.units)
