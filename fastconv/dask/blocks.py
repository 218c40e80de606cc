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
class Edges:
    """Takes what a block's neighbours read of it, as copies: the block itself need not be kept for them."""

    parts: tuple[tuple[slice, ...], ...]

    def __call__(self, block: Any) -> list[Any]:
        return [block[(..., *part)].copy() for part in self.parts]


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
        Where each array goes that the task is given: one piece an axis.
    edges : tuple of (int or None)
        Of what the task is given, which of a block's edges it is to take; None for the block itself.
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
    edges: tuple[int | None, ...]
    shape: tuple[int, ...]
    dtype: Any
    sizes: tuple[int, ...]

    def __call__(self, blocks: Sequence[Any], weight: Any = None, bias: Any = None, residual: Any = None) -> Any:
        given = {"weight": weight, "bias": bias, "residual": residual}
        arrays = {name: array for name, array in given.items() if array is not None}
        region = self._together([b if e is None else b[e] for b, e in zip(blocks, self.edges, strict=True)])
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
    shared = _Shared(f"{name}-edges", x, ndim)
    for spatial in product(*(range(len(axis)) for axis in regions)):
        here = tuple(axis[i] for axis, i in zip(regions, spatial, strict=True))
        pieces = tuple(product(*(region.pieces for region in here)))
        words = arguments(here)
        for front in product(*(range(len(c)) for c in lead)):
            shape = (*(c[i] for c, i in zip(lead, front, strict=True)), *(region.size for region in here))
            blocks, edges = zip(*(shared.find(front, each) for each in pieces), strict=True) if pieces else ((), ())
            job = Job(op, words, options, here, pieces, edges, shape, x.dtype, x.shape[-ndim:])
            index = (*front, *spatial)
            extra = [None if residual is None else (residual.name, *index)]
            graph[(raw, *index)] = (job, list(blocks), *given, *extra)
    graph |= shared.tasks()
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


class _Shared:
    """The blocks of the input, and what is taken of them: one task a block for all its neighbours.

    A task for each neighbour would be run when that neighbour is, and the block be kept until the last of them.
    """

    def __init__(self, name: str, x: da.Array, ndim: int) -> None:
        self._name, self._source, self._chunks = name, x.name, x.chunks[-ndim:]
        self._parts: dict[tuple[int, ...], dict[tuple[tuple[int, int], ...], int]] = {}

    def find(self, front: tuple[int, ...], pieces: tuple[Piece, ...]) -> tuple[Any, int | None]:
        """Return a key and which of the edges behind it, or None if the key is the block's and all of it is wanted."""
        spatial = tuple(p.block for p in pieces)
        block = (*front, *spatial)
        if all((p.start, p.stop) == (0, c[p.block]) for p, c in zip(pieces, self._chunks, strict=True)):
            return (self._source, *block), None
        parts = self._parts.setdefault(block, {})
        bounds = tuple((p.start, p.stop) for p in pieces)
        return (self._name, *block), parts.setdefault(bounds, len(parts))

    def tasks(self) -> dict[Any, Any]:
        """Return the tasks that take the edges."""
        return {
            (self._name, *block): (
                Edges(tuple(tuple(slice(*bound) for bound in bounds) for bounds in parts)),
                (self._source, *block),
            )
            for block, parts in self._parts.items()
        }
