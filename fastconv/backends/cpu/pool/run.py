"""Running a forward pool: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.pool.loops import FIELDS, gathered, pixels, planes, rows, whole
from fastconv.backends.cpu.pool.reduction import MAX, NORM, ROOT, SQUARES, SUM
from fastconv.backends.cpu.pool.windows import runs, scales, span
from fastconv.backends.cpu.pool.work import Work
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import UnevenAxis
from fastconv.problem import Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64

# Where the addresses stand that every run fills in.
_X, _Y, _I, _LINES = (FIELDS.index(name) for name in ("x", "y", "i", "lines"))
_CODES = {"max": MAX, "sum": SUM, "norm": NORM}


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        dtype = np.dtype(self.problem.dtype)
        self._spans = [span(axis) for axis in work.axes]
        # Gathered columns are looked up by whole vectors.
        self._tables = [_padded(a, work.lanes) for s in self._spans for a in (s.starts, s.counts)]
        rows_, columns = (np.ones((1, 1), dtype), None) if self.problem.is_max else scales(self.problem)
        self._runs = runs(work.axes[1])
        self._one = np.ones(1, dtype)
        self._scale, self._scales = rows_, columns
        self._loops = self._compiled().address
        self._fields = self._known()
        self._records: dict[tuple[Sizes, ...], Any] = {}

    def _compiled(self) -> Any:
        work = self.work
        op, common = _CODES[work.op], (work.lanes, 8 * work.size)
        if work.whole:
            return whole(op, *common)
        if work.last:
            return pixels(op, work.vectors, int(work.indexed), *common)
        if work.groups:
            return planes(op, *work.columns, work.groups, int(work.indexed), *common)
        if work.columns:
            return rows(op, *work.columns, int(work.indexed), *common)
        first, then = (SQUARES, ROOT) if op == NORM else (op, op)
        return gathered(first, then, int(work.indexed), *common)

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.problem
        depth, height, width = work.axes
        f: dict[str, int] = {"channels": p.c, "planes": p.c, "size": math.prod(p.input_size)}
        f |= dict(zip(("od", "oh", "ow"), work.output, strict=True))
        f |= {"bands": work.bands, "width": width.size, "kernel": int(self._spans[2].counts.max())}
        f["before"] = 0 if isinstance(width, UnevenAxis) else width.before
        f |= {f"step_{name}": s.step for name, s in zip("dhw", self._spans, strict=True)}
        f |= {"runs": address(self._runs), "nruns": len(self._runs)}
        f["rise"] = 1 if isinstance(height, UnevenAxis) else height.stride
        names = (f"{what}_{axis}" for axis in "dhw" for what in ("from", "reads"))
        f |= dict(zip(names, map(address, self._tables), strict=True))
        f |= {"flat_d": height.size * width.size, "flat_h": width.size}
        f |= {"scale": address(self._scale), "one": address(self._one), "line_bytes": work.line_bytes}
        f |= {"scales": 0 if self._scales is None else address(self._scales), "places": width.size * work.size}
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (x,) = inputs
        source = x if self._fits(x) else self._like(x, copied=True)
        results = [array if self._fits(array, self.work.whole) else self._like(array) for array in outputs]
        job = self._record(source.strides, *(array.strides for array in results)).copy()
        job[_X], job[_Y] = address(source), address(results[0])
        if self.work.indexed:
            job[_I] = address(results[1])
        if self.work.line_bytes:
            job[_LINES] = scratch.take(self.work.workers * self.work.line_bytes)
        threads.run(self._loops, address(job), self.work.units, self.work.workers)
        for result, array in zip(results, outputs, strict=True):
            if result is not array:
                array[...] = result

    def _fits(self, array: Any, flat: bool = False) -> bool:
        """Whether the loops can read or write an array; ``flat``: it is stored in vectors of channels."""
        size, strides, shape = array.itemsize, array.strides, array.shape
        if not array.flags.aligned:
            return False
        if self.work.last or flat:
            return bool(strides[1] == size or shape[1] == 1)
        if self.work.whole:
            dense = math.prod(shape[2:]) * size
            for stride, length in zip(strides[2:], shape[2:], strict=True):
                dense //= length
                if stride != dense and length > 1:
                    return False
            return True
        return bool(strides[-1] == size or shape[-1] == 1)

    def _like(self, array: Any, copied: bool = False) -> Any:
        """Return an array in the order that the loops take, with the same values if they matter."""
        shape = array.shape
        if self.work.last:
            made = np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), array.dtype), -1, 1)
        else:
            made = np.empty(shape, array.dtype)
        if copied:
            made[...] = array
        return made

    def _record(self, *strides: Sizes) -> Any:
        """Return what is known of arrays of these strides; addresses are left open."""
        try:
            return self._records[strides]
        except KeyError:
            pass
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        f = dict(self._fields)
        for array, name in zip(strides, "xyj", strict=False):
            missing = (0,) * (3 - self.problem.ndim)
            f |= {name + axis: s for axis, s in zip("ncdhw", (*array[:2], *missing, *array[2:]), strict=True)}
        record = self._records[strides] = np.array([f.get(name, 0) for name in FIELDS], np.int64)
        return record


def _padded(table: Any, lanes: int) -> Any:
    """Return a table as 64-bit integers, with zeros behind for the lanes of a vector."""
    return np.concatenate([table, np.zeros(lanes, np.int64)]).astype(np.int64)
