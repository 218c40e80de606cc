"""Running a depthwise convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.depthwise.job import FIELDS
from fastconv.backends.cpu.depthwise.loops import channels, columns
from fastconv.backends.cpu.depthwise.slab import filling
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.packing import Packer
from fastconv.backends.cpu.phases import lines_read
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import AXES, Sizes


def kernel_groups(work: Work) -> NDArray[np.int64]:
    """Return depth and row of the groups of kernel rows that are done together."""
    depth, height, _ = work.axes
    groups = [
        (d * depth.dilation, r * height.dilation)
        for d in range(depth.kernel)
        for r in range(0, height.kernel, work.kernel_rows)
    ]
    return np.array(groups, np.int64)


class DepthwiseRunner(Runner):
    """Runs one problem on arrays of any strides.

    Parameters
    ----------
    work : Work
    backwards : bool, optional
        Whether kernels are read from their last position to the first, which is where lanes are columns.
    """

    fields = FIELDS

    def __init__(self, work: Work, backwards: bool = False) -> None:
        self._backwards = backwards
        super().__init__(work.problem, work.units, work.workers, work.workers * work.slab_bytes)
        self.work = work
        tile = work.tile
        form = (tile.rows, tile.vectors, tile.lanes, 8 * work.size, int(work.simd.fma))
        # The stride of rows is a literal only where rows are shared.
        shared = (work.kernel_rows, work.height.stride if work.kernel_rows > 1 else 1)
        if work.last:
            self._loops = channels(*form, *shared, int(work.slab)).address
        else:
            self._loops = columns(*form, *shared, work.phases, int(work.slab)).address
        self._make_tables()
        self._fields = self._known()
        if work.last:
            self._packer = Packer(
                8 * work.size, tile.lanes, 1, work.problem.ic, work.taps, tile.lanes, work.taps,
                [np.arange(work.taps) * (tile.lanes * work.size)] * 2, work.workers,
            )  # fmt: skip

    def _make_tables(self) -> None:
        """Make what the loops look at by address."""
        work = self.work
        _, height, width = work.axes
        self._groups = kernel_groups(work)
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        if work.slab:
            self._lines = [lines_read(height), source_line(width)]
            extent = width.extent(width.out)
            self._places = np.array([work.slab_offset(col) for col in range(extent)], np.int64)

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.problem
        depth, height, width = work.axes
        f = {"channels": p.oc, "inputs": p.ic, "multiplier": work.multiplier}
        f |= {"blocks": work.blocks, "parts": work.parts}
        f |= {"od": depth.out, "oh": height.out, "ow": width.out, "bands": work.bands, "band": work.band}
        f |= {"depths": depth.size, "heights": height.size, "widths": width.size}
        f |= {"stride_d": depth.stride, "stride": height.stride, "stride_w": width.stride}
        f |= {"before_d": depth.before, "before_h": height.before, "before_w": width.before}
        f |= {"reach_" + name: axis.extent(1) - 1 for name, axis in zip(AXES, work.axes, strict=True)}
        f |= {"groups": address(self._groups), "count": len(self._groups)}
        f |= {"kernel": width.kernel, "spread": width.dilation, "zeros": address(self._zeros)}
        step = (work.tile.lanes if work.last else 1) * work.size
        f["wblock"] = work.taps * step
        step = -step if self._backwards else step
        f |= {"wstep": step, "wrow": width.kernel * step, "wgroup": work.kernel_rows * width.kernel * step}
        f |= {"far": int(work.far), "activation": self.activation}
        if work.slab:
            f |= self._known_of_slab()
        return f

    def _known_of_slab(self) -> dict[str, int]:
        """Return the fields of a slab, which has its padding inside."""
        work = self.work
        first, last = inside(work.width)
        ways = work.slab_phases if work.dealt else 0
        f = {"slab_bytes": work.slab_bytes, "slab_rows": work.height.extent(work.band), "slab_row": work.row_bytes}
        f |= {"slab_cols": len(self._places), "item": work.item, "first": first, "last": last}
        self._filling = filling(ways, work.simd.lanes(work.size), 8 * work.size)
        f |= {"fill": self._filling.address, "place": work.slab_offset(first), "phase": work.phase_bytes}
        f["clean"] = int(work.clean)
        f |= {"place_w": address(self._places)}
        f |= {"table_h": address(self._lines[0]), "table_w": address(self._lines[1])}
        return f | {"before_d": 0, "before_w": 0, "depths": 1}

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        work = self.work
        if not work.last:
            rows = ordered(w, work.workers, new)
            last = (work.taps - 1) * work.size if self._backwards else 0
            return Packed(rows, address(rows) + last)
        packed = new(work.packed_size * work.size)
        where = address(packed)
        self._packer.pack(w, where)
        return Packed(packed, where)

    def _laid_out(self, shape: Sizes) -> Any:
        if self.work.last:
            return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), self.problem.dtype), -1, 1)
        return np.empty(shape, self.problem.dtype)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work = self.work
        # Lanes are neighbours, be they channels or columns.
        if any(strides[1 if work.last else -1] != work.size for strides in (x, y)):
            return None
        f = self._fields | dict(zip(("xn", "xc", "xd", "xh", "xw"), x, strict=True))
        f |= dict(zip(("yn", "yk", "yd", "yh", "yw"), y, strict=True))
        cols = [s * work.width.dilation for s in range(work.width.kernel)]
        steps = np.array([work.slab_offset(col) if work.slab else col * x[-1] for col in cols], np.int64)
        f["steps"] = address(steps)
        return f, self._loops, steps
