"""What the loops' record of integers says of a direct convolution: where it reads, and what it sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.backends.cpu.axes import inside
from fastconv.backends.cpu.direct.fill import fill_kernel
from fastconv.backends.cpu.direct.tile import tiles
from fastconv.backends.cpu.direct.work import Work
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.scratch import address
from fastconv.problem import Sizes

# A register file of so many vectors is small.
_FEW = 16


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
    if work.across:
        xh = xn if work.taps == 1 else xh
    f: dict[str, int] = {"xn": xn, "xg": xc * work.inputs, "xc": xc, "xd": xd, "xh": xh, "xw": xw}
    f |= {"nc": work.inputs, "groups": p.groups, "bands": work.bands, "band": work.band}
    f |= {"od": depth.out, "oh": work.output[0], "step_d": depth.stride, "step_h": rows.stride}
    if not work.staged:
        f |= {"st": xc, "sd": depth.stride * xd, "sh": rows.stride * xh, "sw": cols.stride * xw}
        steps = (work.item * xc, xd, xh, xw)
        return (f | {"sh": xn} if work.across else f), steps
    item = work.item * size
    lh = cols.extent(cols.out) * item
    ld = lh * rows.extent(work.band)
    lc = ld * depth.extent(1)
    start, stop = inside(cols)
    f |= {"fill": fill_kernel(work.lanes, work.format).address, "chunks": work.chunks, "item": item}
    f |= {"lc": lc, "ld": ld, "lh": lh, "kernel_h": rows.extent(1)}
    f |= {"depths": depth.extent(1), "widths": cols.extent(cols.out), "first": start, "last": stop}
    f |= dict(zip(("table_d", "table_h", "table_w"), map(address, tables), strict=True))
    f |= {"st": size, "sd": 0, "sh": rows.stride * lh, "sw": cols.stride * item}
    return f, (lc, ld, lh, item)


def summing_fields(
    work: Work, steps: Sizes, term: int, pixel: int, last: bool, shift: int = 0
) -> tuple[dict[str, int], Any]:
    """Return what `sweep` knows of a convolution, but where it reads and writes; and an array that it points to.

    Parameters
    ----------
    work : Work
    steps : tuple of int
        As `reading_fields` returns them.
    term, pixel : int
        Bytes of a term and of a pixel, in what tiles read.
    last : bool
        Whether channels lie together in the output.
    shift : int
        How many bytes behind the source the first window begins.
    """
    runs, run = _runs(work, steps, term, shift)
    f = {"runs": address(runs), "nruns": len(runs), "run": run, "stage": work.stage(run)}
    f |= {"oc": work.outputs, "od": work.axes[0].out, "oh": work.output[0], "ow": work.output[1]}
    f |= {"blocks": work.blocks, "wblock": work.block * work.terms * work.size}
    f |= {"wide": work.block, "size": work.problem.itemsize, "turn": work.turn}
    return f | _tiles(work, last, term, pixel), runs


def _tiles(work: Work, last: bool, term: int, pixel: int) -> dict[str, int]:
    """Return what the loops know of the tiles, and who computes them."""
    tile = work.tile
    steps = _literal_steps(work, term, pixel)
    f = {"cut": min(work.output[1], work.cut.full * work.cut.size)}
    partial = int(work.outputs % work.lanes > 0)
    for name, vectors, part in (("0", tile.vectors, 0), ("1", tile.tail, partial)):
        if name == "0" and work.blocks == 1:
            continue  # the only block is the last
        f[f"wterm{name}"] = vectors * work.lanes * work.size
        for kind, (pieces, cols) in zip(("full", "less"), work.cut.spans, strict=True):
            if pieces:
                form = (tile.rows, cols, vectors, work.lanes, work.format, int(work.simd.fma), int(last), part)
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
    counts = (work.chunks, *(axis.kernel for axis in work.axes))
    chunk = steps[0] if work.staged else work.item * step
    scaled = (chunk, *(axis.dilation * s for axis, s in zip(work.axes, steps[1:], strict=True)))
    run = work.item
    if scaled[-1] == run * step:  # the columns of the kernel follow one another
        run *= counts[-1]
        counts = (*counts[:-1], 1)
    index = np.indices(counts).reshape(len(counts), -1)
    offsets = shift + sum(i * s for i, s in zip(index, scaled, strict=True))
    return np.ascontiguousarray(offsets, np.int64), run
