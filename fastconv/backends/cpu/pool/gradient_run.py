"""Running the gradient of a pool: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.pool.gradient_loops import (
    FIELDS,
    averages,
    blocks,
    covers,
    fills,
    maps,
    recorded,
    routes,
    shares,
    tiles,
)
from fastconv.backends.cpu.pool.gradient_work import GradientWork
from fastconv.backends.cpu.pool.reduction import MAX, SUM
from fastconv.backends.cpu.pool.scatter import ADD, PUT, TAKE
from fastconv.backends.cpu.pool.strides import is_dense
from fastconv.backends.cpu.pool.windows import alike, cover, padded, scales
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import Axis
from fastconv.problem import Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 64

# Where the addresses stand that every run fills in.
_X, _Y, _J, _LINES, _VALUES, _ROOTS = map(FIELDS.index, ("x", "y", "j", "lines", "values", "roots"))


class GradientRunner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: GradientWork) -> None:
        self.work, self.problem = work, work.problem
        p, dtype = self.problem, np.dtype(self.problem.accumulator)
        self._covers = [cover(axis) for axis in work.axes]
        self._tables = [padded(a, work.lanes) for s in self._covers for a in (s.starts, s.counts)]
        self._one = np.ones(1, dtype)
        self._powers = np.array([1 - p.norm_type, p.norm_type - 1])
        self._scale: Any
        self._scales: Any
        self._scale, self._scales = scales(p) if work.shares else (np.ones((1, 1), dtype), None)
        if work.loops == "shares":
            # As wide as what is picked.
            integers = np.dtype(f"i{work.size}")
            self._picks = work.picks.firsts, *(table.astype(integers) for table in work.picks[1:3])
            self._alike, self._tall = alike(work.axes[1], work.joined), np.tile(self._scale, (1, work.joined))
        self._indexed = work.unpools or p.is_max
        self._norm = work.norm
        # An unpooling's gradient goes the other way.
        self._turned = work.unpools and p.direction == "dgrad"
        self._size, self._workers = p.itemsize, work.workers
        self._passes = work.passes
        self._scratch = work.workers * work.line_bytes
        self._loops = self._compiled().address
        self._fields = self._known()
        self._records: dict[tuple[Sizes, ...], tuple[Any, int]] = {}

    def _compiled(self) -> Any:
        work, p, common = self.work, self.problem, (self.work.lanes, self.work.format)
        if work.loops == "covers":
            return covers(work.norm, work.vectors, int(work.simd.fma), *common)
        if work.loops == "blocks":
            return blocks(*work.square, work.index, *common)
        if work.loops == "shares":
            return shares(work.norm, work.picks.vectors, work.picks.few, int(work.simd.fma), *common)
        if work.loops == "fills":
            return fills(*common)
        if work.loops == "averages":
            return averages(*work.columns, work.norm, int(work.simd.fma), *common)
        op = MAX if p.is_max else SUM
        if work.loops == "tiles":
            return tiles(op, work.square[0], work.index, *common)
        if work.loops == "routes":
            return routes(work.square[0], work.index, *common)
        if work.loops == "maps":
            return maps(op, *work.square, work.phase, int(work.along), work.index, *common)
        if not work.unpools:
            return recorded(ADD, int(work.last), work.index, *common)
        # What is only moved is the same in both half formats.
        return recorded(TAKE if self._turned else PUT, int(work.last), work.index, work.lanes, abs(work.format))

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.problem
        item = p.c if work.last else 1
        f: dict[str, int] = {"channels": p.c, "windows": math.prod(work.small), "cells": math.prod(work.large)}
        f |= {"y_step": item * self._size, "x_step": item * self._size, "j_step": item * work.index}
        f |= {"item": self._size, "wide": work.size, "apart": int(work.apart), "turns": int(work.planes > 1)}
        f |= {"bands": work.bands, "one": address(self._one), "scale": address(self._scale)}
        f |= {"scales": 0 if self._scales is None else address(self._scales), "powers": address(self._powers)}
        f |= {"line_bytes": work.line_bytes, "line": work.lead * work.size, "plane": work.plane}
        if not work.axes:
            return f
        f |= dict(zip(("od", "oh", "ow"), (axis.out for axis in work.axes), strict=True))
        f |= dict(zip(("depths", "heights", "width"), (axis.size for axis in work.axes), strict=True))
        f |= {"block": work.block, "waiting": work.waiting}
        f |= {"rise": work.square[0], "ready": work.ready}
        if work.loops == "shares":
            f |= dict(zip(("firsts", "offsets", "counts"), map(address, self._picks), strict=True))
            f |= {"alike": address(self._alike), "entries": len(self._alike) // work.joined}
        if work.loops == "blocks":
            f["block_rows"], f["block_columns"] = work.block_rows
        before = [axis.before if isinstance(axis, Axis) else 0 for axis in work.axes]
        f |= {"above": before[1], "before": before[2], "most": int(self._covers[2].counts.max())}
        names = (f"{what}_{axis}" for axis in "dhw" for what in ("from", "reads"))
        return f | dict(zip(names, map(address, self._tables), strict=True))

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        small, large = (outputs[0], inputs[0]) if self._turned else (inputs[0], outputs[0])
        indices = inputs[1] if self._indexed else small
        record, units = self._record(large.strides, small.strides, indices.strides)
        x, y = address(large), address(small)
        values, roots = (inputs[1], inputs[2]) if self._norm else (large, small)
        alike = values.strides == large.strides and roots.strides == small.strides
        aligned = indices.flags.aligned and values.flags.aligned and roots.flags.aligned
        if record is None or (x | y) % self._size or not (alike and aligned):
            self._run_apart(inputs, outputs)
            return
        job = record.copy()
        job[_X], job[_Y], job[_VALUES], job[_ROOTS] = x, y, address(values), address(roots)
        if self._indexed:
            job[_J] = address(indices)
        if self._scratch:
            job[_LINES] = scratch.take(self._scratch)
        threads.run(self._loops, address(job), units, self._workers)

    def _run_apart(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Run on copies of what the loops cannot read, and into an array that they can write."""
        copies = tuple(self._like(array) for array in inputs)
        for copied, array in zip(copies, inputs, strict=True):
            copied[...] = array
        result = self._like(outputs[0])
        self.run(copies, (result,))
        outputs[0][...] = result

    def _like(self, array: Any) -> Any:
        """Return an array in the order that the loops take."""
        shape = array.shape
        if self.work.last:
            return np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), array.dtype), -1, 1)
        return np.empty(shape, array.dtype)

    def _fits(self, strides: Sizes, shape: Sizes, size: int) -> bool:
        """Whether the loops can read or write an array of these strides."""
        if self.work.last and not (strides[1] == size or shape[1] == 1):
            return False
        if self.work.loops in ("blocks", "covers"):
            return True
        step = shape[1] * size if self.work.last else size
        if self.work.loops == "recorded" or self.work.whole:
            return is_dense(strides[2:], shape[2:], step)
        return strides[-1] == size or shape[-1] == 1

    def _record(self, large: Sizes, small: Sizes, indices: Sizes) -> tuple[Any, int]:
        """Return what is known of arrays of these strides, addresses left open, and how many units of work there are.

        There is no record if the loops cannot take the arrays.
        """
        try:
            return self._records[large, small, indices]
        except KeyError:
            pass
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        outer, size = self.problem.x_shape[:2], self._size
        shapes = (outer + self.work.large, outer + self.work.small)
        fits = self._fits(large, shapes[0], size) and self._fits(small, shapes[1], size)
        fits = fits and (not self._indexed or self._fits(indices, shapes[1], self.work.index))
        f = dict(self._fields)
        missing = (0,) * (3 - self.problem.ndim)
        for array, name in ((large, "x"), (small, "y"), (indices, "j")):
            f |= {name + axis: s for axis, s in zip("ncdhw", (*array[:2], *missing, *array[2:]), strict=True)}
        f["passes"] = int(self._passes and is_dense(large, shapes[0], size))
        units, count = self.work.units, self.work.joined
        if self.problem.ndim == 1:  # maps are rows one below the other
            f |= {"xh": f["xc"], "yh": f["yc"]}
        if count > 1 and f["xc"] == f["heights"] * f["xh"] and f["yc"] == f["oh"] * f["yh"]:
            f |= {
                "scale": address(self._tall),
                "joined": f["channels"] * f["entries"],
                "channels": -(-f["channels"] // count),
                "bands": 1,
            }
            f |= {name: f[name] * count for name in ("entries", "xc", "yc")}
            units = self.problem.n * f["channels"]
        record = record_of(FIELDS, f) if fits else None
        self._records[large, small, indices] = record, units
        return record, units
