"""The weight gradient of fully connected layers: a sum of few outer products, written once and row after row."""

from __future__ import annotations

from functools import cached_property

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.gemv.work import sees_all
from fastconv.backends.cpu.work import ConvWork, refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Output channels, and vectors of inputs, of a tile: the first whose vectors the layer fills.
_ROWS, _VECTORS = (4, 2, 1), (4, 2, 1)
# Units of work a thread, so that an uneven end costs little; bytes of dw that are worth a thread of their own.
_UNITS, _WORTH = 4, 64 << 10
# Seconds of a call; cycles: of a tile's beginning and end, and of a vector that is stored; before a sum is added to.
_OVERHEAD, _TILE_CYCLES, _STORE_CYCLES, _LATENCY = 2.5e-6, 20, 2, 4
# Bytes a cycle from the second-level cache: the images' inputs are longer than the first can hold.
_L2_RATE = 32


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
        computing = tiles * (n * step + _TILE_CYCLES + _STORE_CYCLES * sums) / machine.hertz
        dw = self.outputs * self.terms * self.size
        images = n * self.terms * self.size
        # Inputs that the cache does not hold come from beyond it for every few rows.
        again = machine.moving(images) * self.outputs / self.rows if images > self.cache // 2 else 0.0
        return _OVERHEAD + (max(computing, machine.moving(dw)) + again) / min(self.workers, self.units)


class GemvWgrad(Algorithm):
    """Lanes run along the inputs, whose gradients lie together in dw: x and dy are read where they are."""

    name = "gemv_wgrad"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("wgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        why = sees_all(problem)
        if why is not None:
            return why
        work = Work.of(problem)
        if work.terms < work.lanes:
            return f"needs inputs that fill a vector of {work.lanes}"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        work = Work.of(problem)
        copied = problem.layout == "channels_last" and work.taps > 1
        return copied * (problem.n + work.outputs) * work.terms * work.size

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return Work.of(problem).seconds(machine)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.gemv.wgrad_run import Runner

        return Plan(problem, self, Runner(Work.of(problem)).run)
