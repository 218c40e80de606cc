"""Running a convolution with columns in the lanes: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.planes.loops import FIELDS, loops, pack_kernel
from fastconv.backends.cpu.planes.work import Work
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line

_PLACES = [FIELDS.index(name) for name in ("x", "y", "w", "bias", "residual", "activation")]
_SLAB = FIELDS.index("slab")


class Runner:
    """Runs one problem on arrays of any strides; those that are not contiguous are copied."""

    def __init__(self, work: Work) -> None:
        self.work = work
        p, size = work.problem, work.size
        self._tables = [source_line(axis) for axis in work.axes]
        self._terms = self._offsets()
        self._pack = pack_kernel(8 * size)
        self._constants = np.array(FUSED[p.activation], p.dtype) if p.activation in FUSED else None
        compiled = loops(work.rows, work.vectors, work.lanes, 8 * size, int(work.simd.fma))
        self._loops = compiled.address
        self._record = np.array([self._fields().get(name, 0) for name in FIELDS], np.int64)

    def _offsets(self) -> Any:
        """Return where in a slab the columns of each (input channel, kernel position) begin."""
        work = self.work
        channel, depth, row = work.steps(work.band)
        counts = (work.problem.ic, *(axis.kernel for axis in work.axes))
        c, d, h, w = np.indices(counts).reshape(4, -1)
        column = w * work.width.dilation
        phase = work.columns * work.size
        lines = c * channel + d * work.depth.dilation * depth + h * work.height.dilation * row
        offsets = lines + column % work.phases * phase + column // work.phases * work.size
        return np.ascontiguousarray(offsets, np.int64)

    def _fields(self) -> dict[str, int]:
        work, p, size = self.work, self.work.problem, self.work.size
        depth, height, width = work.axes
        f = {"xh": width.size * size, "xd": width.size * height.size * size}
        f |= {"xc": depth.size * f["xd"], "xn": p.ic * depth.size * f["xd"]}
        f |= {"yh": width.out * size, "yd": width.out * height.out * size}
        f |= {"yk": depth.out * f["yd"], "yn": p.oc * depth.out * f["yd"]}
        f |= {"wblock": work.rows * work.terms * size, "blocks": work.blocks(work.rows)}
        f |= {"terms": address(self._terms), "nterms": work.terms}
        f |= {"nc": p.ic, "oc": p.oc, "od": depth.out, "oh": height.out, "ow": width.out}
        f |= {"span": work.span, "bands": work.bands, "band": work.band, "slab_bytes": work.slab_bytes}
        f |= dict(zip(("lc", "ld", "lh"), work.steps(work.band), strict=True))
        f |= {"phase": work.columns * size, "depths": depth.extent(1), "kernel_h": height.extent(1)}
        f |= {"widths": width.extent(width.out)}
        f |= dict(zip(("first", "last"), inside(width), strict=True))
        f |= {"step_d": depth.stride, "step_h": height.stride, "step_w": width.stride}
        return f | dict(zip(("table_d", "table_h", "table_w"), map(address, self._tables), strict=True))

    def pack(self, w: Any) -> Any:
        """Return the weight block by block, a block's channels side by side."""
        work = self.work
        rows = np.require(w, requirements=("C", "A"))
        packed = np.empty(work.packed_size, w.dtype)
        self._pack(address(rows), work.terms, work.problem.oc, work.rows, address(packed))
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
        job[_SLAB] = scratch.take(self.work.workers * self.work.slab_bytes)
        threads.run(self._loops, address(job), self.work.units, self.work.workers)
        if p.activation is not None and self._constants is None:
            epilogue.apply(p.activation, target)
        if target is not y:
            y[...] = target
