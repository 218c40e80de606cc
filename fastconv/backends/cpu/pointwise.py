"""1x1 convolution as a matrix product in place."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu import threads
from fastconv.backends.cpu.job import FUSED
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.scratch import address
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

_OVERHEAD = 10e-6
_EFFICIENCY = 0.85
_PACK_RATE = 1.5e9  # weights a second
_HERTZ = 3e9


class Pointwise(Algorithm):
    """Pixels in the lanes of vectors: for maps in channels-first order, whose pixels lie together."""

    name = "pointwise"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem) or problem.direction != "fprop":
            return "solves 1x1 convolutions forward only"
        if set(problem.kernel_size) != {1} or set(problem.stride) != {1} or any(map(any, problem.padding)):
            return "needs a kernel of 1, a stride of 1 and no padding"
        if problem.is_local or problem.layout != "channels_first":
            return "needs pixels that lie together and share their weights"
        if problem.dtype != problem.accumulator:
            return f"computes in float32 and float64, not on {problem.dtype}"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = _work(problem)
        return 0 if work.problem.prepacked else work.packed_size * work.problem.itemsize

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = _work(problem)
        packing = 0.0 if work.problem.prepacked else work.packed_size / _PACK_RATE
        moving = problem.bytes / machine.bandwidth
        return _OVERHEAD + packing + max(work.cycles / _HERTZ / _EFFICIENCY, moving) / work.workers

    def plan(self, problem: AnyProblem) -> Plan:
        work = _work(problem)
        return Plan(problem, self, work.run, work.pack)


def _work(problem: AnyProblem) -> _Work:
    assert isinstance(problem, ConvProblem)
    return _Work(problem, machine().threads(), machine().l2_bytes)


class _Work:
    """A problem as the loops take it."""

    def __init__(self, problem: ConvProblem, workers: int, cache: int) -> None:
        self.problem, self.workers, self._cache = problem, workers, cache
        self._simd = simd()
        self._lanes = self._simd.lanes(problem.itemsize)
        self._rows = 8 if self._simd.registers >= 32 else 4
        self._pixels = math.prod(problem.output_size)
        self._inputs, self._outputs = problem.ic // problem.groups, problem.oc // problem.groups
        self._blocks = -(-self._outputs // self._rows)
        self._vectors = min((3, 2, 1), key=self._cycles)

    def _cycles(self, vectors: int) -> float:
        """Two multiply-adds or two loads a cycle, and the loop's own."""
        step = max(self._rows * vectors, self._rows + vectors) / 2 + 1
        tiles = self._blocks * -(-self._pixels // (vectors * self._lanes))
        return self.problem.n * self.problem.groups * tiles * self._inputs * step

    @property
    def cycles(self) -> float:
        return self._cycles(self._vectors)

    @property
    def packed_size(self) -> int:
        """Elements of the packed weight."""
        return self.problem.groups * self._blocks * self._rows * self._inputs

    @cached_property
    def _band(self) -> int:
        """Pixels done with every block of the weight in turn: few if the weight stays in the cache."""
        tile = self._vectors * self._lanes
        if self.packed_size * self.problem.itemsize <= self._cache // 2:
            return tile
        return max(1, self._cache // 2 // (self._inputs * self.problem.itemsize * tile)) * tile

    @cached_property
    def _ready(self) -> tuple[Any, int, int, Any, Any]:
        """The record, the loops and the number of units; packing and its offsets."""
        from fastconv.backends.cpu.packing import pack_kernel
        from fastconv.backends.cpu.pointwise_loops import FIELDS, loops

        p, size = self.problem, self.problem.itemsize
        bands = -(-self._pixels // self._band)
        fields = {
            "xn": p.ic * self._pixels * size, "xg": self._inputs * self._pixels * size, "xc": self._pixels * size,
            "yn": p.oc * self._pixels * size, "yk": self._pixels * size,
            "wblock": self._rows * self._inputs * size, "blocks": self._blocks,
            "nc": self._inputs, "oc": self._outputs, "pixels": self._pixels,
            "groups": p.groups, "bands": bands, "band": self._band,
        }  # fmt: skip
        record = np.array([fields.get(name, 0) for name in FIELDS], np.int64)
        fused = int(self._simd.fma)
        compiled = loops(self._rows, self._vectors, self._lanes, 8 * size, fused)
        offsets = np.arange(self._inputs) * (self._rows * size)
        return record, compiled.address, p.n * p.groups * bands, pack_kernel(8 * size, self._rows), offsets

    @cached_property
    def _places(self) -> list[int]:
        from fastconv.backends.cpu.pointwise_loops import FIELDS

        return [FIELDS.index(name) for name in ("x", "y", "w", "bias", "residual", "activation")]

    def pack(self, w: Any) -> Any:
        """Return the weight block by block, the block's channels side by side."""
        *_, pack, offsets = self._ready
        rows = np.ascontiguousarray(np.require(w, requirements="A").reshape(self.problem.oc, self._inputs))
        packed = np.empty(self.packed_size, w.dtype)
        where = address(offsets)
        pack(
            address(rows), rows.strides[0], self.problem.groups, self._outputs, self._inputs, self._rows,
            address(packed), where, where,
        )  # fmt: skip
        return packed

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        p = self.problem
        x, w, *rest = inputs
        x, *rest = (np.require(a, requirements=("C", "A")) for a in (x, *rest))
        packed = w if p.prepacked else self.pack(w)
        (y,) = outputs
        target = np.require(y, requirements=("C", "A"))
        record, loops, units, *_ = self._ready
        job = record.copy()
        is_fused = p.activation in FUSED
        constants = np.array(FUSED[p.activation], p.dtype) if is_fused and p.activation else None
        arrays = (x, target, packed, rest[0] if p.bias != "none" else None, rest[-1] if p.residual else None, constants)
        for place, array in zip(self._places, arrays, strict=True):
            job[place] = 0 if array is None else address(array)
        threads.run(loops, address(job), units, self.workers)
        if p.activation and not is_fused:
            epilogue.apply(p.activation, target)
        if target is not y:
            y[...] = target
