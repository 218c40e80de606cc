"""Running a convolution with columns in the lanes: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends.cpu.axes import are_contiguous
from fastconv.backends.cpu.dealing import dealing
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.phases import lines_read
from fastconv.backends.cpu.planes.loops import FIELDS, loops, pack_kernel
from fastconv.backends.cpu.planes.work import Work
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import Sizes


class PlanesRunner(Runner):
    """Runs one problem on arrays of any strides; those that are not contiguous are copied."""

    fields = FIELDS

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.slab_bytes)
        self.work = work
        size = work.size
        self._tables = [lines_read(work.depth), lines_read(work.height), source_line(work.width)]
        self._deal = dealing(work.phases, work.lanes, 8 * size) if work.phases > 1 else None
        self._terms = self._offsets()
        self._pack = pack_kernel(8 * size)
        compiled = loops(work.rows, work.vectors, work.lanes, 8 * size, int(work.simd.fma))
        self._loops = compiled.address
        self._known = self._fields()

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
        f |= dict(zip(("first", "last"), work.together, strict=True))
        f["deal"] = self._deal.address if self._deal else 0
        f |= {"step_d": depth.stride, "step_h": height.stride, "step_w": width.stride}
        f |= dict(zip(("table_d", "table_h", "table_w"), map(address, self._tables), strict=True))
        return f | {"activation": self.activation}

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        axes = self.work.axes
        dense = all(
            are_contiguous(strides, (count, *sizes), self.work.size)
            for strides, count, sizes in (
                (x[1:], self.problem.ic, [axis.size for axis in axes]),
                (y[1:], self.problem.oc, [axis.out for axis in axes]),
            )
        )
        return (self._known | {"xn": x[0], "yn": y[0]}, self._loops, None) if dense else None

    def _laid_out(self, shape: Sizes) -> Any:
        return np.empty(shape, self.problem.dtype)

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight block by block, a block's channels side by side."""
        work = self.work
        rows = ordered(w, work.workers)
        packed = new(work.packed_size * work.size)
        where = address(packed)
        self._pack(address(rows), work.terms, work.problem.oc, work.rows, where)
        return Packed(packed, where)
