"""Running a grouped convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.grouped.loops import FIELDS, loops
from fastconv.backends.cpu.grouped.work import Work
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64


class Record(NamedTuple):
    """What is known of a problem on arrays of certain strides."""

    job: Any  # a `JOB` as plain integers, addresses left open
    loops: int  # address of the compiled loops


# Where the addresses stand that every run fills in.
_X, _Y, _W, _WK, _BIAS, _RESIDUAL, _SLAB = (
    FIELDS.index(name) for name in ("x", "y", "w", "wk", "bias", "residual", "slab")
)


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        problem = work.problem
        self.work = work
        self._records: dict[tuple[Any, ...], Record] = {}
        self._has_bias, self._has_residual = problem.bias != "none", problem.residual
        self._fused = problem.activation is None or problem.activation in FUSED
        # The loops look at these by address.
        self._constants = np.array(FUSED.get(problem.activation or "", (0, 0, 0)), problem.dtype)
        self._places = self._term_places()
        self._row_table = self._table_of_rows()
        self._column_table = self._table_of_columns()
        self._fields = self._known()
        self._weight_shape = (problem.oc, work.terms)
        self._scratch = work.workers * work.slab_bytes

    def _term_places(self) -> Any:
        """Return where in a group's slab each term of the first output's sum lies, in bytes."""
        work, sub = self.work, self.work.phase_bytes(self.work.band)
        (down, right), size = work.phases, work.size
        channel, row, col = np.indices((work.inputs, work.rows.kernel, work.cols.kernel)).reshape(3, -1)
        row, col = row * work.rows.dilation, col * work.cols.dilation
        phase = channel * down * right + row % down * right + col % right
        return np.ascontiguousarray(phase * sub + (row // down * work.pitch + col // right) * size, np.int64)

    def _table_of_rows(self) -> Any:
        """Return the input row of every padded one, -1 for zeros, -2 for those that no output reads."""
        rows = self.work.rows
        table = source_line(rows).astype(np.int64)
        read = {row * rows.dilation % rows.stride for row in range(rows.kernel)}
        table[[h for h in range(table.size) if h % rows.stride not in read]] = -2
        return table

    def _table_of_columns(self) -> Any:
        """Return the input column of every padded one, -1 for zeros and behind the end; a row of -1 after that."""
        line = source_line(self.work.cols)
        table = np.full((2, self.work.phase_vectors * self.work.lanes * self.work.cols.stride), -1, np.int64)
        table[0, : line.size] = line
        return table

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.work.problem
        first, last = inside(work.cols)
        sub = work.phase_bytes(work.band)
        f = {"places": address(self._places), "terms": work.terms, "inputs": work.inputs, "outputs": work.outputs}
        f |= {"groups": p.groups, "bundle": work.bundle, "bundles": work.bundles}
        f |= {"oh": work.rows.out, "ow": work.cols.out, "bands": work.bands, "band": work.band}
        f |= {"slab_bytes": work.slab_bytes, "plane": sub * math.prod(work.phases), "sub": sub}
        f |= {"row": work.pitch * work.size, "heights": work.rows.extent(work.band), "pitch": work.pitch}
        f |= {"rows_apart": work.phases[0], "cols_apart": work.phases[1], "vectors": work.phase_vectors}
        f |= {"line": work.line, "first": first, "inside": last - first}
        f["lead"] = (first // work.phases[1] + 1) * work.size
        f |= {"table_h": address(self._row_table), "table_w": address(self._column_table)}
        f["zeros"] = work.input_bytes(work.band)
        f["sums"] = f["zeros"] + work.zeros_bytes
        if p.activation in FUSED:
            f["activation"] = address(self._constants)
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        x, w, (y,) = inputs[0], inputs[1], outputs
        record = self._record(x.strides, y.strides)
        residual = inputs[-1] if self._has_residual else None
        aligned = x.flags.aligned and y.flags.aligned
        if record is None or not aligned or (residual is not None and not _alike(residual, y)):
            self._run_apart(inputs, y)
            return
        rows = w.reshape(self._weight_shape)
        if rows.strides[1] != self.work.size or not rows.flags.aligned:
            rows = rows.copy(order="C")
        bias = np.ascontiguousarray(inputs[2]) if self._has_bias else None
        job = record.job.copy()
        job[_X], job[_Y], job[_W], job[_WK] = address(x), address(y), address(rows), rows.strides[0]
        if bias is not None:
            job[_BIAS] = address(bias)
        if residual is not None:
            job[_RESIDUAL] = address(residual)
        job[_SLAB] = scratch.take(self._scratch)
        threads.run(record.loops, address(job), self.work.units, self.work.workers)
        if not self._fused:
            epilogue.apply(self.work.problem.activation, y)

    def _run_apart(self, inputs: tuple[Any, ...], y: Any) -> None:
        """Run on copies of what the loops cannot read, and into an array that they can write."""
        result = np.empty(y.shape, y.dtype)
        copies = [np.require(a, requirements="A") for a in inputs]
        if self._has_residual:
            copies[-1] = copies[-1].copy(order="C")  # with the strides of a new array, axes of size 1 included
        self.run(tuple(copies), (result,))
        y[...] = result

    def _record(self, x: Sizes, y: Sizes) -> Record | None:
        """Return the record for arrays of these strides; None if sums cannot be stored so."""
        try:
            return self._records[x, y]
        except KeyError:
            pass
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        work = self.work
        missing = (0,) * (2 - work.problem.ndim)
        xn, xc, xh, xw = (*x[:2], *missing, *x[2:])
        yn, yk, yh, yw = (*y[:2], *missing, *y[2:])
        last = work.problem.layout == "channels_last"
        reads_channels = xc == work.size and (last or xw != work.size)
        writes_channels = yk == work.size and (last or yw != work.size)
        if not writes_channels and yw != work.size and work.cols.out > 1:
            return None
        read_in_order = work.cols.mode == "zeros" and work.phases[1] <= 2 and xw == work.size
        f = {"xn": xn, "xc": xc, "xh": xh, "xw": xw, "yn": yn, "yk": yk, "yh": yh, "yw": yw}
        f |= {"pixelwise": int(not read_in_order)} | self._fields
        compiled = loops(*work.tile, work.lanes, 8 * work.size, int(work.simd.fma), (reads_channels, writes_channels))
        job = np.array([f.get(name, 0) for name in FIELDS], np.int64)
        record = self._records[x, y] = Record(job, compiled.address)
        return record


def _alike(residual: Any, y: Any) -> bool:
    """Whether the loops find the residual's elements where they store the output's."""
    return residual.strides == y.strides and bool(residual.flags.aligned)
