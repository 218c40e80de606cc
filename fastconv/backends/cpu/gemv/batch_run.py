"""Running a fully connected layer whose lanes are images."""

from __future__ import annotations

from typing import Any

from fastconv.backends.cpu.gemv.batch_loops import FIELDS, loops
from fastconv.backends.cpu.gemv.batch_work import BatchWork
from fastconv.backends.cpu.gemv.run import RowsRunner


class BatchRunner(RowsRunner):
    """With images in the lanes."""

    fields = FIELDS
    work: BatchWork

    def _compiled(self) -> Any:
        work = self.work
        return loops(*work.tile, work.lanes, work.format, int(work.simd.fma))

    def _own(self) -> dict[str, int]:
        work, size = self.work, self.problem.itemsize
        row, column = (size, self.problem.oc * size) if self.across else (work.terms * size, size)
        return {"row": row, "column": column, "block": work.block, "matrix": work.slab_bytes}
