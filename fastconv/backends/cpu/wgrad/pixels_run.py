"""Running a weight gradient with pixels in the lanes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.wgrad.pixels_loops import FIELDS, loops
from fastconv.backends.cpu.wgrad.pixels_tile import compiled_tile
from fastconv.backends.cpu.wgrad.pixels_work import Work

# What every run fills in stands first.
_GIVEN = ("x", "xn", "xc", "xd", "xh", "y", "yn", "yk", "dw", "scratch")
assert FIELDS[: len(_GIVEN)] == _GIVEN


class PixelsRunner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work, self.problem = work, work.problem
        # The loops look at these by address.
        self._phase_rows = np.array(work.phases, np.int64)
        self._places = self._cell_places()
        self._loops = loops(work.lanes, 8 * work.size, work.cols.stride).address
        self._job = record_of(FIELDS, self._known())

    def _cell_places(self) -> Any:
        """Return where the line of each cell begins, in a slab or in x, in bytes."""
        work, rows = self.work, self.work.rows
        if work.in_place:
            return np.arange(work.channels, dtype=np.int64) * (work.cols.size * work.size)
        planes = work.channels * work.depths.kernel
        plane, row, col = np.indices((planes, rows.kernel, work.cols.kernel)).reshape(3, -1)
        below, phase = np.divmod(row * rows.dilation, rows.stride)
        place = (plane * len(work.phases) + np.searchsorted(work.phases, phase)) * work.cols.kernel + col
        return np.ascontiguousarray(place * work.plane_bytes(work.band) + below * work.cols.out * work.size, np.int64)

    def _known(self) -> dict[str, int]:
        work, depths, rows, cols = self.work, self.work.depths, self.work.rows, self.work.cols
        f = {"images": self.problem.n, "inputs": work.inputs, "outputs": work.outputs, "cells": work.cells}
        f |= {"channels": work.channels, "cparts": work.inputs // work.channels}
        f |= {"filters": work.filters, "kparts": work.outputs // work.filters}
        f |= {"slices": work.slices, "slice_bytes": work.slices_bytes // work.slices}
        f |= {"taps": work.taps, "kw": cols.kernel, "ih": rows.size, "iw": cols.size, "oh": rows.out, "ow": cols.out}
        f |= {"id": depths.size, "od": depths.out, "kd": depths.kernel}
        f |= {"stride_d": depths.stride, "dilation_d": depths.dilation, "before_d": depths.before}
        f |= {"band": work.band, "piece": work.piece(work.tile)}
        f |= {"overhang": work.overhang, "plane": work.plane_bytes(work.band)}
        f |= {"phases": len(work.phases), "phase_rows": address(self._phase_rows), "places": address(self._places)}
        f |= {"stride_h": rows.stride, "before_h": rows.before}
        f |= {
            "dilation_w": cols.dilation,
            "before_w": cols.before,
            "in_place": int(work.in_place),
            "far": int(work.is_far),
        }
        f |= {"scratch_bytes": work.scratch_bytes, "sums": work.slab_bytes(work.channels, work.band)}
        return f | self._tiles()

    def _tiles(self) -> dict[str, int]:
        """Return what the loops know of the tiles, and who computes them."""
        work = self.work
        outputs, cells = work.cuts(work.tile)
        f = {"high": outputs.size, "kfull": outputs.full, "wide": cells.size, "cfull": cells.full}
        for short, narrow in itertools.product((0, 1), repeat=2):
            if (not short or outputs.full < outputs.pieces) and (not narrow or cells.full < cells.pieces):
                form = (outputs.size - short, cells.size - narrow, work.lanes, 8 * work.size, int(work.simd.fma))
                f[f"tile{short}{narrow}"] = compiled_tile(*form).address
        return f

    def _can_read(self, x: Any) -> bool:
        if self.work.in_place:
            return bool(x[0].flags.c_contiguous)
        return bool(x.strides[-1] == self.work.size)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (x, dy), (dw,) = inputs, outputs
        work = self.work
        if not x.flags.aligned or not self._can_read(x):
            x = x.copy(order="C")
        if not dy.flags.aligned or not dy[0, 0].flags.c_contiguous:
            dy = dy.copy(order="C")
        plain = dw.flags.c_contiguous and dw.flags.aligned and work.slices == 1
        result = dw if plain else np.empty((work.slices, *dw.shape), dw.dtype)
        job = self._job.copy()
        job[: len(_GIVEN)] = (
            address(x), *x.strides[:2], x.strides[2], x.strides[-2],
            address(dy), *dy.strides[:2],
            address(result), scratch.take(work.workers * work.scratch_bytes),
        )  # fmt: skip
        threads.run(self._loops, address(job), work.units, work.workers)
        if not plain:
            with np.errstate(all="ignore"):  # no other sums warn of infinity
                np.add.reduce(result, axis=0, out=dw)
