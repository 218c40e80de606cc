"""Running a 1x1 convolution: addresses into the record of integers, workers onto the units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends.cpu.in_place import InPlace
from fastconv.backends.cpu.packing import Packer, copy_blocks, has_adjacent_outputs, pack_columns
from fastconv.backends.cpu.pointwise.loops import FIELDS, FLAT, ROWS, TABLE, loops
from fastconv.backends.cpu.pointwise.panel import copy_every, copy_lines, copy_one, turn_lines
from fastconv.backends.cpu.pointwise.remainder import remainder
from fastconv.backends.cpu.pointwise.tile import tile
from fastconv.backends.cpu.pointwise.work import LANES_ARE_CHANNELS, ROWS_ARE_CHANNELS, InPlaceWork, Work
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.problem import Sizes

# Pixels that fill no vector, at once.
_PIXELS = 2


class PointwiseRunner(Runner):
    """Runs one problem on arrays of any strides."""

    fields = FIELDS
    # Whether the weight's scalars for a product lie apart.
    _apart = False

    def __init__(self, work: Work) -> None:
        super().__init__(work.problem, work.units, work.workers, work.workers * work.slab_bytes)
        self.work = work
        self._rows = work.tile.form == ROWS_ARE_CHANNELS
        # A last block of fewer rows has the room of a whole one.
        widths = (work.width, work.width if self._rows else work.tile.tail * work.lanes)
        self._offsets = [np.arange(work.inputs) * (width * work.size) for width in widths]
        self._packer = Packer(
            work.format, work.width if self._rows else work.lanes, work.problem.groups, work.outputs, work.inputs,
            work.width, work.places, self._offsets, work.workers,
        )  # fmt: skip
        self._loops = loops().address
        self._tiles = self._compile()

    def _compile(self) -> dict[str, int]:
        """Return the addresses of the tiles: of full size or one smaller, by a whole block or the last."""
        work, t = self.work, self.work.tile
        addresses = {}
        for i in (0, 1):
            for j, channels in enumerate((t.block, t.tail)):
                pixels = t.cut.size - i
                if (i and t.cut.full == t.cut.pieces) or (not j and t.blocks == 1):
                    continue
                addresses[f"tile{i}{j}"] = self._tile(pixels, channels, 0)
                if j == 0:
                    # A panel of pixels in the lanes is as wide as the tile.
                    kept = pixels * work.lanes if self._rows else work.stride
                    addresses[f"keep{i}"] = self._tile(pixels, channels, kept)
        return addresses

    def _tile(self, pixels: int, channels: int, kept: int) -> int:
        work = self.work
        rows, vectors = (channels, pixels) if self._rows else (pixels, channels)
        how = (int(work.simd.fma), work.tile.form, kept, int(self._apart))
        compiled = tile(rows, vectors, work.lanes, work.format, *how)
        address: int = compiled.address
        return address

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it."""
        work = self.work
        packed = new(work.packed_bytes)
        start = address(packed)
        start += -start % 64
        if has_adjacent_outputs(w, work.problem.groups):
            offsets = [*map(address, self._offsets)]
            pack_columns(w, work.format, work.lanes, work.width, work.places, start, offsets, work.workers)
            return Packed(packed, start)
        self._packer.pack(w, start)
        return Packed(packed, start)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        work, p, size, t = self.work, self.work.problem, self.work.size, self.work.tile
        output = [axis.out for axis in work.axes]
        xn, xc, *x_axes = x
        yn, yk, *y_axes = y
        x_axes = [axis.stride * step for axis, step in zip(work.axes, x_axes, strict=True)]
        xp, yp = _together(p.n, output, xn, x_axes, work.merged), _together(p.n, output, yn, y_axes, work.merged)
        if yp is None or (work.merged and xp is None):
            return None
        channels_last = t.form == LANES_ARE_CHANNELS
        if (yk if channels_last else yp) != p.itemsize and (p.oc if channels_last else work.pixels) > 1:
            return None
        if xp is not None:
            x_axes, output = [0, 0, xp], [1, 1, work.pixels]
        f = {"xn": xn, "xg": xc * work.inputs, "xc": xc, "xd": x_axes[0], "xh": x_axes[1], "xw": x_axes[2]}
        f |= {"yn": yn, "yk": yk, "yp": yp, "ystep": yp if channels_last else yk}
        f |= {"wgroup": work.group_size * size, "wblock": work.width * work.places * size, "wstep0": work.width * size}
        f["wstep1"] = (work.width if self._rows else t.tail * work.lanes) * size
        f["wahead"] = f["wstep0"]
        f |= {"blocks": t.blocks, "width": work.width, "nc": work.inputs, "oc": work.outputs, "chunk": work.inputs}
        f |= {"oh": output[1], "ow": output[2], "pixels": work.pixels}
        f |= {"tiles": t.cut.pieces, "total": work.images * t.cut.pieces, "full": t.cut.full, "cut": t.cut.size}
        f |= {"unit": t.unit, "bands": work.bands, "band": work.band, "parts": work.parts}
        f |= {"slab_bytes": work.slab_bytes, "panel": work.panel_bytes, "rows": int(self._rows)}
        f |= {"item": size, "stored": p.itemsize}
        f["streams"] = int(not work.is_small)
        f["activation"] = self.activation
        return f | self._tiles | self._left() | self._copying(xc, x_axes[2], xp), self._loops, None

    def _left(self) -> dict[str, int]:
        """Return what the loops know of pixels that are done on their own."""
        work, t = self.work, self.work.tile
        if not t.left:
            return {}
        pixels = 1 if t.left % _PIXELS else _PIXELS
        how = (pixels, work.lanes, work.format, int(work.simd.fma), int(self._apart))
        f = {f"remainder{i}": remainder(rows, *how).address for i, rows in enumerate((t.block, t.tail))}
        return f | {"left": t.left, "lefts": pixels, "left_bytes": work.left_bytes, "left_at": work.left_at}

    def _copying(self, channel: int, column: int, pixel: int | None) -> dict[str, int]:
        """Return how panels are made of an input of such strides, of which all pixels may be ``pixel`` apart."""
        work, size, stored = self.work, self.work.size, self.work.problem.itemsize
        bits, lanes = work.format, work.lanes
        steps = [work.stride, work.stride - lanes if self._rows else work.stride]
        f = {"step0": steps[0] * size, "step1": steps[1] * size}
        if pixel == stored or work.pixels == 1:
            vectors = [max(1, -(-step // lanes)) for step in steps]
            copies = [copy_lines(count, lanes, bits).address for count in vectors]
            return f | {"layout": FLAT, "copy0": copies[0], "copy1": copies[1]}
        if channel == stored and not self._rows:
            last = -(-work.tile.cut.size // lanes) * lanes - 1
            copy = turn_lines(lanes, bits).address
            return f | {"layout": TABLE, "last": last, "copy0": copy, "copy1": copy}
        if column in (stored, 2 * stored):
            copy = copy_every(column // stored, lanes, bits).address
            return f | {"layout": ROWS, "copy0": copy, "copy1": copy, "run": work.pixels}
        copy = copy_one(bits).address
        return f | {"layout": ROWS, "copy0": copy, "copy1": copy, "run": 1}


class InPlaceRunner(InPlace, PointwiseRunner):
    """Runs one problem on arrays of any strides, the weight being read where it is.

    Rows of input channels are read scalar by scalar. Where a weight was transposed, the scalars of a product lie
    together, but those of the next one are far away: a block is copied before tiles read it again and again.

    Parameters
    ----------
    work : InPlaceWork
    across : bool
        Whether the weight's outputs lie together, and not its inputs.
    """

    def __init__(self, work: InPlaceWork, across: bool = False) -> None:
        self.across, self._apart = across, not across
        super().__init__(work)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        found = super().describe(x, y)
        if found is None:
            return None
        work, size = self.work, self.work.size
        if self.across:
            row = work.problem.oc * size
            f = {"wgroup": work.outputs * size, "wblock": work.width * size, "wrow": row, "wahead": row}
            f |= {"wcopy": copy_blocks(work.format, work.copies * work.width, work.width).address}
            f |= {"wcopies": work.copies, "block_at": work.block_at, "block_bytes": work.block_bytes}
            return found[0] | f | {"chunk": work.chunk}, *found[1:]
        row = work.inputs * size
        f = {"wgroup": work.outputs * row, "wblock": work.width * row, "wrow": row, "wstep0": size, "wstep1": size}
        return found[0] | f, *found[1:]


def _together(n: int, output: list[int], image: int, axes: list[int], merged: bool) -> int | None:
    """Return the bytes between neighbouring pixels, if these are the same for all of them."""
    lines = [*zip(reversed(output), reversed(axes), strict=True), (n if merged else 1, image)]
    step: int | None = None
    expected = 0
    for count, stride in lines:
        if count == 1:
            continue
        if step is None:
            step = expected = stride
        elif stride != expected:
            return None
        expected *= count
    return step or 0
