"""Running the weight gradient of a fully connected layer: tiles of a few rows of dw, along the rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastconv.backends.cpu import job
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.formats import size_of
from fastconv.backends.cpu.gemv.wgrad_work import Work
from fastconv.backends.cpu.local.tile import outer_product
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.scratch import contiguous

# Addresses, sizes and (in bytes) strides.
_FIELDS = """
    x xn                | the input and its images, whose elements lie together
    w yn                | the output's gradient and its images
    y row               | the weight's gradient and its rows
    terms images oc     | elements of a row, images, rows
    share               | a unit of work: rows
    panel               | elements of a row that all of them take their turn with, so that the inputs stay near
"""
FIELDS = job.fields_of(_FIELDS, job.HEAD)
JOB = job.job_type(FIELDS)


@cache
def _loops(rows: int, vectors: int, lanes: int, format: int, fused: int) -> Any:
    """Return the compiled loops for a tile's shape: ``run(job, start, stop, worker)`` does a range of units."""
    size = size_of(format)
    width = vectors * lanes
    sources = fingerprint()

    @callback(job.task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            # The last tile overlaps the one before: what is computed twice comes out the same.
            for panel in range(0, job.terms, job.panel):
                for row in range(min(unit * job.share, job.oc - rows), min((unit + 1) * job.share, job.oc), rows):
                    k = min(row, job.oc - rows)
                    for column in range(panel, min(panel + job.panel, job.terms), width):
                        c = max(0, min(column, job.terms - width))
                        outer_product(
                            rows, vectors, lanes, format, fused, job.w + k * size, job.yn, job.x + c * size, job.xn,
                            job.images, job.y + k * job.row + c * size, job.row, min(width, job.terms),
                        )  # fmt: skip

    return run


class Runner:
    """Runs one problem; arrays that do not lie in one piece are copied."""

    def __init__(self, work: Work) -> None:
        self._work = work
        problem, size = work.problem, work.size
        fields = {"xn": work.terms * size, "yn": work.outputs * size, "row": work.terms * size}
        fields |= {
            "terms": work.terms,
            "images": problem.n,
            "oc": work.outputs,
            "share": work.share,
            "panel": work.panel,
        }
        self._record = job.record_of(FIELDS, fields)
        self._start: job.Start = job.never
        self._loops = _loops(work.rows, work.vectors, work.lanes, work.format, int(work.simd.fma)).address

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (x, dy), (dw,) = inputs, outputs
        if self._start(x, dy, dw, None, None, 0, 0):
            return
        # Copies where arrays do not lie in one piece.
        x, dy = map(contiguous, inputs)
        flags, work = dw.flags, self._work
        result = dw if flags.c_contiguous and flags.aligned else np.empty(dw.shape, dw.dtype)
        arrays = x, dy, result, None, None
        self._start = job.start_of(self._loops, self._record, work.units, work.workers, arrays)
        self._start(*arrays, 0, 0)
        if result is not dw:
            dw[...] = result
