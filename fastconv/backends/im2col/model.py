"""How long a run should take: overhead, arithmetic at BLAS's rate, and copies at the memory's.

The constants were fitted on server CPUs with AVX-512, with one and two threads. What a machine makes of
them is in its `Machine.peak` and `Machine.bandwidth`.
"""

from __future__ import annotations

import math

from fastconv.backends.im2col.job import Job
from fastconv.machine import Machine
from fastconv.problem import PoolProblem, Sizes

_RUN_SECONDS = 38e-6
_BLOCK_SECONDS = 30e-6
_ROW_SECONDS = 1.5e-6

# What a library does is known less well than what kernels of one's own do: where they seem equal, it is slower.
_DOUBT = 1.1

# Products of matrices run at this share of the peak, less where a side is short: half of it at these lengths.
_GEMM_EFFICIENCY = 0.75
_HALF_ROWS, _HALF_COLUMNS, _HALF_SUM = 10, 14, 18
_MATRIX_SECONDS = 0.2e-6
# A product with a vector is as fast as its matrix is read.
_VECTOR_EFFICIENCY = 0.9
# NumPy copies and adds line by line.
_LINE_SECONDS = 6e-9
# One of many rows that lie side by side is copied element by element, each from a line of its own.
_PICK_SECONDS = 1.5e-9

# BLAS's threads spin after their work, and take cores from what comes next: as much is lost there as this (measured
# with OpenBLAS: one to two milliseconds). Products of fewer multiply-adds it leaves to one thread.
_SPINNING_SECONDS, _ONE_THREAD = 1e-3, 1 << 18

# In units of the bandwidth of memory: copies within the cache, adding back, which reads and writes, sums, and pools.
_UNFOLD_RATE = 0.9
_FOLD_RATE = 0.25
_SUM_RATE = 1.5
_POOL_RATE = 0.5

_SCATTER_SECONDS = 4e-9  # an output's gradient to its index
_RANKING = 3  # a max pool with indices, in times of one without
_HALF_SECONDS = 0.6e-9  # to widen or narrow an element


def convolution_seconds(job: Job, machine: Machine) -> float:
    """Return the seconds that a convolution should take."""
    p = job.problem
    size = job.dtype.itemsize
    widened = sum(math.prod(a.shape) for a in p.inputs + p.outputs) * _HALF_SECONDS * job.is_half
    overhead = _RUN_SECONDS + _BLOCK_SECONDS * _blocks(job.whole, job.native)
    if p.direction == "bgrad":
        return overhead + widened + p.bytes / (_SUM_RATE * machine.bandwidth)
    n, g, c, _, *o = job.whole
    positions = math.prod(o)
    copied = n * g * c * job.taps * positions * size if job.native_needs.columns else 0
    rate = _FOLD_RATE if p.direction == "dgrad" else _UNFOLD_RATE
    if p.direction == "dgrad" and not all(axis.is_tiled for axis in job.axes):  # cleared before
        overhead += machine.moving(math.prod(p.x_shape) * size)
    # What goes through memory and what BLAS computes overlap; copies stand between them.
    through = max(_gemm_seconds(job, machine), machine.moving(p.bytes))
    lines = copied / size / (c if job.is_last else o[-1] if o else 1)
    copying = lines * _LINE_SECONDS + copied / (rate * machine.bandwidth) + job.picked * _PICK_SECONDS
    return _DOUBT * (overhead + widened + copying + through)


def _gemm_seconds(job: Job, machine: Machine) -> float:
    n, g, c, m, *o = job.native
    positions = math.prod(o)
    matrices, across = g, n * positions
    if job.is_local:
        matrices, across = g * positions, n
    elif job.form.images_apart:
        matrices, across = g * n, positions
    depth = c * job.taps
    rows, columns, terms = {"fprop": (m, across, depth), "dgrad": (depth, across, m), "wgrad": (m, depth, across)}[
        job.problem.direction
    ]
    efficiency = _VECTOR_EFFICIENCY
    if min(rows, columns) > 1:
        shape = rows / (rows + _HALF_ROWS) * columns / (columns + _HALF_COLUMNS) * terms / (terms + _HALF_SUM)
        efficiency = _GEMM_EFFICIENCY * shape
    calls = matrices * _blocks(job.whole, job.native)
    spins = machine.threads() > 1 and job.problem.macs > calls * _ONE_THREAD
    seconds = calls * _MATRIX_SECONDS + job.problem.flops / (efficiency * machine.peak(job.problem.dtype))
    return seconds + _SPINNING_SECONDS * spins


def _blocks(whole: Sizes, block: Sizes) -> int:
    return math.prod(-(-w // b) for w, b in zip(whole, block, strict=True))


def pool_seconds(problem: PoolProblem, block: Sizes, machine: Machine) -> float:
    """Return the seconds that a pool in blocks of (n, c, output axes) should take."""
    _, _, *o = block
    blocks = _blocks((problem.n, problem.c, *problem.output_size), block)
    outputs = problem.n * problem.c * math.prod(problem.output_size)
    if problem.is_max and problem.direction == "dgrad":
        return _RUN_SECONDS + _BLOCK_SECONDS * blocks + outputs * _SCATTER_SECONDS
    taps = problem.macs // outputs
    rows = (taps if problem.return_indices else min(taps, math.prod(o))) * blocks * _ROW_SECONDS
    rate = _POOL_RATE / 2 if problem.direction == "dgrad" else _POOL_RATE
    if problem.kind == "lp_pool":
        rate /= 2
    if problem.return_indices:
        rate /= _RANKING
    lines = problem.macs / (problem.c if problem.layout == "channels_last" else o[-1]) * _LINE_SECONDS
    return _RUN_SECONDS + rows + lines + problem.macs * problem.itemsize / (rate * machine.bandwidth)
