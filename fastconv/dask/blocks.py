"""The graph: for every block of outputs a task that puts its region together and calls fastconv on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from fastconv import ops, pooling
from fastconv.dask.regions import Piece, Region
from fastconv.options import Options, applied


def function(op: str) -> Callable[..., Any]:
    """Return fastconv's function of a name."""
    found: Callable[..., Any] = getattr(ops if op.startswith("conv") else pooling, op)
    return found


@dataclass(frozen=True, eq=False)
class Cut:
    """Takes a part of a block for its neighbour: a copy, so that the block itself need not be kept for it."""

    where: tuple[slice, ...]

    def __call__(self, block: Any) -> Any:
        return block[(..., *self.where)].copy()


@dataclass(frozen=True, eq=False)
class Job:
    """Computes a block of outputs.

    Attributes
    ----------
    op : str
        One of fastconv's functions, by its name: so it travels to other processes.
    arguments : dict
        Its arguments by name, but for arrays.
    options : Options
    regions : tuple of Region
        One for each spatial axis.
    pieces : tuple of tuple of Piece
        Where each block that the task is given goes: one piece an axis.
    shape : tuple of int
        Of the whole region.
    dtype : dtype
    sizes : tuple of int
        The whole input's spatial sizes.
    """

    op: str
    arguments: dict[str, Any]
    options: Options
    regions: tuple[Region, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    shape: tuple[int, ...]
    dtype: Any
    sizes: tuple[int, ...]

    def __call__(self, blocks: Sequence[Any], weight: Any = None, bias: Any = None, residual: Any = None) -> Any:
        given = {"weight": weight, "bias": bias, "residual": residual}
        arrays = {name: array for name, array in given.items() if array is not None}
        region = self._together(blocks)
        with applied(self.options):
            result = function(self.op)(region, **arrays, **self.arguments)
        if isinstance(result, tuple):
            y, indices = result
            return y, self._in_the_whole(indices)
        return result

    def _together(self, blocks: Sequence[Any]) -> Any:
        if not blocks:  # nothing but padding
            return np.zeros(self.shape, self.dtype)
        if len(blocks) == 1 and blocks[0].shape == self.shape:
            return blocks[0]
        region = np.empty_like(blocks[0], shape=self.shape)
        for block, pieces in zip(blocks, self.pieces, strict=True):
            to = tuple(slice(p.at, p.at + p.length) for p in pieces)
            turn = tuple(slice(None, None, -1 if p.turned else 1) for p in pieces)
            region[(..., *to)] = block[(..., *turn)]
        return region

    def _in_the_whole(self, indices: Any) -> Any:
        """Return flat indices into the region as flat indices into the whole input; -1 stays."""
        local = np.unravel_index(np.maximum(indices, 0), tuple(region.size for region in self.regions))
        whole = np.zeros_like(indices)
        for where, region, size in zip(local, self.regions, self.sizes, strict=True):
            whole *= size
            whole += where + region.first
        return np.where(indices < 0, indices, whole)


def build(
    op: str,
    x: da.Array,
    regions: Sequence[Sequence[Region]],
    arguments: Callable[[tuple[Region, ...]], dict[str, Any]],
    options: Options,
    *,
    channels: int | None = None,
    weight: Any = None,
    bias: Any = None,
    residual: da.Array | None = None,
    pair: bool = False,
) -> Any:
    """Return the Dask array of an op's result, or the pair of it and the indices.

    Parameters
    ----------
    op : str
    x : dask array
        Its channels in one chunk if there is a weight.
    regions : sequence of sequences of Region
        Those of every spatial axis.
    arguments : callable
        From a block's regions to the arguments of its call that are no arrays.
    options : Options
    channels : int, optional
        Of the result, if they are not x's.
    weight, bias : array or dask array of one chunk, optional
    residual : dask array, optional
    pair : bool
        Whether the op returns indices, too.
    """
    ndim = len(regions)
    lead = x.chunks[:-ndim]
    out = (lead if channels is None else (*lead[:-1], (channels,))) + tuple(
        tuple(r.stop - r.start for r in axis) for axis in regions
    )
    if residual is not None:
        residual = residual.rechunk(out)
    name = f"fastconv-{op}-{tokenize(op, x, regions, arguments(()), options, weight, bias, residual, pair)}"
    graph: dict[Any, Any] = {}
    dependencies = [x]
    given = [_whole(graph, dependencies, f"{name}-{what}", a) for what, a in (("weight", weight), ("bias", bias))]
    if residual is not None:
        dependencies.append(residual)
    raw = f"{name}-pair" if pair else name
    for spatial in product(*(range(len(axis)) for axis in regions)):
        here = tuple(axis[i] for axis, i in zip(regions, spatial, strict=True))
        pieces = tuple(product(*(region.pieces for region in here)))
        words = arguments(here)
        for front in product(*(range(len(c)) for c in lead)):
            shape = (*(c[i] for c, i in zip(lead, front, strict=True)), *(region.size for region in here))
            job = Job(op, words, options, here, pieces, shape, x.dtype, x.shape[-ndim:])
            blocks = [_piece(graph, name, x, front, each) for each in pieces]
            index = (*front, *spatial)
            extra = [None if residual is None else (residual.name, *index)]
            graph[(raw, *index)] = (job, blocks, *given, *extra)
    if not pair:
        return _array(graph, name, dependencies, out, x.dtype)
    results = []
    for place, (what, dtype) in enumerate((("values", x.dtype), ("indices", np.dtype(np.int64)))):
        taken = {(f"{name}-{what}", *key[1:]): (itemgetter(place), key) for key in graph if key[0] == raw}
        results.append(_array({**graph, **taken}, f"{name}-{what}", dependencies, out, dtype))
    return tuple(results)


def _array(graph: dict[Any, Any], name: str, dependencies: list[Any], chunks: Any, dtype: Any) -> da.Array:
    meta = np.empty((0,) * len(chunks), dtype)
    return da.Array(HighLevelGraph.from_collections(name, graph, dependencies), name, chunks, meta=meta)


def _whole(graph: dict[Any, Any], dependencies: list[Any], name: str, array: Any) -> Any:
    """Return the key of a weight or bias: of its only block, or of its own in the graph."""
    if array is None:
        return None
    if isinstance(array, da.Array):
        array = array.rechunk(-1)
        dependencies.append(array)
        return (array.name, *(0,) * array.ndim)
    graph[name] = array
    return name


def _piece(graph: dict[Any, Any], name: str, x: da.Array, front: tuple[int, ...], pieces: tuple[Piece, ...]) -> Any:
    """Return the key of a part of a block; a task that cuts it out is made unless the part is the whole block."""
    blocks = tuple(p.block for p in pieces)
    key = (x.name, *front, *blocks)
    chunks = x.chunks[len(front) :]
    where = tuple((p.start, p.stop) for p in pieces)
    if where == tuple((0, c[b]) for c, b in zip(chunks, blocks, strict=True)):
        return key
    cut = (f"{name}-cut", *front, *blocks, *(bound for pair in where for bound in pair))
    graph[cut] = (Cut(tuple(slice(*pair) for pair in where)), key)
    return cut
