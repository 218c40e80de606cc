"""Convolution as matrix products: unfold, multiply, and for the gradients fold or sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from fastconv import epilogue
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.im2col import blas
from fastconv.backends.im2col.cut import grid, ranges, shrink, slices
from fastconv.backends.im2col.job import C, G, Job, M, N, job
from fastconv.backends.im2col.matrices import Matrix, multiply, packed
from fastconv.backends.im2col.model import convolution_seconds
from fastconv.backends.im2col.slabs import Scratch, extent, fill, fold, is_inside, region, windows
from fastconv.geometry import Range
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import ConvProblem, Sizes


class Gemm(Algorithm):
    """im2col and BLAS, in slices that fit the workspace and the cache.

    1x1 convolutions, linear layers and kernels as large as the map are multiplied where they lie.
    """

    name = "gemm"
    backend = "im2col"
    # OpenBLAS cuts long sums in two, at a multiple of its tile on one thread and in the middle on several, and
    # splits those of a matrix-vector product: other bits for another number of threads, the same for the same.
    deterministic: ClassVar[bool] = False

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, ConvProblem):
            return "solves convolutions, not pools"
        return blas.missing() or _job(problem).refusal

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return _job(problem).workspace

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return convolution_seconds(_job(problem), machine)

    def plan(self, problem: AnyProblem) -> Plan:
        work = _job(problem)
        run = {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad, "bgrad": _bgrad}[problem.direction]

        def pack(w: Any) -> Any:
            return packed(work.form.weight, work.split_weight(w), work.dtype).reshape(w.shape)

        return Plan(problem, self, blas.limited(blas.quiet(partial(run, work))), pack)


def _job(problem: AnyProblem) -> Job:
    assert isinstance(problem, ConvProblem)
    return job(problem, current().max_workspace)


def _fprop(work: Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    block = work.block(inputs + outputs)
    x, y, scratch = work.split(inputs[0]), work.split(outputs[0]), Scratch(work.dtype)
    bias, residual = _extras(work, inputs)
    local = range(M + 1, len(block)) if work.is_local else ()
    inner = [i for i in (N, *range(M + 1, len(block))) if i not in local]
    for outer in _grid(work.whole, block, (G, M, *local)):
        weight = _weight(work, inputs[1], outer, scratch)
        for part in _grid(work.whole, block, inner, outer):
            n, g, _, m, *o = part
            columns = _columns(work, x, part, scratch)
            target = y[slices((n, g, m, *o))]
            result, buffer = _room(work, work.form.result, "result", target, scratch)
            multiply(weight, columns, result)
            _finish(work, buffer, bias, residual, (n, g, m, *o))
            if buffer is not target:
                target[...] = buffer


def _dgrad(work: Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    block = work.block(inputs + outputs)
    dy, dx, scratch = work.split(inputs[0]), work.split(outputs[0]), Scratch(work.dtype)
    bias, residual = _extras(work, inputs)
    tiled = all(axis.is_tiled for axis in work.axes)
    positions = range(M + 1, len(block))
    everywhere = [(0, size) for size in work.problem.input_size]
    for outer in _grid(work.whole, block, (G, C)):
        weight = None if work.is_local else _weight(work, inputs[1], outer, scratch)
        for unit in _grid(work.whole, block, (N,), outer):
            n, g, c, *_ = unit
            target = dx[slices((n, g, c))]
            total = target
            if work.is_half:
                total = scratch.take("total", target.shape, _map_order(work, work.is_last))
            if not tiled:
                total[...] = 0
            for part in _grid(work.whole, block, positions, unit):
                if work.is_local:
                    weight = _weight(work, inputs[1], part, scratch)
                _fold_product(work, weight, _load(work, work.form.result, dy, part, scratch), total, part, scratch)
            _finish(work, total, bias, residual, (n, g, c, *everywhere))
            if total is not target:
                target[...] = total


def _fold_product(work: Job, weight: Any, result: Any, dx: Any, part: Sequence[Range], scratch: Scratch) -> None:
    """Add the columns ``weight.T @ result`` to what they were unfolded from."""
    o = part[M + 1 :]
    positions = [stop - start for start, stop in o]
    transposed = weight.swapaxes(-1, -2)
    if all(axis.is_tiled for axis in work.axes):
        columns = work.form.columns.view(windows(region(dx, work.axes, o), work.axes, positions))
        if columns is not None:
            multiply(transposed, result, columns)
            return
    buffer = scratch.take("columns", (*dx.shape[:3], *work.problem.kernel_size, *positions), work.form.columns.order)
    multiply(transposed, result, work.form.columns.view(buffer))
    fold(buffer, dx, work.axes, o, lambda shape: _slab(work, shape, scratch))


def _wgrad(work: Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    block = work.block(inputs + outputs)
    x, dy, scratch = work.split(inputs[0]), work.split(inputs[1]), Scratch(work.dtype)
    dw = work.split_weight(outputs[0])
    local = range(M + 1, len(block)) if work.is_local else ()
    inner = [i for i in (N, *range(M + 1, len(block))) if i not in local]
    for outer in _grid(work.whole, block, (G, C, M, *local)):
        target = dw[_weight_index(work, outer)]
        total, buffer = _room(work, work.form.weight, "weight", target, scratch)
        # Always in this order, so that the sum's last bit is always the same.
        for i, part in enumerate(_grid(work.whole, block, inner, outer)):
            result = _load(work, work.form.result, dy, part, scratch)
            columns = _columns(work, x, part, scratch).swapaxes(-1, -2)
            if i == 0:
                multiply(result, columns, total)
            else:
                addend = scratch.take("addend", total.shape)
                multiply(result, columns, addend)
                total += addend
        if buffer is not target:
            target[...] = buffer


def _bgrad(work: Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    (dy,), (db,) = inputs, outputs
    block = work.block(inputs + outputs)
    if work.problem.bias == "position":
        for _, _, _, *here in _grid(work.whole, block, range(M, len(block))):
            np.moveaxis(db, -1, 0)[slices(here)] = dy[(slice(None), *slices(here))].sum(0, dtype=work.dtype)
        return
    dy, db, scratch = work.split(dy), db.reshape(1, -1), Scratch(work.dtype)
    for outer in _grid(work.whole, block, (M,)):
        total = 0
        for part in _grid(work.whole, block, (N, *range(M + 1, len(block))), outer):
            # A product with ones runs at the memory's speed, which np.sum does not, and rounds less.
            result = _load(work, work.form.result, dy, part, scratch)
            ones = scratch.take("ones", result.shape[-1:])
            ones[...] = 1
            sums = result @ ones
            total = total + sums.reshape(-1, sums.shape[-1]).sum(0)
        db[0, slice(*outer[M])] = total


def _grid(
    whole: Sizes, block: Sizes, cut: Sequence[int], fixed: Sequence[Range] | None = None
) -> list[tuple[Range, ...]]:
    """Return the blocks along the axes in ``cut``; the others stay as they are fixed, or whole."""
    start = fixed or [(0, size) for size in whole]
    blocks = [tuple(start)]
    for axis in cut:
        if block[axis] < whole[axis]:
            pieces = ranges(whole[axis], block[axis])
            blocks = [(*b[:axis], piece, *b[axis + 1 :]) for b in blocks for piece in pieces]
    return blocks


def _map_order(work: Job, is_last: bool) -> tuple[int, ...]:
    """Return the memory order of a map (n, g, c, spatial)."""
    spatial = range(3, 3 + len(work.axes))
    return (0, *spatial, 1, 2) if is_last else (0, 1, 2, *spatial)


def _slab(work: Job, shape: Sizes, scratch: Scratch) -> Any:
    order = _map_order(work, work.is_last and not work.form.crosses_layout)
    return scratch.take("slab", shape, order)


def _weight_index(work: Job, part: Sequence[Range]) -> tuple[slice, ...]:
    _, g, c, m, *o = part
    return slices((*o, g, m, c) if work.is_local else (g, m, c))


def _weight(work: Job, w: Any, part: Sequence[Range], scratch: Scratch) -> Any:
    """Return a block of the weight as matrices."""
    return _matrix(work, work.form.weight, "weight", work.split_weight(w)[_weight_index(work, part)], scratch)


def _load(work: Job, matrix: Matrix, dy: Any, part: Sequence[Range], scratch: Scratch) -> Any:
    """Return a block of the output's gradient as matrices."""
    n, g, _, m, *o = part
    return _matrix(work, matrix, "result", dy[slices((n, g, m, *o))], scratch)


def _matrix(work: Job, matrix: Matrix, role: str, array: Any, scratch: Scratch) -> Any:
    """Return an array as matrices: itself if BLAS takes it, else a copy."""
    view, buffer = _room(work, matrix, role, array, scratch)
    if buffer is not array:
        buffer[...] = array
    return view


def _room(work: Job, matrix: Matrix, role: str, array: Any, scratch: Scratch) -> tuple[Any, Any]:
    """Return matrices for the contents of an array, and the array that they are views of."""
    if array.dtype == work.dtype:
        view = matrix.view(array)
        if view is not None:
            return view, array
    buffer = scratch.take(role, array.shape, matrix.order)
    return matrix.view(buffer), buffer


def _columns(work: Job, x: Any, part: Sequence[Range], scratch: Scratch) -> Any:
    """Return the columns of a block, unfolded from a slab only where padding or the dtype asks for one."""
    n, g, c, _, *o = part
    source = x[slices((n, g, c))]
    positions = [stop - start for start, stop in o]
    if x.dtype == work.dtype and is_inside(work.axes, o) and not work.form.crosses_layout:
        slab = region(source, work.axes, o)
    else:
        slab = _slab(work, (*source.shape[:3], *extent(work.axes, positions)), scratch)
        fill(slab, source, work.axes, o)
    return _matrix(work, work.form.columns, "columns", windows(slab, work.axes, positions), scratch)


def _extras(work: Job, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return bias and residual as (g, channels, spatial) and (n, g, channels, spatial)."""
    p = work.problem
    bias = residual = None
    if p.bias != "none":
        bias = epilogue.bias_view(p, inputs[2])
        bias = bias.reshape(p.groups, -1, *bias.shape[1:])
    if p.residual:
        residual = work.split(inputs[-1])
    return bias, residual


def _finish(work: Job, result: Any, bias: Any, residual: Any, part: Sequence[Range]) -> None:
    """Apply the epilogue to a block, in pieces where it needs temporaries."""
    activation = work.problem.activation
    if bias is None and residual is None and activation is None:
        return
    if bias is not None:
        bias = bias[tuple(slice(*r) if size > 1 else slice(None) for r, size in zip(part[1:], bias.shape, strict=True))]
    if residual is not None:
        residual = residual[slices(part)]
    limit = work.finish_elements
    if limit is None or result.size <= limit:
        epilogue.apply(activation, result, bias, residual)
        return
    epilogue.apply(None, result, bias, residual)
    for piece in grid(result.shape, shrink(result.shape, range(result.ndim), lambda b: math.prod(b) <= limit)):
        epilogue.apply(activation, result[slices(piece)])
