"""Running a fully connected layer: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import arrays
from fastconv.backends.cpu.axes import are_contiguous
from fastconv.backends.cpu.gemv.loops import FIELDS, loops, loops_across
from fastconv.backends.cpu.gemv.work import Work
from fastconv.backends.cpu.in_place import InPlace
from fastconv.problem import Sizes


class GemvRunner(InPlace):
    """Runs one problem; input, weight and output that do not lie in one piece are copied.

    Parameters
    ----------
    work : Work
    across : bool
        Whether the weight's outputs lie together, and not its inputs.
    """

    fields = FIELDS

    def __init__(self, work: Work, across: bool = False) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.scratch_bytes)
        self.work, self.across = work, across
        tile, compiled = (work.across, loops_across) if across else (work.tile, loops)
        self._loops = compiled(tile.rows, tile.images, work.lanes, work.format, int(work.simd.fma)).address

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, p = self.work, self.problem
        size = p.itemsize
        sizes = [axis.size for axis in work.axes]
        if not (are_contiguous(x[1:], (p.ic, *sizes), size) and are_contiguous(y[1:2], (p.oc,), size)):
            return None
        f = {"xn": x[0], "yn": y[0], "row": (p.oc if self.across else work.terms) * size}
        f |= {"terms": work.terms, "images": p.n, "oc": p.oc}
        f |= {"share": work.share, "slab_bytes": work.scratch_bytes, "line": work.line, "image": work.image}
        return f | {"activation": self.activation}, self._loops, None

    def _laid_out(self, shape: Sizes) -> Any:
        return np.empty(shape, arrays.dtype_named(self.problem.dtype))
