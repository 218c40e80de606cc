"""Running a direct convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.direct.fill import fill_kernel
from fastconv.backends.cpu.direct.job import FIELDS
from fastconv.backends.cpu.direct.loops import loops
from fastconv.backends.cpu.direct.tile import tiles
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.packing import Packer
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import Sizes

# A register file of so many vectors is small.
_FEW = 16


class DirectRunner(Runner):
    """Runs one problem on arrays of any strides."""

    fields = FIELDS

    def __init__(self, work: Work) -> None:
        problem = work.problem
        super().__init__(problem, work.units, work.workers, work.workers * work.scratch_bytes)
        self.work = work
        # The loops look at these by address.
        self._tables = [source_line(axis) for axis in work.axes]
        self._weight_shape = (problem.oc, work.inputs * work.taps)
        # What no weight goes to must be zero.
        self._is_padded = work.terms > self._weight_shape[1]
        self._packed_bytes = work.packed_size * work.size
        self._packer = Packer(
            work.format, work.lanes, problem.groups, work.outputs, self._weight_shape[1], work.block, work.terms,
            [self._packed_offsets(vectors) for vectors in (work.tile.vectors, work.tile.tail)], work.workers,
        )  # fmt: skip

    def _packed_offsets(self, vectors: int) -> Any:
        """Return where in a packed block each (input channel, kernel position) goes."""
        work = self.work
        chunk, channel = np.divmod(np.arange(work.inputs), work.item)
        terms = (chunk * work.taps * work.item + channel)[:, None] + np.arange(work.taps) * work.item
        return np.ascontiguousarray(terms).ravel() * (vectors * work.lanes * work.size)

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        packed = new(self._packed_bytes)
        if self._is_padded:
            packed[: self._packed_bytes] = 0
        where = address(packed)
        self._packer.pack(w.reshape(self._weight_shape), where)
        return Packed(packed, where)

    def _order(self, y: Sizes) -> str | None:
        """Return in which order the micro-kernel can store: along pixels, along channels, or neither."""
        work = self.work
        size = work.problem.itemsize
        if not work.across and (work.axes[2].out == 1 or y[-1] == size):
            return "first"
        return "last" if y[1] == size or work.problem.oc == 1 else None

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, p, size = self.work, self.work.problem, self.work.size
        order = self._order(y)
        if order is None:
            return None
        depth, rows, cols = work.axes
        xn, xc, xd, xh, xw = x
        yn, yk, yd, yh, yw = y
        if work.across:
            xh, yh = (xn, yn) if work.taps == 1 else (xh, yn)
        f: dict[str, int] = {"xn": xn, "xg": xc * work.inputs, "xc": xc, "xd": xd, "xh": xh, "xw": xw}
        f |= {"yn": yn, "yk": yk, "yd": yd, "yh": yh, "yw": yw}
        f |= {"nc": work.inputs, "oc": work.outputs, "groups": p.groups}
        f |= {"od": depth.out, "oh": work.output[0], "ow": work.output[1]}
        f |= {"blocks": work.blocks, "wblock": work.block * work.terms * size}
        f["wgroup"] = work.packed_size // p.groups * size
        f |= {"bands": work.bands, "band": work.band, "parts": work.parts}
        f |= {"step_d": depth.stride, "step_h": rows.stride}
        if work.staged:
            item = work.item * size
            lh = cols.extent(cols.out) * item
            ld = lh * rows.extent(work.band)
            lc = ld * depth.extent(1)
            start, stop = inside(cols)
            f |= {"fill": fill_kernel(work.lanes, work.format).address, "chunks": work.chunks, "item": item}
            f |= {"lc": lc, "ld": ld, "lh": lh, "kernel_h": rows.extent(1)}
            f |= {"depths": depth.extent(1), "widths": cols.extent(cols.out), "first": start, "last": stop}
            f |= dict(zip(("table_d", "table_h", "table_w"), map(address, self._tables), strict=True))
            f |= {"st": size, "sd": 0, "sh": rows.stride * lh, "sw": cols.stride * item}
            steps = (lc, ld, lh, item)
        else:
            f |= {"st": xc, "sd": depth.stride * xd, "sh": rows.stride * xh, "sw": cols.stride * xw}
            steps = (work.item * xc, xd, xh, xw)
        if work.across and not work.staged:
            f |= {"sh": xn}
        runs, f["run"] = self._runs(steps, f["st"])
        f |= {"runs": address(runs), "nruns": len(runs), "stage": work.stage(f["run"])}
        f |= {"slab_bytes": work.scratch_bytes, "sums": work.slab_bytes(work.band)}
        f |= self._tiles(order == "last", f["st"], f["sw"])
        return f | {"activation": self.activation}, loops().address, runs

    def _tiles(self, last: bool, term: int, pixel: int) -> dict[str, int]:
        """Return what the loops know of the tiles, and who computes them; a term and a pixel are so many bytes long."""
        work, tile = self.work, self.work.tile
        steps = self._literal_steps(term, pixel)
        width = work.lanes * work.size
        f = {"rows": tile.rows, "wide": work.block, "size": work.problem.itemsize}
        f |= {"cut": min(work.output[1], work.cut.full * work.cut.size), "turn": work.turn}
        partial = int(work.outputs % work.lanes > 0)
        for name, vectors, part in (("0", tile.vectors, 0), ("1", tile.tail, partial)):
            if name == "0" and work.blocks == 1:
                continue  # the only block is the last
            f[f"wterm{name}"] = vectors * width
            for kind, (pieces, cols) in zip(("full", "less"), work.cut.spans, strict=True):
                if pieces:
                    form = (tile.rows, cols, vectors, work.lanes, work.format, int(work.simd.fma), int(last), part)
                    f[kind + name] = tiles(*form, *steps).address
        return f

    def _literal_steps(self, term: int, pixel: int) -> tuple[int, int]:
        """Return those bytes of a term and of a pixel that tiles are compiled for, 0 for any.

        Few registers have short tiles, where it matters. Steps that come in every network are enough, so that few tiles
        are compiled: in a slab whole lines of the cache.
        """
        work = self.work
        if work.simd.registers > _FEW:
            return 0, 0
        usual = (LINE, 2 * LINE) if work.staged else (work.size, 2 * work.size)
        return term if term == work.size else 0, pixel if pixel in usual else 0

    def _runs(self, steps: tuple[int, ...], step: int) -> tuple[Any, int]:
        """Return the offsets of runs of terms that lie ``step`` bytes apart, and how many terms a run has."""
        work = self.work
        counts = (work.chunks, *(axis.kernel for axis in work.axes))
        scaled = (steps[0], *(axis.dilation * s for axis, s in zip(work.axes, steps[1:], strict=True)))
        run = work.item
        if scaled[-1] == run * step:  # the columns of the kernel follow one another
            run *= counts[-1]
            counts = (*counts[:-1], 1)
        index = np.indices(counts).reshape(len(counts), -1)
        offsets = sum(i * s for i, s in zip(index, scaled, strict=True))
        return np.ascontiguousarray(offsets, np.int64), run
