"""One convolution cut to fit its workspace: what scratch memory its arrays need, and the blocks that follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.backends.im2col.cut import COLUMNS_BYTES, Block, numpy_buffers, readable, shrink
from fastconv.backends.im2col.matrices import NARROW, Form, Matrix, form, natural_strides
from fastconv.backends.im2col.slabs import even_axes, extent
from fastconv.problem import DTYPES, ConvProblem

# Where the axes of a block stand: images, groups, channels of a group in and out, then the output's axes.
N, G, C, M = range(4)

# A block is at least this many columns wide where the workspace allows: BLAS reads the weight once a block.
_WIDE = 512

# A bias's gradient is a product with this many ones at most; they stay in the L2 cache.
_ONES = 1 << 16

# An activation that needs temporaries is applied to pieces that keep them below this.
_EPILOGUE_BYTES = 1 << 20


class Needs(NamedTuple):
    """Which arrays are copied on their way into or out of BLAS."""

    slab: bool
    columns: bool
    result: bool
    weight: bool


class Job:
    """A convolution under a limit of scratch memory.

    Attributes
    ----------
    whole : tuple of int
        The sizes of n, g, c, m and the output axes.
    native : tuple of int
        The block's sizes if all arrays lie in memory as the layout says.
    """

    def __init__(self, problem: ConvProblem, limit: int) -> None:
        if problem.direction == "bgrad":
            problem = problem.replace(groups=1)
        self.problem, self.limit = problem, limit
        self.dtype = np.dtype(problem.accumulator)
        self.is_half = problem.dtype != problem.accumulator
        self.is_last = problem.layout == "channels_last"
        self.is_local = problem.is_local and problem.direction != "bgrad"
        self.axes = even_axes(problem) or ()
        self.form: Form = form(problem)
        g = problem.groups
        self.taps = math.prod(problem.kernel_size)
        self.whole = (problem.n, g, problem.ic // g, problem.oc // g, *problem.output_size)
        self._epilogue = problem.direction in ("fprop", "dgrad") and (
            problem.bias != "none" or problem.residual or problem.activation is not None
        )
        temporaries = epilogue.TEMPORARIES.get(problem.activation or "", 0) * self.dtype.itemsize
        self._finish_bytes = min(limit // 16, _EPILOGUE_BYTES) if temporaries else 0
        # None: the activation works in place, on whatever is there.
        self.finish_elements = max(self._finish_bytes // temporaries, 1) if temporaries else None
        self.native_needs = self._native_needs()
        self.native = self._cut(self.native_needs)
        self._strides = tuple(
            natural_strides(a.shape, DTYPES[a.dtype], self.is_last and a.spatial)
            for a in problem.inputs + problem.outputs
        )

    @cached_property
    def strided(self) -> Block:
        """The block's sizes if nothing is known of the arrays' strides."""
        return self._cut(Needs(True, True, True, True))

    def block(self, arrays: Sequence[Any]) -> Block:
        """Return the block's sizes for the arrays of a run, inputs and outputs."""
        for i, (array, strides) in enumerate(zip(arrays, self._strides, strict=True)):
            if array.strides != strides and not (i == 1 and self.problem.prepacked):
                return self.strided
        if self.problem.prepacked and (
            arrays[1].dtype != self.dtype or self.form.weight.view(self.split_weight(arrays[1])) is None
        ):
            return self.strided
        return self.native

    def split(self, a: Any) -> Any:
        """View a map (N, C, spatial) as (n, g, channels of a group, spatial)."""
        return a.reshape(a.shape[0], self.whole[G], -1, *a.shape[2:])

    def split_weight(self, w: Any) -> Any:
        """View a weight as ([o,] g, m, c, k)."""
        _, g, c, m, *o = self.whole
        return w.reshape(*(o if self.is_local else ()), g, m, c, *self.problem.kernel_size)

    def _native_needs(self) -> Needs:
        p = self.problem
        if p.direction == "bgrad":
            return Needs(slab=False, columns=False, result=self.is_half, weight=False)
        point = all(axis.is_point for axis in self.axes)
        whole = all(axis.is_whole for axis in self.axes)
        positions = math.prod(p.output_size)
        beside = not self.is_last and not self.is_local and 1 < positions < NARROW and p.n > 1
        lies_right = point and not beside or whole and (not self.is_last or self.form.taps_first)
        bordered = not all(axis.is_inside((0, axis.out)) for axis in self.axes)
        return Needs(
            slab=self.is_half or bordered or self.form.crosses_layout,
            columns=self.is_local or not lies_right,
            result=self.is_half or self.is_local or beside,
            weight=(self.is_half or self.form.taps_first and self.taps > 1) and not p.prepacked,
        )

    def _cut(self, needs: Needs) -> Block:
        direction, o = self.problem.direction, range(M + 1, len(self.whole))
        start: Block = self.whole
        if direction == "wgrad" and not self.is_last and math.prod(self.whole[M + 1 :]) >= NARROW:
            start = (1, *start[1:])
        if self.is_local or direction == "bgrad":
            order = (*o, N, G)
        else:
            if not self._fits(start, needs):
                # What stays while blocks of positions go by: the weight, its gradient, the input's gradient.
                lasting = {"fprop": (G, M), "dgrad": (N, G, C), "wgrad": (G, C, M)}[direction]
                start = shrink(start, lasting, lambda b: self._lasting(b, needs, in_parts=True) <= self.limit // 2)
            order = (N, *o, G) if self.is_last else (N, G, *o)
        return shrink(start, (*order, C if direction in ("dgrad", "wgrad") else M), lambda b: self._fits(b, needs))

    def _fits(self, block: Block, needs: Needs) -> bool:
        if self.bytes(block, needs) > self.limit:
            return False
        n, g, c, m, *o = block
        if self.problem.direction == "bgrad":
            return n * math.prod(o) <= _ONES
        if not (needs.columns or needs.result or self._epilogue):
            return True
        column = max(c * self.taps, m) * self.dtype.itemsize
        return column * g * n * math.prod(o) <= max(COLUMNS_BYTES, column * _WIDE)

    def bytes(self, block: Block, needs: Needs) -> int:
        """Return the scratch memory that a run in blocks of this size takes."""
        n, g, c, m, *o = block
        positions = math.prod(o)
        results, columns = n * g * m * positions, n * g * c * self.taps * positions
        elements = 0
        if needs.result or self._is_vector(self.form.result, m, self.problem.oc):
            elements += results
        if self.problem.direction == "bgrad":
            # The ones, and the sums of a block.
            elements += n * positions + 2 * n * m + (m * positions if self.problem.bias == "position" else 0)
            return elements * self.dtype.itemsize + numpy_buffers(elements, self.dtype.itemsize)
        if needs.slab:
            # A border that repeats an element is summed on its way back.
            copies = 2 if self.problem.direction == "dgrad" and self.problem.padding_mode == "replicate" else 1
            elements += copies * n * g * c * math.prod(extent(self.axes, o))
        if needs.columns or self._is_vector(self.form.columns, c * self.taps, self.problem.ic):
            elements += columns
        total = elements * self.dtype.itemsize + self._lasting(block, needs, self._adds_up(block)) + self._finish_bytes
        if total or self._epilogue:
            maps = n * g * c * math.prod(self.problem.input_size) if self.problem.direction == "dgrad" else 0
            total += numpy_buffers(max(results, columns, maps), self.dtype.itemsize)
        return total

    @staticmethod
    def _is_vector(matrix: Matrix, rows: int, channels: int) -> bool:
        """Whether a matrix is one row of many that lie side by side, which BLAS does not take."""
        return not matrix.by_row and rows == 1 and channels > 1

    @property
    def picked(self) -> int:
        """Elements of maps that are copied one by one since their rows are of that kind, beside copied columns."""
        n, g, c, m, *o = self.whole
        columns = not self.native_needs.columns and self._is_vector(self.form.columns, c * self.taps, self.problem.ic)
        result = self._is_vector(self.form.result, m, self.problem.oc)
        return n * g * math.prod(o) * (columns * c * self.taps + result * m)

    def _lasting(self, block: Block, needs: Needs, in_parts: bool) -> int:
        n, g, c, m, *o = block
        weight = g * m * c * self.taps * (math.prod(o) if self.is_local else 1)
        elements = weight * (needs.weight + (in_parts and self.problem.direction == "wgrad"))
        if self.problem.direction == "dgrad" and self.is_half:
            elements += n * g * c * math.prod(self.problem.input_size)
        return elements * self.dtype.itemsize

    def _adds_up(self, block: Block) -> bool:
        """Whether a weight's gradient comes in several parts, which need room beside the sum."""
        return block[N] < self.whole[N] or (not self.is_local and block[M + 1 :] != self.whole[M + 1 :])

    @property
    def workspace(self) -> int:
        """Bytes that a run takes if all arrays lie in memory as the layout says."""
        return self.bytes(self.native, self.native_needs)

    @property
    def refusal(self) -> str | None:
        """Why not even the smallest block fits, None if it does."""
        needs = Needs(True, True, True, True)
        least = max(self.bytes(self.strided, needs), self.workspace)
        if least <= self.limit:
            return None
        return (
            f"the smallest slice of the column matrix needs {readable(least)}, "
            f"max_workspace allows {readable(self.limit)}"
        )


@lru_cache(maxsize=256)
def job(problem: ConvProblem, limit: int) -> Job:
    """Return the job of a problem under a limit of scratch memory."""
    return Job(problem, limit)
