"""Running a direct convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from fastconv.backends.cpu.direct.job import FIELDS
from fastconv.backends.cpu.direct.loops import loops
from fastconv.backends.cpu.direct.record import output_order, places, reading_fields, summing_fields
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.packing import Packer, has_adjacent_outputs, pack_columns, pack_rows
from fastconv.backends.cpu.phases import lines_read
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address, contiguous
from fastconv.geometry import source_line
from fastconv.problem import Sizes


class DirectRunner(Runner):
    """Runs one problem on arrays of any strides."""

    fields = FIELDS

    def __init__(self, work: Work) -> None:
        problem = work.problem
        super().__init__(problem, work.units, work.workers, work.workers * work.scratch_bytes)
        self.work = work
        # The loops look at these by address.
        self._tables = [lines_read(work.axes[0]), lines_read(work.axes[1]), source_line(work.line)]
        self._weight_shape = (problem.oc, work.inputs * work.taps)
        # What no weight goes to must be zero.
        self._is_padded = work.terms > self._weight_shape[1]
        self._packed_bytes = work.packed_bytes
        # Behind the weight, words that say which blocks of it are not finite.
        self._found = work.packed_size * work.size if work.cuts else 0
        self._placed = [self._packed_offsets(vectors) for vectors in (work.tile.vectors, work.tile.tail)]
        self._offsets = [*map(address, self._placed)]

    @cached_property
    def _packer(self) -> Packer:
        work = self.work
        return Packer(
            work.format, work.lanes, work.problem.groups, work.outputs, self._weight_shape[1], work.block, work.terms,
            self._placed, work.workers, self._found,
        )  # fmt: skip

    def _packed_offsets(self, vectors: int) -> Any:
        """Return where in a packed block each (input channel, kernel position) goes."""
        return places(self.work).ravel() * (vectors * self.work.lanes * self.work.size)

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        packed = new(self._packed_bytes)
        if self._is_padded:
            packed[: self._packed_bytes] = 0
        where = address(packed)
        if has_adjacent_outputs(w, self.problem.groups) and not self._found:
            work = self.work
            pack_columns(w, work.format, work.lanes, work.block, work.terms, where, self._offsets, work.workers)
            return Packed(packed, where)
        self._packer.pack(w, where)
        return Packed(packed, where)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work = self.work
        order = output_order(work, y)
        if order is None:
            return None
        yn, yk, yd, yh, yw = y
        if work.across:
            yh, yw = work.columns * yn, yn
        reading, steps = reading_fields(work, x, self._tables)
        summing, runs = summing_fields(work, steps, reading["st"], reading["sw"], order)
        f = reading | summing | {"yn": yn, "yk": yk, "yd": yd, "yh": yh, "yw": yw}
        f["wgroup"] = work.packed_size // work.problem.groups * work.size
        f |= {"parts": work.parts, "slab_bytes": work.scratch_bytes, "sums": work.slab_bytes(work.band)}
        f |= {"found": self._found, "activation": self.activation}
        return f, loops().address, runs


class BlockwiseRunner(DirectRunner):
    """Runs one problem on arrays of any strides, each block of the weight being packed when its turn comes."""

    in_place = True

    @cached_property
    def _packing_before(self) -> DirectRunner:
        return DirectRunner(self.work)

    def _run_otherwise(self, inputs: tuple[Any, ...], y: Any, packed: Any, slab: int) -> None:
        """A weight that was transposed is not turned block by block, but copied."""
        if has_adjacent_outputs(inputs[1], self.problem.groups):
            self._packing_before.run(inputs, (y,))
        else:
            super()._run_otherwise(inputs, y, packed, slab)

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight in the order of its channels."""
        w = contiguous(w)
        return Packed(w, address(w))

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        found = super().describe(x, y)
        if found is None:
            return None
        work, terms = self.work, self._weight_shape[1]
        f = {"pack": pack_rows(work.format, work.lanes).address, "row": terms * work.problem.itemsize}
        f |= {"row_terms": terms, "padded": int(self._is_padded), "cuts": int(work.cuts), "found": 0}
        f |= dict(zip(("offsets", "tail_offsets"), self._offsets, strict=True))
        f |= {"room": work.slab_bytes(work.band) + work.sums_bytes}
        return found[0] | f, *found[1:]
