"""Running a locally connected layer: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.exponential import Finish
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.local.batch_loops import forward_batch, input_gradient_batch
from fastconv.backends.cpu.local.job import FIELDS
from fastconv.backends.cpu.local.loops import forward, input_gradient, weight_gradient
from fastconv.backends.cpu.local.work import Work
from fastconv.backends.cpu.scratch import address, aligned, contiguous
from fastconv.geometry import source_line

_PLACE = {name: FIELDS.index(name) for name in FIELDS}


class Runner:
    """Runs one problem on arrays of any strides; a weight that is not contiguous is copied."""

    def __init__(self, work: Work) -> None:
        self.work, p = work, work.problem
        self._tables = [np.ascontiguousarray(source_line(axis), np.int64) for axis in (work.rows, work.cols)]
        self._constants = np.array(FUSED.get(p.activation or "", (0, 0, 0)), p.accumulator)
        self._finish = Finish(p.activation, work.workers)
        self._offsets = self._window()
        self._task = self._compile().address
        fields = self._fields() | work.places
        self._record = record_of(FIELDS, fields)

    def _compile(self) -> Any:
        """Return the compiled loops."""
        work, tile = self.work, self.work.tile
        last = (work.lanes, work.format, int(work.simd.fma))
        if work.direction == "wgrad":
            return weight_gradient(tile.rows, tile.across, *last)
        if work.vectors and work.direction == "fprop":
            return forward_batch(tile.rows, tile.across, *last)
        if work.vectors:
            return input_gradient_batch(tile.rows, tile.tail, tile.across, *last)
        # No tile takes more images than the smallest block has.
        images = min(tile.across, work.problem.n % work.images or work.images)
        if work.direction == "fprop":
            return forward(tile.rows, images, *last)
        return input_gradient(tile.rows, tile.tail, images, *last)

    def _window(self) -> Any:
        """Return where in the slab of an input's gradient the elements of a window are."""
        work = self.work
        c, r, s = np.indices((work.channels, work.rows.kernel, work.cols.kernel)).reshape(3, -1)
        lines = c * work.heights + r * work.rows.dilation
        return np.ascontiguousarray(lines * work.line + s * (work.cols.dilation * work.pixel), np.int64)

    def _fields(self) -> dict[str, int]:
        work, p = self.work, self.work.problem
        start, stop = inside(work.cols)
        f = {"images": p.n, "channels": work.inputs, "groups": p.groups}
        f |= {"oc": work.outputs, "oh": work.rows.out, "ow": work.cols.out}
        f |= {"iblock": work.images, "cblock": work.channels, "parts": work.parts}
        f["iblocks"], f["cblocks"] = work.blocks
        for name, axis in (("h", work.rows), ("w", work.cols)):
            f |= {f"kernel_{name}": axis.kernel, f"dilation_{name}": axis.dilation, f"step_{name}": axis.stride}
            f[f"size_{name}"] = axis.size
        f |= {"heights": work.heights, "widths": work.widths, "line": work.line, "patch": work.patch}
        f |= {"pixel": work.pixel, "offsets": address(self._offsets)}
        f |= {"first": start, "stop": stop, "top": work.rows.before, "left": work.cols.before}
        f |= {"table_h": address(self._tables[0]), "table_w": address(self._tables[1])}
        f["wrow"] = work.inputs * work.taps * p.itemsize
        f["wposition"] = p.oc * f["wrow"]
        f["activation"] = address(self._constants) if p.activation in FUSED else 0
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        getattr(self, f"_{self.work.direction}")(inputs, outputs[0])

    def _fprop(self, inputs: tuple[Any, ...], y: Any) -> None:
        p = self.work.problem
        x, w, *rest = inputs
        size = p.itemsize
        residual = rest[-1] if p.residual else None
        apart = residual is not None and (residual.strides != y.strides or not residual.flags.aligned)
        if apart or not y.flags.aligned or size not in (y.strides[1], y.strides[3]):
            result = np.empty(y.shape, y.dtype)
            if residual is not None:
                rest[-1] = residual.copy(order="C")
            self._fprop((x, w, *rest), result)
            y[...] = result
            return
        fields = {"last": int(y.strides[3] != size)}
        if p.bias != "none":
            bias = contiguous(rest[0])
            step = p.oc * size if p.bias == "position" else 0
            fields |= {"bias": address(bias), "bk": size, "bh": self.work.cols.out * step, "bq": step}
        if residual is not None:
            fields["residual"] = address(residual)
        self._launch(x, y, contiguous(w), fields)
        self._finish(y)

    def _dgrad(self, inputs: tuple[Any, ...], dx: Any) -> None:
        dy, w = inputs
        target = dx if dx.flags.aligned else np.empty(dx.shape, dx.dtype)
        self._launch(target, dy, contiguous(w), {})
        if target is not dx:
            dx[...] = target

    def _wgrad(self, inputs: tuple[Any, ...], dw: Any) -> None:
        x, dy = inputs
        target = dw if dw.flags.c_contiguous and dw.flags.aligned else np.empty(dw.shape, dw.dtype)
        self._launch(x, dy, target, {})
        if target is not dw:
            dw[...] = target

    def _launch(self, x: Any, y: Any, w: Any, fields: dict[str, int]) -> None:
        """Run the loops; ``x``, ``y`` and ``w`` stand for the gradients of the problem's direction, too."""
        x, y = aligned(x), aligned(y)
        job = self._record.copy()
        fields |= {"x": address(x), "y": address(y), "w": address(w)}
        fields |= dict(zip(("xn", "xc", "xh", "xw"), x.strides, strict=True))
        fields |= dict(zip(("yn", "yk", "yh", "yw"), y.strides, strict=True))
        fields["scratch"] = scratch.take(self.work.workers * self.work.scratch_bytes)
        for name, value in fields.items():
            job[_PLACE[name]] = value
        threads.run(self._task, address(job), self.work.units, self.work.workers)
