"""Running a grouped convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.grouped.loops import FIELDS, emptying, filling, loops
from fastconv.backends.cpu.grouped.tile import compiled_tile
from fastconv.backends.cpu.grouped.work import Work
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.geometry import source_line
from fastconv.problem import Sizes


class GroupedRunner(Runner):
    """Runs one problem on arrays of any strides."""

    fields = FIELDS
    in_place = True
    #: Whether of every term the weight's place is listed, too.
    listed = 0

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.slab_bytes)
        self.work = work
        # The loops look at these by address.
        self._places = self._term_places()
        self._row_table = self._table_of_rows()
        self._column_table = self._table_of_columns()
        self._fields = self._known()

    def _term_places(self) -> Any:
        """Return where in a group's slab each term of the first output's sum lies, in bytes."""
        work, sub = self.work, self.work.phase_bytes(self.work.band)
        (down, right), size = work.phases, work.size
        channel, row, col = np.indices((work.inputs, work.rows.kernel, work.cols.kernel)).reshape(3, -1)
        row, col = row * work.rows.dilation, col * work.cols.dilation
        phase = channel * down * right + row % down * right + col % right
        return np.ascontiguousarray(phase * sub + (row // down * work.pitch + col // right) * size, np.int64)

    def _table_of_rows(self) -> Any:
        """Return the input row of every padded one, -1 for zeros, -2 for those that no output reads."""
        rows = self.work.rows
        table = source_line(rows).astype(np.int64)
        read = {row * rows.dilation % rows.stride for row in range(rows.kernel)}
        table[[h for h in range(table.size) if h % rows.stride not in read]] = -2
        # The first row of every phase is looked at, be there one or not.
        return np.concatenate([table, np.full(rows.stride, -2)])

    def _table_of_columns(self) -> Any:
        """Return the input column of every padded one, -1 for zeros and behind the end; a row of -1 after that."""
        line = source_line(self.work.cols)
        table = np.full((2, self.work.phase_vectors * self.work.lanes * self.work.cols.stride), -1, np.int64)
        table[0, : line.size] = line
        return table

    def _known(self) -> dict[str, int]:
        work, p = self.work, self.work.problem
        first, last = inside(work.cols)
        sub = work.phase_bytes(work.band)
        f = {"places": address(self._places), "terms": work.terms, "inputs": work.inputs, "outputs": work.outputs}
        f |= {"groups": p.groups, "bundle": work.bundle, "bundles": work.bundles}
        f |= {"oh": work.rows.out, "ow": work.cols.out, "bands": work.bands, "band": work.band}
        f |= {"slab_bytes": work.slab_bytes, "plane": sub * math.prod(work.phases), "sub": sub}
        f |= {"row": work.pitch * work.size, "heights": work.rows.extent(work.band), "pitch": work.pitch}
        f |= {"rows_apart": work.phases[0], "cols_apart": work.phases[1], "vectors": work.phase_vectors}
        f |= {"line": work.line, "inside": last - first}
        # Of the columns inside the input, every second one goes to one phase and those between to another.
        f |= dict(zip(("even", "odd"), (work.place(column) for column in (first, first + 1)), strict=True))
        f["lead"] = (first // work.phases[1] + 1) * work.size
        f |= {"table_h": address(self._row_table), "table_w": address(self._column_table)}
        f["zeros"] = work.input_bytes(work.band)
        f["sums"] = f["zeros"] + work.zeros_bytes
        f |= self._tiles()
        return f | {"activation": self.activation, "wk": work.terms * work.size}

    def _tiles(self) -> dict[str, int]:
        """Return what the loops know of the tiles, and who computes them."""
        work, tile = self.work, self.work.tile
        f = {"height": tile.channels, "wide": tile.vectors * work.lanes, "less": tile.less * work.lanes}
        f["size"] = work.size
        for name, vectors in (("tile0", tile.vectors), ("tile1", tile.less)):
            form = (tile.channels, vectors, work.lanes, 8 * work.size, int(work.simd.fma), self.listed)
            f[name] = compiled_tile(*form).address
        return f

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as a matrix, a row for each output channel."""
        rows = ordered(w, self.work.workers, new)
        return Packed(rows, address(rows))

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work = self.work
        xn, xc, _, xh, xw = x
        yn, yk, _, yh, yw = y
        last = work.problem.layout == "channels_last"
        reads_channels = xc == work.size and (last or xw != work.size)
        writes_channels = yk == work.size and (last or yw != work.size)
        if not writes_channels and yw != work.size and work.cols.out > 1:
            return None
        read_in_order = work.cols.mode == "zeros" and work.phases[1] <= 2 and xw == work.size
        f = {"xn": xn, "xc": xc, "xh": xh, "xw": xw, "yn": yn, "yk": yk, "yh": yh, "yw": yw}
        f |= {"pixelwise": int(not read_in_order)} | self._fields
        f["fill"] = filling(work.lanes, 8 * work.size, reads_channels).address
        storing, run = self._storing(writes_channels)
        return f | storing, run, None

    def _storing(self, turned: bool) -> tuple[dict[str, int], int]:
        """Return who stores the sums, as vectors of channels if ``turned``, and the address of the loops."""
        return {"empty": emptying(self.work.lanes, 8 * self.work.size, turned).address}, loops().address
