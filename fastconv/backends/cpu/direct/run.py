"""Running a direct convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.direct.fill import fill_kernel
from fastconv.backends.cpu.direct.job import FIELDS
from fastconv.backends.cpu.direct.loops import loops
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.packing import pack_kernel
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import AXES, Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64


class Packed(NamedTuple):
    """A packed weight."""

    array: Any
    address: int


class Record(NamedTuple):
    """What is known of a problem on arrays of certain strides."""

    job: Any  # a `JOB` as plain integers, addresses left open
    loops: int  # address of the compiled loops
    slabs: int  # bytes of all workers' slabs and sums
    runs: Any  # offsets that the job points to


# Where the addresses stand that every run fills in.
_X, _W, _Y, _BIAS, _RESIDUAL, _ACTIVATION, _SLAB = (
    FIELDS.index(name) for name in ("x", "w", "y", "bias", "residual", "activation", "slab")
)


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        problem = work.problem
        self.work = work
        self._records: dict[tuple[Any, ...], Record] = {}
        self._pack = pack_kernel(work.format, work.lanes)
        self._fused = problem.activation is None or problem.activation in FUSED
        # The loops look at these by address.
        self._offsets = [self._packed_offsets(vectors) for vectors in (work.tile.vectors, work.tile.tail)]
        self._tables = [source_line(axis) for axis in work.axes]
        self._constants = np.array(FUSED.get(problem.activation or "", (0, 0, 0)), problem.accumulator)
        self._activation = address(self._constants) if problem.activation in FUSED else 0
        self._has_bias, self._has_residual = problem.bias != "none", problem.residual
        self._units, self._workers = work.units, work.workers
        self._weight_shape = (problem.oc, work.inputs * work.taps)
        # What no weight goes to must be zero.
        self._new = np.zeros if work.terms > self._weight_shape[1] else np.empty
        self._packed_size, self._dtype = work.packed_size, np.dtype(problem.accumulator)
        self._pack_arguments = (problem.groups, work.outputs, self._weight_shape[1], work.block, work.terms)
        self._offset_addresses = tuple(map(address, self._offsets))

    def _packed_offsets(self, vectors: int) -> Any:
        """Return where in a packed block each (input channel, kernel position) goes."""
        work = self.work
        chunk, channel = np.divmod(np.arange(work.inputs), work.item)
        terms = (chunk * work.taps * work.item + channel)[:, None] + np.arange(work.taps) * work.item
        return np.ascontiguousarray(terms).ravel() * (vectors * work.lanes * work.size)

    def pack(self, w: Any) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        rows = w.reshape(self._weight_shape)
        if rows.strides[1] != rows.itemsize or not rows.flags.aligned:
            rows = rows.copy(order="C")
        packed = self._new(self._packed_size, self._dtype)
        where = address(packed)
        self._pack(address(rows), rows.strides[0], *self._pack_arguments, where, *self._offset_addresses)
        return Packed(packed, where)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        x, w, (y,) = inputs[0], inputs[1], outputs
        record = self._record(x.strides, y.strides)
        residual = inputs[-1] if self._has_residual else None
        aligned = x.flags.aligned and y.flags.aligned
        if record is None or not aligned or (residual is not None and not _alike(residual, y)):
            self._run_apart(inputs, y)
            return
        packed = w if self.work.problem.prepacked else self.pack(w)
        bias = np.ascontiguousarray(inputs[2]) if self._has_bias else None
        job = record.job.copy()
        job[_X], job[_W], job[_Y] = address(x), packed.address, address(y)
        if bias is not None:
            job[_BIAS] = address(bias)
        if residual is not None:
            job[_RESIDUAL] = address(residual)
        job[_ACTIVATION] = self._activation
        if record.slabs:
            job[_SLAB] = scratch.take(record.slabs)
        threads.run(record.loops, address(job), self._units, self._workers)
        if not self._fused:
            epilogue.apply(self.work.problem.activation, y)

    def _run_apart(self, inputs: tuple[Any, ...], y: Any) -> None:
        """Run on copies of what the loops cannot read, and into an array that they can write."""
        result = np.empty(y.shape, y.dtype)
        copies: list[Any] = [a if isinstance(a, Packed) else np.require(a, requirements="A") for a in inputs]
        if self._has_residual:
            copies[-1] = copies[-1].copy(order="C")  # with the strides of a new array, axes of size 1 included
        self.run(tuple(copies), (result,))
        y[...] = result

    def _record(self, x: Sizes, y: Sizes) -> Record | None:
        """Return the record for arrays of these strides; None if the micro-kernel cannot store so."""
        try:
            return self._records[x, y]
        except KeyError:
            pass
        missing = (0,) * (len(AXES) - self.work.problem.ndim)
        order = self._order(y)
        if order is None:
            return None
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        record = self._records[x, y] = self._describe(
            (*x[:2], *missing, *x[2:]), (*y[:2], *missing, *y[2:]), order == "last"
        )
        return record

    def _order(self, y: Sizes) -> str | None:
        """Return in which order the micro-kernel can store: along pixels, along channels, or neither."""
        work = self.work
        size = work.problem.itemsize
        if not work.across and (work.axes[2].out == 1 or y[-1] == size):
            return "first"
        return "last" if y[1] == size or work.problem.oc == 1 else None

    def _describe(self, x: Sizes, y: Sizes, last: bool) -> Record:
        work, p, size = self.work, self.work.problem, self.work.size
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
        f |= {"bands": work.bands, "band": work.band, "parts": work.parts, "least": work.tile.rows}
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
            steps = (0, xd, xh, xw)
        if work.across and not work.staged:
            f |= {"sh": xn}
        runs, f["run"] = self._runs(steps, f["st"])
        f |= {"runs": address(runs), "nruns": len(runs), "stage": work.stage(f["run"])}
        f |= {"slab_bytes": work.scratch_bytes, "sums": work.slab_bytes(work.band)}
        t = work.tile
        compiled = loops(t.rows, t.cols, t.vectors, t.tail, work.lanes, work.format, int(work.simd.fma), int(last))
        job = np.array([f.get(name, 0) for name in FIELDS], np.int64)
        return Record(job, compiled.address, work.workers * work.scratch_bytes, runs)

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


def _alike(residual: Any, y: Any) -> bool:
    """Whether the loops find the residual's elements where they store the output's."""
    return residual.strides == y.strides and bool(residual.flags.aligned)
