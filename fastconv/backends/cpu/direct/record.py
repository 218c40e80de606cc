"""What the loops' record of integers says of a direct convolution: where it reads, and what it sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.direct.fill import fill_kernel
from fastconv.backends.cpu.direct.tile import CHANNELS, PLANES, ROWS, tiles
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.scratch import address
from fastconv.problem import Sizes

# A register file of so many vectors is small.
_FEW = 16
# More rows than there are.
_NEVER = 1 << 40


def reading_fields(work: Work, x: Sizes, tables: list[Any]) -> tuple[dict[str, int], Sizes]:
    """Return how units are numbered and where they read: the slab and who fills it, or the input itself.

    Parameters
    ----------
    work : Work
    x : tuple of int
        The input's strides.
    tables : list of array
        The input index of each padded position, an axis each.

    Returns
    -------
    fields : dict of str to int
    steps : tuple of int
        The strides of what tiles read: a chunk of channels, a depth, a row, a column.
    """
    p, size = work.problem, work.size
    depth, rows, cols = work.axes
    xn, xc, xd, xh, xw = x
    # Images that are pixels of one.
    line, pixel = work.columns * xn, xn
    if work.across and work.taps == 1:
        xh, xw = line, pixel
    f: dict[str, int] = {"xn": xn, "xg": xc * work.inputs, "xc": xc, "xd": xd, "xh": xh, "xw": xw}
    f |= {"nc": work.inputs, "groups": p.groups, "bands": work.bands, "band": work.band}
    f |= {"od": depth.out, "oh": work.output[0], "stretches": work.stretches, "columns": work.columns}
    f |= {"step_d": depth.stride, "step_h": rows.stride, "step_w": cols.stride}
    if not work.staged:
        f |= {"st": xc, "sd": depth.stride * xd, "sh": rows.stride * xh, "sw": cols.stride * xw}
        steps = (work.item * xc, xd, xh, xw)
        return (f | {"sh": line, "sw": pixel} if work.across else f), steps
    item = work.item * size
    lh = cols.extent(cols.out) * item
    ld = lh * rows.extent(work.band)
    lc = ld * depth.extent(work.deep)
    start, stop = inside(work.line)
    f |= {"fill": fill_kernel(work.lanes, work.format).address, "chunks": work.chunks, "item": item}
    f |= {"lc": lc, "ld": ld, "lh": lh, "kernel_h": rows.extent(1)}
    f |= {"deep": work.deep, "kernel_d": depth.extent(1), "plane_step": 1 if work.deep > 1 else depth.dilation}
    f |= {"widths": cols.extent(cols.out), "first": start, "last": stop}
    f |= dict(zip(("table_d", "table_h", "table_w"), map(address, tables), strict=True))
    f |= {"st": size, "sd": depth.stride * ld, "sh": rows.stride * lh, "sw": cols.stride * item}
    return f, (lc, ld, lh, item)


def summing_fields(
    work: Work, steps: Sizes, term: int, pixel: int, order: int, shift: int = 0
) -> tuple[dict[str, int], Any]:
    """Return what `sweep` knows of a convolution, but where it reads and writes; and an array that it points to.

    Parameters
    ----------
    work : Work
    steps : tuple of int
        As `reading_fields` returns them.
    term, pixel : int
        Bytes of a term and of a pixel, in what tiles read.
    order : int
        What lies side by side in the output, as `output_order` says.
    shift : int
        How many bytes behind the source the first window begins.
    """
    runs, run = _runs(work, steps, term, shift)
    depths, rows = work.borders
    table = np.concatenate((runs, *(axis.taps.ravel() for axis in work.borders if not axis.are_plain)))
    f = {"runs": address(table), "nruns": len(runs), "run": run, "stage": work.stage(run)}
    f |= {"plane": len(runs) // work.axes[0].kernel}
    f |= {"line": f["plane"] // work.axes[1].kernel, "inner": 0, "inner_stop": _NEVER}
    if not rows.are_plain:
        f |= {"inner": rows.inner[0], "inner_stop": rows.inner[1]}
        f["met_h"] = f["runs"] + table.nbytes - rows.taps.nbytes
    if not depths.are_plain:
        f["met_d"] = f["runs"] + runs.nbytes
    f |= {"oc": work.outputs, "od": work.axes[0].out, "oh": work.output[0], "ow": work.output[1]}
    f |= {"blocks": work.blocks, "wblock": work.block * work.terms * work.size}
    f |= {"wide": work.block, "size": work.problem.itemsize, "turn": work.turn}
    return f | _tiles(work, order, term, pixel), table


def output_order(work: Work, y: Sizes) -> int | None:
    """Return what lies side by side in an output of these strides; None if it is nothing that tiles could store."""
    size = work.problem.itemsize
    if not work.across and (work.axes[2].out == 1 or y[-1] == size):
        return PLANES if work.spans_rows and y[-2] == work.output[1] * size else ROWS
    return CHANNELS if y[1] == size or work.problem.oc == 1 else None


def places(work: Work) -> Any:
    """Return which term each (input channel, kernel position) is.

    Rows of the kernel are outermost, so that those which meet the input are one range of terms.
    """
    chunk, channel = (part[:, None] for part in np.divmod(np.arange(work.inputs), work.item))
    columns = work.axes[2].kernel
    row, column = np.divmod(np.arange(work.taps), columns)
    return ((row * work.chunks + chunk) * columns + column) * work.item + channel


def _tiles(work: Work, order: int, term: int, pixel: int) -> dict[str, int]:
    """Return what the loops know of the tiles, and who computes them."""
    tile = work.tile
    steps = _literal_steps(work, term, pixel)
    strip = work.cut.full * work.cut.size
    f = {"rows": tile.rows, "cut": min(work.output[1], strip), "strip": strip}
    partial = int(work.outputs % work.lanes > 0)
    for name, vectors, part in (("0", tile.vectors, 0), ("1", tile.tail, partial)):
        if name == "0" and work.blocks == 1:
            continue  # the only block is the last
        f[f"wterm{name}"] = vectors * work.lanes * work.size
        for kind, (pieces, cols) in zip(("full", "less"), work.cut.spans, strict=True):
            if pieces:
                form = (tile.rows, cols, vectors, work.lanes, work.format, int(work.simd.fma), order, part)
                f[kind + name] = tiles(*form, *steps).address
    return f


def _literal_steps(work: Work, term: int, pixel: int) -> tuple[int, int]:
    """Return those bytes of a term and of a pixel that tiles are compiled for, 0 for any.

    Few registers have short tiles, where it matters. Steps that come in every network are enough, so that few tiles
    are compiled: in a slab whole lines of the cache.
    """
    if work.simd.registers > _FEW:
        return 0, 0
    usual = (LINE, 2 * LINE) if work.staged else (work.size, 2 * work.size)
    return term if term == work.size else 0, pixel if pixel in usual else 0


def _runs(work: Work, steps: Sizes, step: int, shift: int) -> tuple[Any, int]:
    """Return the offsets of runs of terms that lie ``step`` bytes apart, and how many terms a run has."""
    depths, rows, columns = (axis.kernel for axis in work.axes)
    counts = (depths, rows, work.chunks, columns)
    depth, row, column = (axis.dilation * s for axis, s in zip(work.axes, steps[1:], strict=True))
    scaled = (depth, row, steps[0] if work.staged else work.item * step, column)
    run = work.item
    if scaled[-1] == run * step:  # the columns of the kernel follow one another
        run *= counts[-1]
        counts = (*counts[:-1], 1)
    index = np.indices(counts).reshape(len(counts), -1)
    offsets = shift + sum(i * s for i, s in zip(index, scaled, strict=True))
    return np.ascontiguousarray(offsets, np.int64), run
