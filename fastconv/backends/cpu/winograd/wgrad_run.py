"""Running Winograd's weight gradient: block after block of tiles, transformed and then multiplied."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.scratch import address, aligned
from fastconv.backends.cpu.wgrad.algorithm import Wgrad
from fastconv.backends.cpu.winograd.wgrad_loops import FIELDS, JOB, products, transforms
from fastconv.backends.cpu.winograd.wgrad_work import Work
from fastconv.problem import AXES

# Where the fields are in a record.
_AT = {name: i for i, name in enumerate(FIELDS)}

# Records that are kept, for arrays of so many different strides.
_RECORDS = 16


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work = work
        kind = (work.lanes, 8 * work.size, int(work.simd.fma))
        self._enter, self._leave = (
            kernel.address for kernel in transforms(work.m, work.phases.taps[-1], *work.phases.stride, *kind)
        )
        self._products = products(work.tile.cols, work.tile.vectors, work.tile.tail, *kind).address
        # The loops look at these by address.
        self._tables, self._phases = work.tables(), work.phase_tables()
        self._records: dict[Any, np.ndarray] = {}

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (dw,), work = outputs, self.work
        x, dy = (aligned(array) for array in inputs)
        writable = dw[0].flags.c_contiguous and dw.flags.aligned
        target = dw if writable else np.empty(dw.shape, dw.dtype)
        jobs = self._record(x.strides, dy.strides, target.strides[0]).copy()
        room = scratch.take(work.scratch_bytes)
        v, u = room, room + work.rooms["v"]
        sums = u + work.rooms["u"]
        jobs[:, 0, _AT["x"]], jobs[:, 1, _AT["x"]] = address(x), address(dy)
        jobs[:, 0, _AT["v"]], jobs[:, 1, _AT["v"]] = v, u
        jobs[:, 0, _AT["dw"]], jobs[:, 0, _AT["sums"]] = address(target), sums
        jobs[:, 0, _AT["scratch"]] = sums + work.rooms["sums"]
        job = address(jobs)
        jobs[:, 0, _AT["here"]] = range(job, job + jobs.nbytes, jobs.strides[0])
        self._compute(job, jobs.strides[0])
        if jobs[:, 0, _AT["special"]].any():
            # A transform smears NaN and infinity over its filter.
            Wgrad().plan(work.problem).run(inputs, outputs)
        elif target is not dw:
            dw[...] = target

    def _compute(self, job: int, step: int) -> None:
        work = self.work
        pieces, workers = work.together + work.needed, work.workers
        for _ in range(work.problem.groups):
            for block in work.blocks:
                threads.run(self._enter, job, block.rows * pieces, workers)
                threads.run(self._products, job, work.kblocks * (work.parts if work.alone else work.points), workers)
                job += step
            if not work.alone:
                threads.run(self._leave, job - step, work.kblocks * work.parts, workers)

    def _record(self, x: tuple[int, ...], dy: tuple[int, ...], dwk: int) -> np.ndarray:
        """Return the records of all blocks, for x and dy each, with addresses of arrays left open."""
        known = self._records.get((x, dy, dwk))
        if known is None:
            if len(self._records) >= _RECORDS:
                self._records.clear()
            known = self._records[x, dy, dwk] = self._describe(x, dy, dwk)
        return known

    def _describe(self, x: tuple[int, ...], dy: tuple[int, ...], dwk: int) -> np.ndarray:
        work, tile, rooms = self.work, self.work.tile, self.work.rooms
        x_depths, x_rows, x_cols, dy_rows, dy_cols = map(address, self._tables)
        depth, missing = work.axes[0], (0,) * (len(AXES) - work.problem.ndim)
        strides = ("xn", "xc", "xd", "xh", "xw")
        first, last = inside(work.axes[2])
        both = {"down": work.down}
        of_x = dict(zip(strides, (*x[:2], *missing, *x[2:]), strict=True)) | {"xg": x[1] * work.inputs}
        of_x |= {
            "ic": work.inputs,
            "chunk": work.chunk,
            "pieces": work.pieces,
            "chunks": work.chunks,
            "v_plane": work.planes["v"],
        }
        of_x |= {"od": depth.out, "table_d": x_depths, "step_d": depth.stride, "dilation_d": depth.dilation}
        of_x |= dict(zip(("starts", "places", "spans"), map(address, self._phases), strict=True))
        of_x |= {"phases": len(work.phases.order), "area": math.prod(work.phases.kernel)}
        of_x |= {"table_h": x_rows, "table_w": x_cols, "before": work.axes[2].before, "first": first, "last": last}
        of_x |= {"oc": work.outputs, "kblocks": work.kblocks, "vectors": tile.vectors, "tail": tile.tail}
        of_x |= {"dwk": dwk, "scratch_bytes": rooms["scratch"] // work.workers, "strip": rooms["slab"]}
        of_x |= {"m_plane": work.planes["m"], "sums_bytes": rooms["sums"] // self._sets}
        of_x |= {"points": work.points, "parts": work.parts, "part": work.part}
        of_x |= {"alone": int(work.alone), "leave": self._leave}
        of_dy = dict(zip(strides, (*dy[:2], *missing, *dy[2:]), strict=True)) | {"xg": dy[1] * work.outputs}
        of_dy |= {"ic": work.outputs, "chunk": work.lanes, "chunks": work.needed, "v_plane": work.planes["u"]}
        of_dy |= {"table_h": dy_rows, "table_w": dy_cols, "last": work.problem.ow}
        records = []
        for group in range(work.problem.groups):
            for index, block in enumerate(work.blocks):
                place = {"group": group, "row": block.row, "col": block.col, "rows": block.rows, "cols": block.cols}
                place |= {"add": int(index > 0)}
                records.append(
                    [
                        record_of(FIELDS, fields)
                        for fields in (
                            both | of_x | place | {"slab_row": work.slab_row},
                            both | of_dy | place | {"slab_row": block.cols * work.m * work.width},
                        )
                    ]
                )
        return np.array(records, np.int64)

    @property
    def _sets(self) -> int:
        """How many sets of sums there are."""
        return self.work.workers if self.work.alone else self.work.kblocks


assert JOB.itemsize == 8 * len(FIELDS)
