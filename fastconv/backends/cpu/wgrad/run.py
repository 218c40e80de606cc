"""Running a weight gradient: what the jobs of its chunks say of arrays of certain strides."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.cpu import scratch
from fastconv.backends.cpu.formats import computed
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.registers import whole_lines
from fastconv.backends.cpu.scratch import address, aligned
from fastconv.backends.cpu.wgrad.loops import FIELDS, merging, packing, sums
from fastconv.backends.cpu.wgrad.start import start
from fastconv.backends.cpu.wgrad.tile import compiled_tile
from fastconv.backends.cpu.wgrad.weaving import MOST_APART, weaving
from fastconv.backends.cpu.wgrad.work import Chunk, Work
from fastconv.geometry import source_line
from fastconv.problem import AXES, Sizes

# Of arrays of how many different strides a plan remembers what it worked out.
_MOST_RECORDS = 16

# Channels that lie multiples of this apart, in bytes, fall on the same lines of a first-level cache.
_ALIAS = 4096


class Record(NamedTuple):
    """What is known of a problem on arrays of certain strides."""

    jobs: Any  # a `JOB` for every chunk, as plain integers; addresses of arrays left open
    address: int  # of the first
    direct: bool
    tables: list[Any]  # what the jobs point to


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work = work
        tile, lanes, size = work.tile, work.lanes, work.size
        self._records: dict[tuple[Sizes, Sizes, Sizes], Record | None] = {}
        self._pack_x, self._pack_dy = (kernel.address for kernel in packing(lanes, work.format))
        self._chunks = list(work.chunks())
        self._slab_bytes = work.groups * work.cblocks * work.slab_block(work.chunk)
        panel = work.groups * work.kblocks * work.panel_block(work.chunk)
        self._places = (0, self._slab_bytes, self._slab_bytes + whole_lines(panel))
        self._rows = np.arange(lanes, dtype=np.int64)
        self._lines = [np.ascontiguousarray(source_line(line.axis)[:: line.gap], np.int64) for line in work.lines]
        self._order = self._sum_of_element()
        vector = lanes * size
        self._pixels = [np.arange(lanes) * (wide * vector) for wide in (tile.vectors, tile.tail)]
        self._orders = [self._order * (wide * vector) for wide in (tile.vectors, tile.tail)]

    def _sum_of_element(self) -> Any:
        """Return where among the sums of a block each element (input, kernel position) of a row of dw is."""
        work = self.work
        inputs = work.spread or min(work.channels, work.inputs)
        channel, row, col = np.indices((inputs, work.taps // work.kernel_cols, work.kernel_cols))
        if not work.along:
            place = (row * work.kernel_cols + col) * work.tile.cols + channel
        else:
            place = row * work.tiles_of_row * work.tile.cols + col * inputs + channel
        return np.ascontiguousarray(place.ravel(), np.int64)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (x, dy), (dw,) = inputs, outputs
        try:
            record = self._records[x.strides, dy.strides, dw.strides]
        except KeyError:
            record = self._look(x, dy, dw)
        if record is None or not (x.flags.aligned and dy.flags.aligned and dw.flags.aligned):
            result = np.empty(dw.shape, dw.dtype)
            self.run((aligned(x), aligned(dy)), (result,))
            dw[...] = result
            return
        work = self.work
        slab, panel, sums_ = (scratch.take(work.scratch_bytes) + place for place in self._places)
        if work.turned:
            x, dy = dy, x
        read = address(x) if record.direct else slab
        start(record.jobs, record.address, work.workers, address(x), read, address(dy), address(dw), panel, sums_)

    def _look(self, x: Any, dy: Any, dw: Any) -> Record | None:
        """Describe the jobs for arrays of these strides, and remember them; None if rows of dw are not together."""
        missing = (0,) * (len(AXES) - self.work.problem.ndim)
        first, second = (
            (*array.strides[:2], *missing, *array.strides[2:]) for array in ((dy, x) if self.work.turned else (x, dy))
        )
        together = dw[0].flags.c_contiguous and dw.strides[0] >= 0
        record = self._describe(first, second, dw.strides[0]) if together else None
        if len(self._records) >= _MOST_RECORDS:
            self._records.clear()
        self._records[x.strides, dy.strides, dw.strides] = record
        return record

    def _describe(self, x: Sizes, dy: Sizes, dwk: int) -> Record:
        work = self.work
        tables: list[Any] = [self._rows * dwk]
        direct = work.direct and (x[1] == work.size or x[1] % _ALIAS != 0)
        common = {"dwk": dwk, "dwe": dwk, "wsteps": address(tables[0])} | self._common(tables)
        common |= self._tiles(direct and x[1] != work.size)
        common |= {"pack_x": self._pack_x, "pack_dy": self._pack_dy, "sum": sums(work.lanes, work.format).address}
        common |= {"merge": merging(work.lanes, work.format).address, "units": work.units, "slices": work.slices}
        jobs = []
        for index, chunk in enumerate(self._chunks):
            f = common | self._read_dy(chunk, dy)
            f |= self._read_where_it_is(chunk, x) if direct else self._read_packed(chunk, x, tables)
            finish = index == len(self._chunks) - 1
            f |= {"add": int(index > 0), "finish": int(finish), "straight": int(finish and direct and work.straight)}
            f["merges"] = work.units // work.slices if finish and work.slices > 1 else 0
            f["units_x"] = 0 if direct else work.groups * work.cblocks * f["images"] * f["depths"] * f["heights"]
            f["units_dy"] = work.groups * work.kblocks * f["images"] * f["ydepths"] * f["lines"]
            jobs.append(record_of(FIELDS, f))
        together = np.array(jobs, np.int64)
        return Record(together, address(together), direct, tables)

    def _tiles(self, apart: bool) -> dict[str, int]:
        """Return what the loops know of the tiles, and who computes them; ``apart``: a pixel's inputs lie apart."""
        work, tile = self.work, self.work.tile
        f = {"vectors": tile.vectors, "tail": tile.tail, "span": tile.cols, "spread": work.spread}
        for name, vectors in (("tile0", tile.vectors), ("tile1", tile.tail)):
            form = (tile.cols, vectors, work.lanes, computed(work.format), int(work.simd.fma), work.spread, int(apart))
            f[name] = compiled_tile(*form).address
        return f

    def _common(self, tables: list[Any]) -> dict[str, int]:
        """Return what is the same for every chunk and every array."""
        work = self.work
        item = work.item
        depth, rows, cols = work.lines
        widths = cols.extent(cols.axis.out)
        sh = widths * item
        sd = sh * rows.extent(work.chunk.rows)
        kd, kr, tile = np.indices((depth.axis.kernel, rows.axis.kernel, work.tiles_of_row)).reshape(3, -1)
        across = work.tile.cols * work.size if work.along else cols.axis.dilation * item
        offsets = kd * depth.axis.dilation * sd + kr * rows.axis.dilation * sh + tile * across
        tables.append(np.ascontiguousarray(offsets, np.int64))
        inside = np.flatnonzero(self._lines[2] >= 0)
        plain = cols.axis.mode == "zeros"
        f = {"inputs": work.inputs, "outputs": work.outputs, "cblocks": work.cblocks, "kblocks": work.kblocks}
        f |= {"channels": work.channels, "kernel": work.taps, "item": item, "sblock": work.slab_block(work.chunk)}
        f |= {"widths": widths, "pblock": work.panel_block(work.chunk)}
        f |= {"tiles": address(tables[-1]), "ntiles": len(offsets)}
        f |= self._inside(inside, plain)
        f |= {"ysteps": address(self._pixels[0]), "ytail": address(self._pixels[1])}
        f |= {"order": address(self._orders[0]), "tail_order": address(self._orders[1])}
        f |= {"csupers": work.csupers, "csuper": work.csuper, "unit_sums": work.unit_sums, "own": int(work.own)}
        return f | {"turned": int(work.turned)}

    def _inside(self, inside: Any, plain: bool) -> dict[str, int]:
        """Return which columns of packed x are adjacent columns of the input."""
        axis = self.work.lines[2].axis
        if not plain and len(inside):
            positions = np.arange(len(self._lines[2])) * self.work.lines[2].gap - axis.before
            inside = np.flatnonzero((positions >= 0) & (positions < axis.size))
        return {"first": int(inside[0]), "last": int(inside[-1]) + 1} if len(inside) else {}

    def _box(self, chunk: Chunk, strides: Sizes) -> dict[str, int]:
        """Return the pixels of a chunk as few nested loops, for x with strides of image, depth, row and column."""
        counts = (chunk.images, chunk.depths, chunk.rows, self.work.axes[2].out)
        loops: list[tuple[int, int]] = []
        for count, stride in zip(counts, strides, strict=True):
            if count > 1 and loops and loops[-1][1] == count * stride:
                loops[-1] = (loops[-1][0] * count, stride)
            elif count > 1:
                loops.append((count, stride))
        loops = [(1, 0)] * (len(counts) - len(loops)) + loops
        (outer, bimage), (planes, bplane), (rows, brow), (cols, bcol) = loops
        f = {"outer": outer, "planes": planes, "rows": rows, "cols": cols}
        f |= {"bimage": bimage, "bplane": bplane, "brow": brow, "bcol": bcol}
        f |= {"arow": cols, "aplane": rows * cols, "aimage": planes * rows * cols}
        return f | dict(zip(("mplanes", "mrows", "mcols"), self.work.at_once(planes, rows, cols), strict=True))

    def _read_where_it_is(self, chunk: Chunk, x: Sizes) -> dict[str, int]:
        """Return how tiles read a chunk's input without packing."""
        xn, xc, *spatial = x
        steps = [axis.stride * stride for axis, stride in zip(self.work.axes, spatial, strict=True)]
        first = chunk.image * xn + chunk.depth * steps[0] + chunk.row * steps[1]
        f = {"slab": first, "direct": xc, "bstep": xc, "images": chunk.images}
        return f | self._box(chunk, (xn, *steps))

    def _read_packed(self, chunk: Chunk, x: Sizes, tables: list[Any]) -> dict[str, int]:
        """Return how a chunk's input is packed, and how tiles read that."""
        work = self.work
        xn, xc, xd, xh, xw = x
        depth, rows, cols = work.lines
        f = {"xn": xn, "xc": xc, "xd": xd, "xh": xh, "xw": xw, "x": chunk.image * xn, "images": chunk.images}
        d, h, w = self._lines
        f |= {"table_d": address(d) + 8 * chunk.depth * depth.step, "depths": depth.extent(chunk.depths)}
        f |= {"table_h": address(h) + 8 * chunk.row * rows.step, "heights": rows.extent(chunk.rows)}
        f["table_w"] = address(w)
        if cols.gap <= MOST_APART:
            room = work.item // work.size
            f["weave"] = weaving(work.channels, room, cols.gap, work.lanes, work.format).address
        sh = cols.extent(cols.axis.out) * work.item
        sd = sh * rows.extent(work.chunk.rows)
        simage = sd * depth.extent(work.chunk.depths)
        f |= {"sh": sh, "sd": sd, "simage": simage, "bstep": cols.axis.dilation * work.item}
        f |= self._box(chunk, (simage, depth.step * sd, rows.step * sh, cols.step * work.item))
        if not all(axis.are_plain for axis in work.borders) and (f["rows"], f["cols"]) == (chunk.rows, cols.axis.out):
            tables.append(self._boxes(chunk))
            f["boxes"] = address(tables[-1])
        if rows.axis.is_point and cols.axis.is_point and chunk.rows > 1 and xh == cols.axis.size * xw:
            # Rows that lie one after the other, here and there, are one.
            width = chunk.rows * cols.axis.size
            tables.append(np.arange(width))
            f |= {"x": f["x"] + chunk.row * xh, "heights": 1, "table_h": address(self._rows)}
            f |= {"table_w": address(tables[-1]), "widths": width, "first": 0, "last": width}
        return f

    def _boxes(self, chunk: Chunk) -> Any:
        """Return, for each tile, the first row of a chunk that meets the input and the one behind the last; columns."""
        work = self.work
        rows, columns = (axis.outputs for axis in work.borders)
        rows = (rows - chunk.row).clip(0, chunk.rows)
        if work.along:  # a tile has several columns of the kernel
            columns = np.array([(0, work.axes[2].out)] * work.tiles_of_row)
        _, row, tile = np.indices((work.axes[0].kernel, len(rows), len(columns))).reshape(3, -1)
        return np.ascontiguousarray(np.hstack((rows[row], columns[tile])), np.int64)

    def _read_dy(self, chunk: Chunk, dy: Sizes) -> dict[str, int]:
        """Return how a chunk's gradient of the output is read."""
        yn, yk, yd, yh, yw = dy
        width = self.work.axes[2].out
        f = {"yn": yn, "yk": yk, "yd": yd, "yh": yh, "yw": yw, "ydepths": chunk.depths}
        f["dy"] = chunk.image * yn + chunk.depth * yd + chunk.row * yh
        # Every thread should have something to pack.
        enough = self.work.groups * self.work.kblocks * chunk.images >= self.work.workers
        together = enough and chunk.rows > 1 and yh == width * yw
        return f | ({"lines": 1, "line": chunk.rows * width} if together else {"lines": chunk.rows, "line": width})
