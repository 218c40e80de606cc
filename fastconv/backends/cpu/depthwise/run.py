"""Running a depthwise convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.depthwise.loops import FIELDS, channels, columns
from fastconv.backends.cpu.depthwise.work import Work
from fastconv.backends.cpu.packing import pack_kernel
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import AXES, Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64

# Where the addresses stand that every run fills in.
_X, _W, _Y, _BIAS, _RESIDUAL, _SLAB = (FIELDS.index(name) for name in ("x", "w", "y", "bias", "residual", "slab"))


class Packed(NamedTuple):
    """A weight as the micro-kernel reads it."""

    array: Any
    address: int


class Record(NamedTuple):
    """What is known of a problem on arrays of certain strides."""

    job: Any  # a `JOB` as plain integers, addresses left open
    steps: Any  # offsets that the job points to


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        self._records: dict[tuple[Any, ...], Record] = {}
        self._constants = np.array(FUSED.get(self.problem.activation or "", (0, 0, 0)), self.problem.dtype)
        self._fused = self.problem.activation is None or self.problem.activation in FUSED
        self._slabs = work.workers * work.slab_bytes
        self._has_bias, self._has_residual = self.problem.bias != "none", self.problem.residual
        tile = work.tile
        form = (tile.rows, tile.vectors, tile.lanes, 8 * work.size, int(work.simd.fma))
        # The stride of rows is a literal only where rows are shared.
        shared = (work.kernel_rows, work.height.stride if work.kernel_rows > 1 else 1)
        if work.last:
            self._loops = channels(*form, *shared, int(work.slab)).address
        else:
            self._loops = columns(*form, *shared, work.phases, int(work.slab)).address
        self._units, self._workers = work.units, work.workers
        self._make_tables()
        self._fields = self._known()
        if work.last:
            self._pack = pack_kernel(8 * work.size, tile.lanes)

    def _make_tables(self) -> None:
        """Make what the loops look at by address."""
        work = self.work
        depth, height, width = work.axes
        groups = [
            (d * depth.dilation, r * height.dilation)
            for d in range(depth.kernel)
            for r in range(0, height.kernel, work.kernel_rows)
        ]
        self._groups = np.array(groups, np.int64)
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        self._offsets = np.arange(work.taps) * (work.tile.lanes * work.size)
        if work.slab:
            self._lines = [source_line(axis) for axis in (height, width)]
            extent = width.extent(width.out)
            self._places = np.array([work.slab_offset(col) for col in range(extent)], np.int64)

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.problem
        depth, height, width = work.axes
        f = {"channels": p.oc, "multiplier": work.multiplier, "blocks": work.blocks, "parts": work.parts}
        f |= {"od": depth.out, "oh": height.out, "ow": width.out, "bands": work.bands, "band": work.band}
        f |= {"depths": depth.size, "heights": height.size, "widths": width.size}
        f |= {"stride_d": depth.stride, "stride": height.stride, "stride_w": width.stride}
        f |= {"before_d": depth.before, "before_h": height.before, "before_w": width.before}
        f |= {"reach_" + name: axis.extent(1) - 1 for name, axis in zip(AXES, work.axes, strict=True)}
        f |= {"groups": address(self._groups), "count": len(self._groups)}
        f |= {"kernel": width.kernel, "spread": width.dilation, "zeros": address(self._zeros)}
        step = (work.tile.lanes if work.last else 1) * work.size
        f |= {"wstep": step, "wrow": width.kernel * step, "wgroup": work.kernel_rows * width.kernel * step}
        f["wblock"] = work.taps * step
        if p.activation in FUSED:
            f["activation"] = address(self._constants)
        if work.slab:
            f |= self._known_of_slab()
        return f

    def _known_of_slab(self) -> dict[str, int]:
        """Return the fields of a slab, which has its padding inside."""
        work = self.work
        first, last = inside(work.width)
        f = {"slab_bytes": work.slab_bytes, "slab_rows": work.height.extent(work.band), "slab_row": work.row_bytes}
        f |= {"slab_cols": len(self._places), "item": work.item, "first": first, "last": last}
        f |= {"together": int(work.slab_phases == 1), "place_w": address(self._places)}
        f |= {"table_h": address(self._lines[0]), "table_w": address(self._lines[1])}
        return f | {"before_d": 0, "before_w": 0, "depths": 1}

    def pack(self, w: Any) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        work = self.work
        rows = w.reshape(self.problem.oc, work.taps)
        if rows.strides[1] != work.size or not rows.flags.aligned or not (work.last or rows.flags.c_contiguous):
            rows = rows.copy(order="C")
        if not work.last:
            return Packed(rows, address(rows))
        packed = np.empty(work.packed_size, w.dtype)
        offsets, lanes = address(self._offsets), work.tile.lanes
        where = address(packed)
        self._pack(
            address(rows), rows.strides[0], 1, self.problem.ic, work.taps, lanes, work.taps, where, offsets, offsets
        )
        return Packed(packed, where)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        x, w, (y,) = inputs[0], inputs[1], outputs
        residual = inputs[-1] if self._has_residual else None
        apart = residual is not None and not (residual.strides == y.strides and residual.flags.aligned)
        if apart or not (self._takes(x) and self._takes(y)):
            self._run_apart(inputs, y)
            return
        packed = w if self.problem.prepacked else self.pack(w)
        bias = np.ascontiguousarray(inputs[2]) if self._has_bias else None
        job = self._record(x.strides, y.strides).job.copy()
        job[_X], job[_W], job[_Y] = address(x), packed.address, address(y)
        if bias is not None:
            job[_BIAS] = address(bias)
        if residual is not None:
            job[_RESIDUAL] = address(residual)
        if self._slabs:
            job[_SLAB] = scratch.take(self._slabs)
        threads.run(self._loops, address(job), self._units, self._workers)
        if not self._fused:
            epilogue.apply(self.problem.activation, y)

    def _takes(self, array: Any) -> bool:
        """Whether the loops read or write an array as it is: lanes are neighbours."""
        return bool(array.flags.aligned) and array.strides[1 if self.work.last else -1] == self.work.size

    def _like(self, shape: Sizes) -> Any:
        """Return an array in the order that the loops take."""
        if self.work.last:
            return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), self.problem.dtype), -1, 1)
        return np.empty(shape, self.problem.dtype)

    def _run_apart(self, inputs: tuple[Any, ...], y: Any) -> None:
        """Run on copies of what the loops cannot read, and into an array that they can write."""
        x, *others = inputs
        if not self._takes(x):
            x = self._like(x.shape)
            x[...] = inputs[0]
        if self._has_residual:
            others[-1] = self._like(y.shape)
            others[-1][...] = inputs[-1]
        result = self._like(y.shape)
        self.run((x, *others), (result,))
        y[...] = result

    def _record(self, x: Sizes, y: Sizes) -> Record:
        """Return what is known of arrays of these strides; addresses are left open."""
        try:
            return self._records[x, y]
        except KeyError:
            pass
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        work, missing = self.work, (0,) * (len(AXES) - self.problem.ndim)
        f = self._fields | dict(zip(("xn", "xc", "xd", "xh", "xw"), (*x[:2], *missing, *x[2:]), strict=True))
        f |= dict(zip(("yn", "yk", "yd", "yh", "yw"), (*y[:2], *missing, *y[2:]), strict=True))
        cols = [s * work.width.dilation for s in range(work.width.kernel)]
        steps = np.array([work.slab_offset(col) if work.slab else col * x[-1] for col in cols], np.int64)
        f["steps"] = address(steps)
        job = np.array([f.get(name, 0) for name in FIELDS], np.int64)
        record = self._records[x, y] = Record(job, steps)
        return record
