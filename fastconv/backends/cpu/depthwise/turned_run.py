"""Running a depthwise convolution with planes in the lanes: addresses into the record of integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastconv.backends.cpu.axes import are_contiguous
from fastconv.backends.cpu.depthwise.run import kernel_groups
from fastconv.backends.cpu.depthwise.turned_loops import FIELDS, loops
from fastconv.backends.cpu.depthwise.turned_work import Work
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.packing import Packer
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.problem import Sizes


class TurnedRunner(Runner):
    """Runs one problem on arrays whose planes are in one piece each, others by way of copies."""

    fields = FIELDS

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.slab_bytes)
        self.work = work
        turned, p, bits = work.turned, work.problem, 8 * work.size
        # The stride of rows is a literal only where rows are shared.
        shared = (turned.kernel_rows, turned.height.stride if turned.kernel_rows > 1 else 1)
        self._loops = loops(
            turned.tile.rows, turned.tile.vectors, work.lanes, bits, int(work.simd.fma), *shared
        ).address
        self._groups = kernel_groups(turned)
        self._steps = np.arange(turned.width.kernel, dtype=np.int64) * (turned.width.dilation * work.item)
        self._places, self._holes = self._make_places()
        lines = work.patterns * work.lanes if work.folded else p.ic
        self._packer = Packer(
            bits, work.lanes, 1, lines, work.terms, work.lanes, work.terms,
            [np.arange(work.terms) * work.item] * 2, work.workers,
        )  # fmt: skip
        self._channels = np.arange(lines) % p.ic
        self._known = self._fields()

    def _make_places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the pixels go that a band reads, and where between them padding stays."""
        work = self.work
        piece = np.zeros(1, np.int64)
        for axis, pitch in zip(work.inner, (work.padded[1], 1)[-len(work.inner) :], strict=True):
            piece = np.add.outer(piece, (np.arange(axis.size) + axis.before) * pitch).ravel()
        pieces = np.arange(work.outer.extent(work.band)) * work.piece
        holes = np.setdiff1d(np.arange(work.piece), piece)
        places, holes = (np.add.outer(pieces, within).ravel() * work.item for within in (piece, holes))
        return places, holes

    def _fields(self) -> dict[str, int]:
        work, p, turned = self.work, self.problem, self.work.turned
        depth, height, width = work.axes
        f = {"planes": work.planes, "blocks": work.blocks, "patterns": work.patterns}
        f |= {"inputs": p.ic, "multiplier": work.multiplier}
        f |= {"outer": work.outer.size, "stride_o": work.outer.stride, "before_o": work.outer.before}
        f |= {"outers": work.outer.extent(work.band), "xo": work.piece * work.item}
        f |= {"inner": work.inner_size, "inner_out": work.inner_out}
        f |= {"bands": work.bands, "band": work.band, "outs": work.outer.out}
        f |= {"depths": work.band if work.deep else 1, "rows": height.out if work.deep else work.band, "ow": width.out}
        f |= {"stride_d": depth.stride, "stride": height.stride, "stride_w": width.stride}
        f |= {"groups": address(self._groups), "count": len(self._groups), "steps": address(self._steps)}
        f |= {"kernel": width.kernel, "spread": width.dilation, "places": address(self._places)}
        f |= {"hole": address(self._holes), "holes": len(self._holes)}
        step = work.item
        f |= {"wstep": step, "wrow": width.kernel * step, "wgroup": turned.kernel_rows * width.kernel * step}
        f |= {"wturn": work.taps * step, "wblock": work.terms * step}
        f |= {"xh": work.padded[1] * step, "xd": math.prod(work.padded) * step}
        f |= {"yh": width.out * step, "yd": height.out * width.out * step}
        f |= {"slab_bytes": work.slab_bytes, "biases": work.input_bytes, "sums": work.input_bytes + step}
        return f | {"activation": self.activation}

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight with channels side by side, in as many vectors as there are patterns."""
        work = self.work
        rows = ordered(w, work.workers).reshape(self.problem.ic, work.terms)
        if work.folded:
            rows = rows.take(self._channels, axis=0)
        packed = new(work.packed_size * work.size)
        where = address(packed)
        self._packer.pack(rows, where)
        return Packed(packed, where)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, p = self.work, self.problem
        dense = are_contiguous(x[2:], tuple(axis.size for axis in work.axes), work.size)
        dense &= are_contiguous(y[2:], tuple(axis.out for axis in work.axes), work.size)
        if work.folded:
            dense &= x[0] == p.ic * x[1] and y[0] == p.oc * y[1]
        if not dense:
            return None
        return self._known | {"xn": x[0], "xc": x[1], "yn": y[0], "yk": y[1]}, self._loops, None
