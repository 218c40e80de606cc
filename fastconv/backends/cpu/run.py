"""Running a direct convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.direct_loops import JOB, loops
from fastconv.backends.cpu.job import FUSED, Work
from fastconv.backends.cpu.packing import pack_kernel
from fastconv.problem import AXES


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._records: dict[tuple[Any, ...], Any] = {}
        self._pack = pack_kernel(8 * work.size, work.lanes)
        self._activation = np.array(FUSED.get(work.problem.activation or "", (0, 0, 0)), work.problem.dtype)
        # The loops look at these by address.
        self._offsets = [self._packed_offsets(vectors) for vectors in (work.tile.vectors, work.tile.tail)]
        self._tables = [np.ascontiguousarray(axis.table) for axis in work.axes]

    def _packed_offsets(self, vectors: int) -> Any:
        """Return where in a packed block each (input channel, kernel position) goes: positions are outermost there."""
        work = self.work
        order = np.arange(work.taps * work.inputs).reshape(work.taps, work.inputs).T
        return np.ascontiguousarray(order.ravel() * vectors * work.lanes * work.size)

    def pack(self, w: Any) -> Any:
        """Return the weight as the micro-kernel reads it."""
        work = self.work
        rows = np.require(w, requirements="A").reshape(work.problem.oc, work.inputs * work.taps)
        if rows.strides[1] != work.size:
            rows = np.ascontiguousarray(rows)
        packed = np.empty(work.packed_size, work.problem.dtype)
        self._pack(
            rows.ctypes.data, rows.strides[0], work.problem.groups, work.outputs, rows.shape[1], work.block,
            packed.ctypes.data, *(offsets.ctypes.data for offsets in self._offsets),
        )  # fmt: skip
        return packed

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        work, problem = self.work, self.work.problem
        named = dict(zip((operand.name for operand in problem.inputs), inputs, strict=True))
        x, y = self._lift(np.require(named["x"], requirements="A")), outputs[0]
        packed = named["w"] if problem.prepacked else self.pack(named["w"])
        target = self._lift(y)
        order = _order(target)
        if order is None:
            target = self._lift(np.empty(y.shape, y.dtype))
            order = "first"
        residual = self._lift(named["residual"]) if problem.residual else None
        alike = residual is None or residual.strides == target.strides and residual.flags.aligned
        fused = problem.activation is None or problem.activation in FUSED
        record, tile, _ = self._record(x, target, order)
        job = record.copy()
        slab = scratch.take(work.workers * int(job["slab_bytes"][0])) if job["slab_bytes"][0] else 0
        bias = np.ascontiguousarray(named["bias"]) if problem.bias != "none" else None
        job["x"], job["y"], job["w"], job["slab"] = x.ctypes.data, target.ctypes.data, packed.ctypes.data, slab
        job["bias"] = 0 if bias is None else bias.ctypes.data
        job["residual"] = residual.ctypes.data if residual is not None and alike else 0
        job["activation"] = self._activation.ctypes.data if fused and alike and problem.activation else 0
        threads.run(tile, job.ctypes.data, work.units, work.workers)
        result = target.reshape(y.shape)
        if not alike:
            epilogue.apply(problem.activation, result, None, named["residual"])
        elif not fused:
            epilogue.apply(problem.activation, result)
        if result.ctypes.data != y.ctypes.data:
            y[...] = result

    def _lift(self, array: Any) -> Any:
        """View a map with three spatial axes."""
        return np.expand_dims(array, tuple(range(2, 2 + len(AXES) - self.work.problem.ndim)))

    def _record(self, x: Any, y: Any, order: str) -> tuple[Any, int, Any]:
        key = (x.strides, y.strides)
        known = self._records.get(key)
        if known is None:
            if len(self._records) > 64:
                self._records.clear()
            known = self._records[key] = self._describe(x, y, order)
        return known

    def _describe(self, x: Any, y: Any, order: str) -> tuple[Any, int, Any]:
        """Return the record for arrays of these strides (addresses left open), the compiled loops and the offsets."""
        work, p, size = self.work, self.work.problem, self.work.size
        depth, rows, cols = work.axes
        xn, xc, xd, xh, xw = x.strides
        yn, yk, yd, yh, yw = y.strides
        f: dict[str, int] = {"xn": xn, "xg": xc * work.inputs, "xc": xc, "xd": xd, "xh": xh, "xw": xw}
        f |= {"yn": yn, "yk": yk, "yd": yd, "yh": yh, "yw": yw}
        f |= {"nc": work.inputs, "ntaps": work.taps, "oc": work.outputs, "groups": p.groups}
        f |= {"od": depth.out, "oh": rows.out, "ow": cols.out}
        f |= {"blocks": work.blocks, "wblock": work.block * work.inputs * work.taps * size}
        f |= {"bands": work.bands, "band": work.band, "parts": work.parts}
        f |= {"step_d": depth.stride, "step_h": rows.stride}
        if work.padded:
            together = xc == size and work.inputs > 1
            item = work.inputs * size if together else size
            heights, widths = rows.span(work.band), cols.extent
            lh = widths * item
            ld = lh * heights
            lc = 0 if together else ld * depth.span(1)
            first, last = cols.inside
            f |= {"lines": 1 if together else work.inputs, "item": item, "lc": lc, "ld": ld, "lh": lh}
            f |= {"depths": depth.span(1), "heights": heights, "widths": widths, "first": first, "last": last}
            f |= {"slab_bytes": -(-work.slab_bytes(work.band) // 64) * 64}
            f |= dict(zip(("table_d", "table_h", "table_w"), (t.ctypes.data for t in self._tables), strict=True))
            f |= {"sc": size if together else lc, "sd": 0, "sh": rows.stride * lh, "sw": cols.stride * item}
            steps = (ld, lh, item)
        else:
            f |= {"sc": xc, "sd": depth.stride * xd, "sh": rows.stride * xh, "sw": cols.stride * xw}
            steps = (xd, xh, xw)
        kernel = np.indices(tuple(axis.kernel for axis in work.axes)).reshape(3, -1)
        offsets = sum(k * axis.dilation * step for k, axis, step in zip(kernel, work.axes, steps, strict=True))
        taps = np.ascontiguousarray(offsets, np.int64)
        f["taps"] = taps.ctypes.data
        record = np.zeros(1, JOB)
        for name, value in f.items():
            record[name] = value
        t, simd = work.tile, work.simd
        compiled = loops(t.rows, t.cols, t.vectors, t.tail, work.lanes, 8 * size, int(simd.fma), int(order == "last"))
        return record, compiled.address, taps


def _order(y: Any) -> str | None:
    """Return in which order the micro-kernel can store: along pixels, along channels, or neither."""
    size = y.itemsize
    if y.strides[4] == size or y.shape[4] == 1:
        return "first"
    return "last" if y.strides[1] == size or y.shape[1] == 1 else None
