"""Running a fully connected layer whose lanes are images."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import arrays
from fastconv.backends.cpu.axes import are_contiguous
from fastconv.backends.cpu.gemv.batch_loops import FIELDS, loops
from fastconv.backends.cpu.gemv.batch_work import BatchWork
from fastconv.backends.cpu.in_place import InPlace
from fastconv.problem import Sizes


class BatchRunner(InPlace):
    """Runs one problem; input and output whose images do not lie in one piece are copied.

    Parameters
    ----------
    work : BatchWork
    across : bool
        Whether the weight's outputs lie together, and not its inputs.
    """

    fields = FIELDS

    def __init__(self, work: BatchWork, across: bool = False) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.scratch_bytes)
        self.work, self.across = work, across
        self._loops = loops(*work.tile, work.lanes, work.format, int(work.simd.fma)).address

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, p = self.work, self.problem
        size = p.itemsize
        sizes = [axis.size for axis in work.axes]
        if not (are_contiguous(x[1:], (p.ic, *sizes), size) and are_contiguous(y[1:2], (p.oc,), size)):
            return None
        row, column = (size, p.oc * size) if self.across else (work.terms * size, size)
        f = {"xn": x[0], "yn": y[0], "row": row, "column": column}
        f |= {"terms": work.terms, "images": p.n, "oc": p.oc, "share": work.share, "block": work.block}
        f |= {"slab_bytes": work.scratch_bytes, "matrix": work.slab_bytes, "activation": self.activation}
        return f, self._loops, None

    def _laid_out(self, shape: Sizes) -> Any:
        return np.empty(shape, arrays.dtype_named(self.problem.dtype))
