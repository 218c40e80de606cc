"""The input gradient element by element, with no padding: for weights that are not finite.

A padded convolution multiplies its weight by zeros, which makes NaN of an infinity where the gradient has none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import float32 as single
from numba import types

from fastconv import epilogue
from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.compiling import fingerprint, function
from fastconv.problem import AXES, ConvProblem


def input_gradient(problem: ConvProblem, dy: Any, w: Any, dx: Any, bias: Any = None, residual: Any = None) -> None:
    """Compute the gradient, with bias, residual and activation, and round it once."""
    axes = lifted_axes(problem)
    missing = (None,) * (len(AXES) - problem.ndim)
    table = np.array([[a.size, a.out, a.kernel, a.stride, a.dilation, a.before] for a in axes], np.int64)
    index = (slice(None), slice(None), *missing)
    dy, w = (array.astype(problem.accumulator, copy=False) for array in (dy, w))
    result = np.empty(problem.x_shape, problem.accumulator)
    _gather(8 * result.itemsize)(dy[index], w[index], result[index], table, problem.groups)
    if bias is not None:
        bias = epilogue.bias_view(problem, bias).astype(problem.accumulator, copy=False)
    if residual is not None:
        residual = residual.astype(problem.accumulator, copy=False)
    epilogue.apply(problem.activation, result, bias, residual)
    dx[...] = result


@cache
def _gather(bits: int) -> Any:
    sources = fingerprint()
    element = types.float32 if bits == 32 else types.float64
    array = types.Array(element, 5, "A", readonly=True)
    zero = (single if bits == 32 else types.float64)(0.0)

    @function(types.void(array, array, types.Array(element, 5, "A"), types.Array(types.int64, 2, "C"), types.int64))
    def gather(dy, w, dx, axes, groups):
        if sources == 0:
            return
        inputs, outputs = w.shape[1], w.shape[0] // groups
        for n in range(dx.shape[0]):
            for c in range(dx.shape[1]):
                first = c // inputs * outputs
                for d in range(dx.shape[2]):
                    for h in range(dx.shape[3]):
                        for q in range(dx.shape[4]):
                            total = zero
                            for i in range(w.shape[2]):
                                od = d + axes[0, 5] - i * axes[0, 4]
                                if od < 0 or od % axes[0, 3] or od // axes[0, 3] >= axes[0, 1]:
                                    continue
                                for j in range(w.shape[3]):
                                    oh = h + axes[1, 5] - j * axes[1, 4]
                                    if oh < 0 or oh % axes[1, 3] or oh // axes[1, 3] >= axes[1, 1]:
                                        continue
                                    for k in range(w.shape[4]):
                                        ow = q + axes[2, 5] - k * axes[2, 4]
                                        if ow < 0 or ow % axes[2, 3] or ow // axes[2, 3] >= axes[2, 1]:
                                            continue
                                        od_, oh_, ow_ = od // axes[0, 3], oh // axes[1, 3], ow // axes[2, 3]
                                        for o in range(outputs):
                                            total += dy[n, first + o, od_, oh_, ow_] * w[first + o, c % inputs, i, j, k]
                            dx[n, c, d, h, q] = total

    return gather
