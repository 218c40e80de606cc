"""Running a 1x1 convolution in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.packing import pack_kernel
from fastconv.backends.cpu.pointwise.loops import FIELDS, loops
from fastconv.backends.cpu.pointwise.work import Work
from fastconv.backends.cpu.scratch import address

# Where the addresses stand that every run fills in.
_PLACES = [FIELDS.index(name) for name in ("x", "y", "w", "bias", "residual", "activation")]


class Runner:
    """Runs one problem; arrays whose pixels do not lie together are copied."""

    def __init__(self, work: Work) -> None:
        self.work = work
        p, size = work.problem, work.problem.itemsize
        bands = -(-work.pixels // work.band)
        fields = {
            "xn": p.ic * work.pixels * size, "xg": work.inputs * work.pixels * size, "xc": work.pixels * size,
            "yn": p.oc * work.pixels * size, "yk": work.pixels * size,
            "wblock": work.rows * work.inputs * size, "blocks": work.blocks,
            "nc": work.inputs, "oc": work.outputs, "pixels": work.pixels,
            "groups": p.groups, "bands": bands, "band": work.band,
        }  # fmt: skip
        self._record = np.array([fields.get(name, 0) for name in FIELDS], np.int64)
        self._loops = loops(work.rows, work.vectors, work.lanes, 8 * size, int(work.simd.fma)).address
        self._units = p.n * p.groups * bands
        self._pack = pack_kernel(8 * size, work.rows)
        self._offsets = np.arange(work.inputs) * (work.rows * size)
        self._constants = np.array(FUSED[p.activation], p.dtype) if p.activation in FUSED else None

    def pack(self, w: Any) -> Any:
        """Return the weight block by block, a block's channels side by side."""
        work = self.work
        rows = np.require(w, requirements=("C", "A")).reshape(work.problem.oc, work.inputs)
        packed = np.empty(work.packed_size, w.dtype)
        offsets = address(self._offsets)
        self._pack(
            address(rows), rows.strides[0], work.problem.groups, work.outputs, work.inputs, work.rows,
            work.inputs, address(packed), offsets, offsets,
        )  # fmt: skip
        return packed

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        p, (y,) = self.work.problem, outputs
        x, w, *rest = inputs
        x, target, *rest = (np.require(a, requirements=("C", "A")) for a in (x, y, *rest))
        packed = w if p.prepacked else self.pack(w)
        bias = rest[0] if p.bias != "none" else None
        residual = rest[-1] if p.residual else None
        job = self._record.copy()
        for place, array in zip(_PLACES, (x, target, packed, bias, residual, self._constants), strict=True):
            job[place] = 0 if array is None else address(array)
        threads.run(self._loops, address(job), self._units, self.work.workers)
        if p.activation is not None and self._constants is None:
            epilogue.apply(p.activation, target)
        if target is not y:
            y[...] = target
