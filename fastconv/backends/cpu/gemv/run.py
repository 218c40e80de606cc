"""Running a fully connected layer: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from fastconv import arrays
from fastconv.backends.cpu.axes import are_contiguous
from fastconv.backends.cpu.gemv.loops import FIELDS, loops, loops_across
from fastconv.backends.cpu.gemv.work import RowsWork, Work
from fastconv.backends.cpu.in_place import InPlace
from fastconv.problem import Sizes


class RowsRunner(InPlace):
    """Runs one problem; input, weight and output that do not lie in one piece are copied.

    Parameters
    ----------
    work : RowsWork
    across : bool
        Whether the weight's outputs lie together, and not its inputs.
    """

    def __init__(self, work: RowsWork, across: bool = False) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.scratch_bytes)
        self.work, self.across = work, across
        self._loops = self._compiled().address

    @abstractmethod
    def _compiled(self) -> Any:
        """Return the compiled loops."""

    @abstractmethod
    def _own(self) -> dict[str, int]:
        """Return the fields that not all such layers have."""

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, p = self.work, self.problem
        sizes = [axis.size for axis in work.axes]
        if not (are_contiguous(x[1:], (p.ic, *sizes), p.itemsize) and are_contiguous(y[1:2], (p.oc,), p.itemsize)):
            return None
        f = {"xn": x[0], "yn": y[0], "terms": work.terms, "images": p.n, "oc": p.oc, "share": work.share}
        f |= {"slab_bytes": work.scratch_bytes, "activation": self.activation}
        return f | self._own(), self._loops, None

    def _laid_out(self, shape: Sizes) -> Any:
        return np.empty(shape, arrays.dtype_named(self.problem.dtype))


class GemvRunner(RowsRunner):
    """With elements of a row in the lanes."""

    fields = FIELDS
    work: Work

    def _compiled(self) -> Any:
        work = self.work
        tile, compiled = (work.across, loops_across) if self.across else (work.tile, loops)
        return compiled(tile.rows, tile.images, work.lanes, work.format, int(work.simd.fma))

    def _own(self) -> dict[str, int]:
        row = (self.problem.oc if self.across else self.work.terms) * self.problem.itemsize
        return {"row": row, "line": self.work.line, "image": self.work.image}
