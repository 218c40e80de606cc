"""Running a forward pool: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.pool.loops import FIELDS, gathered, picked, pixels, planes, rows, whole, windows
from fastconv.backends.cpu.pool.reduction import ANY_NORM, ANY_ROOT, MAX, NORM, POWERS, ROOT, SQUARES, SUM
from fastconv.backends.cpu.pool.strides import is_dense
from fastconv.backends.cpu.pool.windows import padded, runs, scales, span
from fastconv.backends.cpu.pool.work import Work
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import UnevenAxis
from fastconv.problem import Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64

# Where the addresses stand that every run fills in.
_X, _Y, _I, _LINES = (FIELDS.index(name) for name in ("x", "y", "i", "lines"))
_CODES = {"max": MAX, "sum": SUM, "norm": NORM, "any_norm": ANY_NORM}
# Those that are computed in two steps.
_STEPS = {NORM: (SQUARES, ROOT), ANY_NORM: (POWERS, ANY_ROOT)}


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        dtype = np.dtype(self.problem.accumulator)
        self._spans = [span(axis) for axis in work.axes]
        # Gathered columns are looked up by whole vectors.
        self._tables = [padded(a, work.lanes) for s in self._spans for a in (s.starts, s.counts)]
        rows_, columns = (np.ones((1, 1), dtype), None) if self.problem.is_max else scales(self.problem)
        self._runs = runs(work.axes[1])
        # As wide as what is picked.
        integers = np.dtype(f"i{work.size}")
        self._firsts, self._offsets, self._counts = work.picks.firsts, *(t.astype(integers) for t in work.picks[1:3])
        self._one = np.ones(1, dtype)
        self._powers = np.array([self.problem.norm_type, 1 / self.problem.norm_type])
        self._scale, self._scales = rows_, columns
        self._tall: dict[str, Any] = self._joined() if work.joined > 1 else {}
        self._loops = self._compiled().address
        self._fields = self._known()
        self._records: dict[tuple[Sizes, ...], tuple[Any, int]] = {}
        self._indexed, self._size = work.indexed, self.problem.itemsize
        self._workers = work.workers
        self._scratch = work.workers * work.line_bytes

    def _compiled(self) -> Any:
        work = self.work
        op, common = _CODES[work.op], (work.lanes, work.format)
        if work.whole and op != MAX:
            return whole(op, *common)
        if work.windows:
            return windows(op, work.windows, *common)
        if work.last:
            return pixels(op, work.vectors, work.indexed, *common)
        if work.columns and work.groups:
            return planes(op, *work.columns, work.groups, work.indexed, *common)
        if work.columns:
            return rows(op, *work.columns, work.indexed, *common)
        if work.picks.vectors:
            return picked(op, work.picks.vectors, work.picks.few, work.indexed, *common)
        first, then = _STEPS.get(op, (op, op))
        return gathered(first, then, work.indexed, *common)

    def _joined(self) -> dict[str, Any]:
        """Return the tables of rows of as many maps as are joined, each below the last."""
        height, reads, count = self.work.axes[1], self._spans[1], self.work.joined
        rows_ = count * height.out
        return {
            "runs": np.array([[0, rows_, 0, reads.counts.max()]], np.int64),
            "from_h": np.add.outer(np.arange(count) * height.size, reads.starts).ravel().astype(np.int64),
            "reads_h": np.tile(reads.counts, count).astype(np.int64),
            "scale": np.tile(self._scale, (1, count)),
        }

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.problem
        _, height, width = work.axes
        f: dict[str, int] = {
            "channels": p.c,
            "planes": p.c,
            "size": math.prod(p.input_size),
            "outputs": p.c * math.prod(p.output_size),
        }
        f |= dict(zip(("od", "oh", "ow"), work.output, strict=True))
        f |= {"item": p.itemsize, "wide": work.size, "bands": work.bands}
        f |= {"width": width.size, "kernel": int(self._spans[2].counts.max())}
        f["before"] = 0 if isinstance(width, UnevenAxis) else width.before
        f |= {f"step_{name}": s.step for name, s in zip("dhw", self._spans, strict=True)}
        f |= {"runs": address(self._runs), "nruns": len(self._runs)}
        tables = (self._firsts, self._offsets, self._counts)
        f |= dict(zip(("firsts", "offsets", "counts"), map(address, tables), strict=True))
        f["rise"] = 1 if isinstance(height, UnevenAxis) else height.stride
        names = (f"{what}_{axis}" for axis in "dhw" for what in ("from", "reads"))
        f |= dict(zip(names, map(address, self._tables), strict=True))
        f |= {"flat_d": height.size * width.size, "flat_h": width.size}
        f |= {
            "powers": address(self._powers),
            "scale": address(self._scale),
            "one": address(self._one),
            "line_bytes": work.line_bytes,
        }
        f |= {"scales": 0 if self._scales is None else address(self._scales), "places": width.size * work.size}
        return f

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        x, y = inputs[0], outputs[0]
        indices = outputs[1] if self._indexed else y
        record, units = self._record(x.strides, y.strides, indices.strides)
        start, target = address(x), address(y)
        if record is None or (start | target) % self._size or not indices.flags.aligned:
            self._run_apart(inputs, outputs)
            return
        job = record.copy()
        job[_X], job[_Y] = start, target
        if self._indexed:
            job[_I] = address(indices)
        if self._scratch:
            job[_LINES] = scratch.take(self._scratch)
        threads.run(self._loops, address(job), units, self._workers)

    def _run_apart(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Run on copies of what the loops cannot read, and into arrays that they can write."""
        copies = tuple(self._like(array) for array in inputs)
        for copied, array in zip(copies, inputs, strict=True):
            copied[...] = array
        results = tuple(self._like(array) for array in outputs)
        self.run(copies, results)
        for result, array in zip(results, outputs, strict=True):
            array[...] = result

    def _like(self, array: Any) -> Any:
        """Return an array in the order that the loops take."""
        shape = array.shape
        if self.work.last:
            return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), array.dtype), -1, 1)
        return np.empty(shape, array.dtype)

    def _fits(self, strides: Sizes, shape: Sizes, size: int, stored: bool) -> bool:
        """Whether the loops can read an array of these strides, or write it."""
        if self.work.last:
            return strides[1] == size or shape[1] == 1
        if self.work.windows and stored:
            return is_dense(strides[1:], shape[1:], size)
        if self.work.whole:
            return is_dense(strides[2:], shape[2:], size)
        return strides[-1] == size or shape[-1] == 1

    def _record(self, x: Sizes, y: Sizes, indices: Sizes) -> tuple[Any, int]:
        """Return what is known of arrays of these strides, addresses left open, and how many units of work there are.

        There is no record if the loops cannot take the arrays.
        """
        try:
            return self._records[x, y, indices]
        except KeyError:
            pass
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        p, size = self.problem, self._size
        fits = self._fits(x, p.x_shape, size, False) and self._fits(y, p.y_shape, size, True)
        fits = fits and (not self._indexed or self._fits(indices, p.y_shape, self._indexed, True))
        f = dict(self._fields)
        for array, name in ((x, "x"), (y, "y"), (indices, "j")):
            missing = (0,) * (3 - p.ndim)
            f |= {name + axis: s for axis, s in zip("ncdhw", (*array[:2], *missing, *array[2:]), strict=True)}
        if p.ndim == 1:  # maps are rows one below the other
            f |= {"xh": f["xc"], "yh": f["yc"]}
        rows = self.work.output[2]
        f["packed"] = int(f["yh"] == rows * size and (not self._indexed or f["jh"] == rows * self._indexed))
        reach = self.work.kernel[1] + f["rise"]
        f["ahead"] = reach * f["xh"]
        units = self.work.units
        follow = f["xc"] == self.work.axes[1].size * f["xh"] and f["yc"] == f["oh"] * f["yh"]
        if self._tall and follow:
            count = self.work.joined
            f |= {name: address(table) for name, table in self._tall.items()} | {"nruns": 1, "bands": 1}
            f |= {"joined": p.c * f["oh"], "channels": -(-p.c // count)}
            f |= {name: f[name] * count for name in ("oh", "xc", "yc")}
            units = p.n * f["channels"]
        record = record_of(FIELDS, f) if fits else None
        self._records[x, y, indices] = record, units
        return record, units
