"""Running a depthwise convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.depthwise.loops import FIELDS, channels, columns
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64

# Where the addresses stand that every run fills in.
_X, _Y, _W, _BIAS, _SLAB = (FIELDS.index(name) for name in ("x", "y", "w", "bias", "slab"))


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        fused = self.problem.activation in FUSED and not self.problem.residual
        self._constants = np.array(FUSED[self.problem.activation or ""], self.problem.dtype) if fused else None
        kernel = (1, *self.problem.kernel_size)[-2:]
        self._taps = np.array([work.tap_offset(r, c) for r in range(kernel[0]) for c in range(kernel[1])], np.int64)
        self._tables = [source_line(axis) for axis in (work.height, work.width)]
        width = np.arange(work.width.extent(work.width.out))
        self._places = width % work.phases * work.phase + width // work.phases * work.item
        compiled = (channels if work.last else columns)(
            work.rows, work.vectors, work.lanes, 8 * work.size, int(work.simd.fma)
        )
        self._loops = compiled.address
        self._fields = self._known()
        self._records: dict[tuple[Any, ...], Any] = {}

    def _known(self) -> dict[str, int]:
        work = self.work
        first, last = inside(work.width)
        f = {"taps": address(self._taps), "ntaps": work.taps, "channels": self.problem.ic}
        f |= {"multiplier": work.multiplier, "oh": work.height.out, "ow": work.width.out}
        f |= {"bands": work.bands, "band": work.band, "slab_bytes": work.slab_bytes}
        f |= {"heights": work.height.extent(work.band), "widths": work.width.extent(work.width.out), "item": work.item}
        f |= {"lh": work.row_bytes, "sh": work.height.stride * work.row_bytes, "sw": work.width.stride * work.item}
        f |= {"phases": work.phases, "phase": work.phase, "first": first, "last": last, "stride": work.height.stride}
        f |= {"table_h": address(self._tables[0]), "table_w": address(self._tables[1])}
        f["place_w"] = address(self._places)
        if self._constants is not None:
            f["activation"] = address(self._constants)
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        p = self.problem
        x, w, (y,) = inputs[0], inputs[1], outputs
        bias = np.ascontiguousarray(inputs[2]) if p.bias != "none" else None
        source = x if self._reads(x) else self._like(x, copied=True)
        result = y if self._writes(y) else self._like(y, copied=False)
        self._compute(source, w, bias, result)
        if p.residual or (self._constants is None and p.activation is not None):
            epilogue.apply(p.activation, result, None, inputs[-1] if p.residual else None)
        if result is not y:
            y[...] = result

    def _reads(self, x: Any) -> bool:
        return bool(x.flags.aligned) and (not self.work.last or x.strides[1] == self.work.size)

    def _writes(self, y: Any) -> bool:
        return bool(y.flags.aligned) and y.strides[1 if self.work.last else -1] == self.work.size

    def _like(self, array: Any, copied: bool) -> Any:
        """Return an array in the order that the loops take, with the same values if they matter."""
        shape = array.shape
        if self.work.last:
            made = np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), array.dtype), -1, 1)
        else:
            made = np.empty(shape, array.dtype)
        if copied:
            made[...] = array
        return made

    def _compute(self, x: Any, w: Any, bias: Any, y: Any) -> None:
        work = self.work
        weight = np.ascontiguousarray(w).reshape(-1, work.taps)
        if work.last:
            packed = np.zeros((work.taps, work.packed_width), weight.dtype)
            packed[:, : work.along] = weight.T
            weight = packed
        job = self._record(x.strides, y.strides).copy()
        job[_X], job[_Y], job[_W] = address(x), address(y), address(weight)
        if bias is not None:
            job[_BIAS] = address(bias)
        job[_SLAB] = scratch.take(work.workers * work.slab_bytes)
        threads.run(self._loops, address(job), work.units, work.workers)

    def _record(self, x: Sizes, y: Sizes) -> Any:
        """Return what is known of arrays of these strides; addresses are left open."""
        try:
            return self._records[x, y]
        except KeyError:
            pass
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        work, size = self.work, self.work.size
        f = self._fields | {"wk": work.taps * size, "wt": work.packed_width * size if work.last else size}
        f |= dict(zip(("xn", "xc", "xh", "xw"), (*x[:2], *(0, *x[2:])[-2:]), strict=True))
        f |= dict(zip(("yn", "yk", "yh", "yw"), (*y[:2], *(0, *y[2:])[-2:]), strict=True))
        record = self._records[x, y] = np.array([f.get(name, 0) for name in FIELDS], np.int64)
        return record
