"""Pools and unfold by the rows of the column matrix: a row is what one kernel position reads of the map.

A pool reduces the rows one after the other, so that the matrix is never there as a whole; ``unfold`` writes
them, and the gradients fold them back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.im2col.blas import quiet
from fastconv.backends.im2col.cut import grid, numpy_buffers, readable, shrink, slices
from fastconv.backends.im2col.model import pool_seconds
from fastconv.backends.im2col.slabs import Scratch, even_axes, extent, fill, fold, is_inside, region, windows
from fastconv.geometry import Axis, Range, divisors, divisors_bytes, kernel_positions
from fastconv.machine import Machine
from fastconv.options import current
from fastconv.problem import PoolProblem, Sizes

# The map of one block: the rows of its windows are read again and again, and stay in the L2 cache.
_BLOCK_BYTES = 1 << 20


class Columns(Algorithm):
    """Pools, unfold and fold on whole rows of the column matrix."""

    name = "columns"
    backend = "im2col"

    def refuses(self, problem: AnyProblem) -> str | None:
        if not isinstance(problem, PoolProblem):
            return "solves pools, not convolutions"
        if problem.kind == "max_unpool":
            return "a scatter has no columns"
        if even_axes(problem) is None and not _is_scatter(problem):
            return f"the adaptive windows from {problem.input_size} to {problem.output_size} are uneven or repeated"
        return _job(problem).refusal

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return _job(problem).bytes(_job(problem).block)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        assert isinstance(problem, PoolProblem)
        return pool_seconds(problem, _job(problem).block, machine)

    def plan(self, problem: AnyProblem) -> Plan:
        work = _job(problem)
        run = _RUN[work.problem.kind.removeprefix("adaptive_"), work.problem.direction]
        return Plan(problem, self, quiet(partial(run, work)))


def _is_scatter(problem: PoolProblem) -> bool:
    """Whether indices say where everything goes, and windows do not matter."""
    return problem.is_max and problem.direction == "dgrad"


def _job(problem: AnyProblem) -> _Job:
    assert isinstance(problem, PoolProblem)
    return _cached_job(problem, current().max_workspace)


class _Job:
    """A pool cut to fit its workspace: ``block`` is the sizes of n, c and the output axes."""

    def __init__(self, problem: PoolProblem, limit: int) -> None:
        self.problem, self.limit = problem, limit
        self.kind = problem.kind
        self.axes = even_axes(problem) or ()
        copies = self.kind == "unfold" and problem.direction == "fprop"
        self.is_half = problem.dtype != problem.accumulator and not copies
        self.itemsize = 4 if self.is_half else problem.itemsize
        self.kernel = tuple(axis.kernel for axis in self.axes)
        self.taps = math.prod(self.kernel)
        self.whole = (problem.n, problem.c, *problem.output_size)
        spatial = range(2, len(self.whole))
        self.is_last = problem.layout == "channels_last"
        self.map_order = (0, *spatial, 1) if self.is_last else (0, 1, *spatial)
        if _is_scatter(problem):
            order: Sequence[int] = (0, 1)
        else:
            order = (0, *spatial, 1) if self.is_last else (0, 1, *spatial)
        start: Sequence[int] = self.whole
        if problem.direction == "dgrad":
            # A map's gradient stays while the blocks of its windows go by.
            start = shrink(start, (0, 1), lambda b: self._lasting(b) <= limit // 2)
        self.block = shrink(start, order, self._fits)

    def dtype(self, array: Any) -> Any:
        """Return the dtype in which an array is computed."""
        return np.dtype(np.float32) if self.is_half else array.dtype

    def _fits(self, block: Sizes) -> bool:
        return self._map(block) <= _BLOCK_BYTES and self.bytes(block) <= self.limit

    def _map(self, block: Sizes) -> int:
        n, c, *o = block
        size = self.problem.input_size if _is_scatter(self.problem) else extent(self.axes, o)
        return n * c * math.prod(size) * self.itemsize

    def bytes(self, block: Sizes) -> int:
        """Return the scratch memory that a run in blocks of this size takes."""
        n, c, *o = block
        positions = math.prod(o)
        outputs = n * c * positions
        if _is_scatter(self.problem):
            return self._lasting(block) + 24 * outputs
        bordered = not all(axis.is_inside((0, axis.out)) for axis in self.axes)
        forward = self.problem.direction == "fprop"
        total = self._lasting(block) + numpy_buffers(outputs, self.itemsize)
        if bordered or forward and (self.is_half or self.kind == "lp_pool"):
            total += self._map(block)
        if self.kind != "unfold":
            total += outputs * self.itemsize * (self.is_half if forward else 1)
            total += divisors_bytes(o)  # flat indices take no more
            total += outputs + (15 * outputs + 40 * self.taps) * self.problem.return_indices  # a mask; ranks, indices
        return total

    def _lasting(self, block: Sizes) -> int:
        if self.problem.direction == "fprop":
            return 0
        maps = block[0] * block[1] * (math.prod(self.problem.input_size) + 1)
        if _is_scatter(self.problem):
            return maps * 8
        return maps * self.itemsize * (self.is_half + (self.kind == "lp_pool" and self.problem.norm_type != 2))

    @property
    def refusal(self) -> str | None:
        """Why not even the smallest block fits, None if it does."""
        if (least := self.bytes(self.block)) <= self.limit:
            return None
        return f"the smallest slice needs {readable(least)}, max_workspace allows {readable(self.limit)}"


@lru_cache(maxsize=256)
def _cached_job(problem: PoolProblem, limit: int) -> _Job:
    return _Job(problem, limit)


def _windows(work: _Job, x: Any, part: Sequence[Range], scratch: Scratch, border: float = 0.0) -> Any:
    """View what a block reads as (n, c, kernel positions, output positions)."""
    n, c, *o = part
    source = x[slices((n, c))]
    positions = [stop - start for start, stop in o]
    if source.dtype == scratch.dtype and is_inside(work.axes, o) and work.kind != "lp_pool":
        return windows(region(source, work.axes, o), work.axes, positions)
    slab = scratch.take("slab", (*source.shape[:2], *extent(work.axes, positions)), work.map_order)
    fill(slab, source, work.axes, o, border)
    if work.kind == "lp_pool":
        np.power(slab, work.problem.norm_type, out=slab)
    return windows(slab, work.axes, positions)


def _row(matrix: Any, tap: tuple[int, ...]) -> Any:
    return matrix[(slice(None), slice(None), *tap)]


def _reduce_blocks(
    work: _Job,
    inputs: tuple[Any, ...],
    outputs: tuple[Any, ...],
    border: float,
    reduce_rows: Callable[[Any, Any, Sequence[Range]], None],
) -> None:
    """Call ``reduce_rows(windows, result, block)`` for every block, and store the results."""
    x, y = inputs[0], outputs[0]
    scratch = Scratch(work.dtype(x))
    for part in grid(work.whole, work.block):
        target = y[slices(part)]
        result = scratch.take("result", target.shape, work.map_order) if work.is_half else target
        reduce_rows(_windows(work, x, part, scratch, border), result, part)
        if result is not target:
            target[...] = result


def _reduce_with(work: _Job, ufunc: np.ufunc, view: Any, result: Any) -> None:
    spatial = len(work.axes)
    if work.taps > math.prod(result.shape[2:]):
        ufunc.reduce(view, axis=tuple(range(2, 2 + spatial)), out=result)
        return
    rows = (_row(view, tap) for tap in kernel_positions(work.kernel))
    result[...] = next(rows)
    for row in rows:
        ufunc(result, row, out=result)


def _max(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    def reduce_rows(view: Any, result: Any, part: Sequence[Range]) -> None:
        _reduce_with(work, np.maximum, view, result)
        if len(outputs) > 1:
            _write_indices(work, view, result, outputs[1][slices(part)], part[2:])

    _reduce_blocks(work, inputs, outputs, -np.inf, reduce_rows)


def _write_indices(work: _Job, view: Any, result: Any, indices: Any, part: Sequence[Range]) -> None:
    """Write where the maxima stand: the first of equals and the last NaN, as PyTorch; -1 in padding alone.

    Every kernel position that holds the result has a rank, and the highest stays: branches on random data cost
    ten times this.
    """
    highest = 2 * work.taps
    rank = np.zeros(result.shape, np.min_scalar_type(highest))
    has_nan = np.isnan(result).any()
    starts = _starts(work, part)
    bordered = not is_inside(work.axes, part)
    for i, tap in enumerate(kernel_positions(work.kernel)):
        row = _row(view, tap)
        holds = row == result
        if bordered:
            holds &= _outer(np.logical_and, map(_reads_input, work.axes, starts, tap))
        np.maximum(rank, np.multiply(holds, rank.dtype.type(work.taps - i)), out=rank)
        if has_nan:
            np.maximum(rank, np.multiply(np.isnan(row), rank.dtype.type(work.taps + 1 + i)), out=rank)
    indices[...] = _tap_offsets(work)[rank]
    indices += _flat_index(starts, work.problem.input_size)
    np.copyto(indices, -1, where=rank == 0)


def _tap_offsets(work: _Job) -> Any:
    """Return what every rank adds to the flat index of a window's first position."""
    positions = (np.arange(axis.kernel) * axis.dilation for axis in work.axes)
    offsets = _flat_index(positions, work.problem.input_size).ravel()
    return np.concatenate([offsets[:1], offsets[::-1], offsets])


def _starts(work: _Job, part: Sequence[Range]) -> list[Any]:
    """Return, along every axis, where the windows start."""
    return [np.arange(*o) * axis.stride - axis.before for axis, o in zip(work.axes, part, strict=True)]


def _reads_input(axis: Axis, starts: Any, k: int) -> Any:
    """Return whether windows that start there read the input, not padding, through a kernel position."""
    position = starts + k * axis.dilation
    return (position >= 0) & (position < axis.size)


def _flat_index(positions: Iterable[Any], size: Sizes) -> Any:
    """Return the flat index of positions given along every axis, an axis each."""
    flat: Any = np.int64(0)
    for along_axis, length in zip(positions, size, strict=True):
        flat = np.add.outer(flat * length, along_axis)
    return flat


def _outer(ufunc: np.ufunc, vectors: Iterable[Any]) -> Any:
    return reduce(ufunc.outer, vectors)


def _divisor(work: _Job, part: Sequence[Range]) -> Any:
    """Return what the sums of a block's windows are divided by, shape (output positions)."""
    divisor = divisors(work.problem, part[2:])
    if work.kind == "lp_pool":
        divisor = divisor / math.prod(work.problem.kernel_size)
    return divisor.astype(np.float64 if work.problem.dtype == "float64" else np.float32, copy=False)


def _average(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    def average(view: Any, result: Any, part: Sequence[Range]) -> None:
        _reduce_with(work, np.add, view, result)
        result /= _divisor(work, part)

    _reduce_blocks(work, inputs, outputs, 0, average)


def _lp(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    def norm(view: Any, result: Any, part: Sequence[Range]) -> None:
        _reduce_with(work, np.add, view, result)
        result /= _divisor(work, part)
        with np.errstate(invalid="ignore"):
            np.power(result, 1 / work.problem.norm_type, out=result)

    _reduce_blocks(work, inputs, outputs, 0, norm)


def _unfold(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    (x,), (y,) = inputs, outputs
    columns = _unfolded(work, y)
    scratch = Scratch(x.dtype)
    every_tap = (slice(None),) * len(work.axes)
    for part in grid(work.whole, work.block):
        n, c, *o = slices(part)
        columns[(n, c, *every_tap, *o)] = _windows(work, x, part, scratch)


def _unfolded(work: _Job, y: Any) -> Any:
    """View (n, c * kernel positions, output positions) with an axis for each."""
    return y.reshape(*work.whole[:2], *work.problem.kernel_size, *work.whole[2:])


def _fold_blocks(
    work: _Job,
    dx: Any,
    columns_of: Callable[[Sequence[Range], Scratch], Any],
    finish: Callable[[Any, Sequence[Range], Scratch], None] | None = None,
) -> None:
    """Fold the columns of every block, ``columns_of(block, scratch)``, into dx; ``finish`` completed maps."""
    scratch = Scratch(work.dtype(dx))
    tiled = all(axis.is_tiled for axis in work.axes)
    for images in grid(work.whole[:2], work.block[:2]):
        target = dx[slices(images)]
        total = scratch.take("total", target.shape, work.map_order) if work.is_half else target
        if not tiled:
            total[...] = 0
        for o in grid(work.whole[2:], work.block[2:]):
            fold(
                columns_of((*images, *o), scratch),
                total,
                work.axes,
                o,
                lambda shape: scratch.take("slab", shape, work.map_order),
            )
        if finish:
            finish(total, images, scratch)
        if total is not target:
            target[...] = total


def _fold(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    columns = _unfolded(work, inputs[0])
    every_tap = (slice(None),) * len(work.axes)

    def columns_of(part: Sequence[Range], scratch: Scratch) -> Any:
        n, c, *o = slices(part)
        return columns[(n, c, *every_tap, *o)]

    _fold_blocks(work, outputs[0], columns_of)


def _same_for_every_tap(work: _Job, share: Any) -> Any:
    spatial = range(2, share.ndim)
    shape = (*share.shape[:2], *work.kernel, *share.shape[2:])
    return np.broadcast_to(np.expand_dims(share, tuple(spatial)), shape)


def _average_dgrad(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    def columns_of(part: Sequence[Range], scratch: Scratch) -> Any:
        dy = inputs[0][slices(part)]
        share = scratch.take("result", dy.shape, work.map_order)
        share[...] = dy
        share /= _divisor(work, part)
        return _same_for_every_tap(work, share)

    _fold_blocks(work, outputs[0], columns_of)


def _lp_dgrad(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Fold ``dy * y**(1-p)`` scaled as the sums were, then multiply by ``x**(p-1)``."""
    dy, x, y = inputs
    p = work.problem.norm_type

    def columns_of(part: Sequence[Range], scratch: Scratch) -> Any:
        here = slices(part)
        share = scratch.take("result", y[here].shape, work.map_order)
        share[...] = y[here]
        is_zero = share == 0
        with np.errstate(divide="ignore"):
            np.power(share, 1 - p, out=share)
        with np.errstate(invalid="ignore"):
            share *= dy[here]
        np.copyto(share, 0, where=is_zero)
        share /= _divisor(work, part)
        return _same_for_every_tap(work, share)

    def finish(total: Any, images: Sequence[Range], scratch: Scratch) -> None:
        source = x[slices(images)]
        # What no window reads has no gradient, whatever its power would be.
        unread = (total == 0) & np.isfinite(source)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            if p != 2:
                power = scratch.take("power", source.shape, work.map_order)
                power[...] = source
                source = np.power(power, p - 1, out=power)
            total *= source
        np.copyto(total, 0, where=unread)

    _fold_blocks(work, outputs[0], columns_of, finish)


def _max_dgrad(work: _Job, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    (dy, indices), (dx,) = inputs, outputs
    for images in grid(work.whole[:2], work.block[:2]):
        here = slices(images)
        dx[here] = _sums_by_index(work, dy[here], indices[here])


def _sums_by_index(work: _Job, dy: Any, indices: Any) -> Any:
    """Return dx. A plane has one cell more than elements, for windows that read padding alone (index -1)."""
    n, c = dy.shape[:2]
    cells = math.prod(work.problem.input_size) + 1
    # Counted in the order of memory, channels first or last.
    order = work.map_order
    shape = [(n, c, cells)[i] for i in ((0, 2, 1) if work.is_last else (0, 1, 2))]
    step, by_channel = (c, 1) if work.is_last else (1, cells)
    first = np.arange(n)[:, None] * (c * cells) + np.arange(c) * by_channel + step
    into = np.multiply(indices, step, dtype=np.int64)
    into += first.reshape(n, c, *(1,) * (dy.ndim - 2))
    weights = dy.transpose(order).astype(np.float64, order="C").ravel()
    sums = np.bincount(into.transpose(order).ravel(), weights, n * c * cells).reshape(shape)
    sums = sums[:, 1:].swapaxes(1, 2) if work.is_last else sums[:, :, 1:]
    return sums.reshape(n, c, *work.problem.input_size)


_RUN: dict[tuple[str, str], Callable[[_Job, tuple[Any, ...], tuple[Any, ...]], None]] = {
    ("max_pool", "fprop"): _max,
    ("max_pool", "dgrad"): _max_dgrad,
    ("avg_pool", "fprop"): _average,
    ("avg_pool", "dgrad"): _average_dgrad,
    ("lp_pool", "fprop"): _lp,
    ("lp_pool", "dgrad"): _lp_dgrad,
    ("unfold", "fprop"): _unfold,
    ("unfold", "dgrad"): _fold,
}
