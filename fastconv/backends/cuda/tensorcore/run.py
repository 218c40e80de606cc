"""From a form of arrays to launches of `kernels/tensorcore.cu`: what is packed, and the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastconv.backends.cuda import launching
from fastconv.backends.cuda.algorithm import ACTIVATIONS, ELEMENTS, Arrays
from fastconv.backends.cuda.geometry import AXIS
from fastconv.backends.cuda.launching import Grid, Kernel
from fastconv.backends.cuda.parameters import FASTDIV, INT, LONG, Struct, array, fastdiv, nested
from fastconv.backends.cuda.tensorcore.form import Form, Operand
from fastconv.backends.cuda.tensorcore.packing import Packer
from fastconv.backends.cuda.tensorcore.work import MOST_PHASES, Tile, Work

_SUM_THREADS = 256
MAPS = ("x", "y", "dx", "dy", "residual")
"""Arrays that have images."""

# The structs of kernels/convolution.cuh and kernels/tensorcore.cu.
STRIDES = nested({"group": LONG, "row": LONG, "outer": LONG, "axis": array(LONG, 3), "position": array(LONG, 3)})
PHASE = nested({"axis": array(AXIS, 3), "matrix_origin": INT, "out_origin": LONG, "residual_origin": LONG})
PARAMETERS = Struct(
    ("gathered", "matrix", "out", "bias", "residual", "partial"),
    {
        "out_strides": STRIDES,
        "residual_strides": STRIDES,
        "bias_row": LONG,
        **dict.fromkeys(("gathered_group", "gathered_image"), INT),
        "gathered_axis": array(INT, 3),
        **dict.fromkeys(("matrix_group", "matrix_line"), INT),
        "matrix_axis": array(INT, 3),
        **dict.fromkeys(("images", "rows", "groups", "chunks", "channels"), INT),
        **dict.fromkeys(("skips_outside", "along_positions", "in_vectors", "taps_fastest"), INT),
        **dict.fromkeys(("activation", "splits", "first_part", "parts", "line"), INT),
        **dict.fromkeys(("by_chunks", "by_row_tiles", "by_column_tiles"), FASTDIV),
        **dict.fromkeys(("by_line_channels", "by_line_rows", "by_taps"), FASTDIV),
        "phase": array(PHASE, MOST_PHASES),
    },
)


class Runner:
    """A problem's launches for one form of arrays: `start` makes them."""

    def __init__(self, work: Work, form: Form) -> None:
        self.work, self.form = work, form
        _, tile, self.splits, self.images = work.choice
        product = work.product
        self.problem = problem = product.problem
        defines = (
            ("ELEMENT", ELEMENTS[problem.dtype]),
            ("TILE", ", ".join(map(str, (tile.rows, tile.columns, work.depth, tile.warp_rows, tile.warp_columns)))),
            ("STAGES", str(tile.stages)),
            ("WGRAD", str(int(product.is_wgrad))),
            ("AXES", str(product.axes)),
        )
        self.launcher = launching.launcher()
        self.multiply = self.launcher.prepare(
            Kernel("tensorcore.cu", "tensorcore", defines), (tile.threads, 1, 1), work.shared_bytes(tile)
        )
        self.parts = work.parts(self.splits, self.images)
        if self.parts:
            self.add = self.launcher.prepare(Kernel("tensorcore.cu", "tensorcore_sum", defines), (_SUM_THREADS, 1, 1))
        self.operands = (form.gathered, form.matrix)
        self.scratch_dtype = {2: "uint16", 4: "float32"}[problem.itemsize]
        self.names = tuple(o.name for o in problem.inputs + problem.outputs)
        packings = [operand.packing for operand in self.operands]
        self.packer = Packer(packings, problem.dtype) if any(packings) else None
        self.portions = []
        for first in range(0, problem.n, self.images):
            last = min(first + self.images, problem.n)
            self.portions.append((first, last, self._packing(first, last), list(self._launches(tile, first))))

    def _packing(self, first: int, last: int) -> tuple[int, bytes] | None:
        """Return how what a portion needs is packed: a weight is packed once, with the first."""
        if self.packer is None:
            return None
        outer = [
            last - first if name in MAPS else packing.outer if packing and not first else 0
            for name, _, packing in self.operands
        ]
        grid, parameters = self.packer.parameters(outer)
        return (grid, parameters) if grid else None

    def _launches(self, tile: Tile, first: int) -> Iterator[tuple[Grid, bytes]]:
        """Yield grids and parameters for the images of a portion, eight phases each."""
        work, form = self.work, self.form
        product, problem = work.product, self.problem
        images = min(self.images, problem.n - first)
        (_, gathered, _), (_, matrix, _) = self.operands
        along_positions, in_vectors = form.stores
        for start in range(0, len(product.phases), MOST_PHASES):
            some = product.phases[start : start + MOST_PHASES]
            sizes = [product.size(phase, images) for phase in some]
            row_tiles = max(-(-rows // tile.rows) for rows, _, _ in sizes)
            column_tiles = max(-(-columns // tile.columns) for _, columns, _ in sizes)
            phase = np.zeros(MOST_PHASES, PHASE)
            for i, one in enumerate(some):
                phase[i] = form.phase(one)
            # A weight gradient's rows are those of all groups.
            sum_rows = problem.oc if product.is_wgrad else sizes[0].rows
            parameters = PARAMETERS.pack(
                out_strides=form.strides_like_result(form.result),
                residual_strides=form.strides_like_result("residual"),
                bias_row=form.bias_row,
                gathered_group=gathered.group,
                gathered_image=gathered.line,
                gathered_axis=gathered.axis,
                matrix_group=matrix.group,
                matrix_line=matrix.line,
                matrix_axis=[s * a.tap_step for s, a in zip(matrix.axis, some[0], strict=True)],
                images=images,
                rows=product.results,
                groups=problem.groups,
                chunks=product.chunks,
                channels=product.channels,
                # As the reference: a convolution multiplies its padding, an input gradient has none.
                skips_outside=problem.direction == "dgrad",
                along_positions=along_positions,
                in_vectors=in_vectors,
                taps_fastest=product.is_wgrad and form.taps_fastest,
                activation=ACTIVATIONS[problem.activation],
                splits=self.splits,
                first_part=first // self.images * self.splits if product.is_wgrad else 0,
                parts=self.parts,
                line=product.line,
                by_chunks=fastdiv(product.chunks),
                by_row_tiles=fastdiv(row_tiles),
                by_column_tiles=fastdiv(column_tiles),
                by_line_channels=fastdiv(product.channels if product.is_wgrad else product.results),
                by_line_rows=fastdiv(sum_rows),
                by_taps=fastdiv(math.prod(problem.kernel_size)),
                phase=phase,
            )
            yield (row_tiles * column_tiles * problem.groups, self.splits, len(some)), parameters

    @property
    def sums(self) -> int:
        """Elements of the result that parts of the reduction are summed for."""
        return math.prod(self.problem.outputs[0].shape)

    def start(self, inputs: Arrays, outputs: Arrays) -> None:
        """Launch everything."""
        named = dict(zip(self.names, inputs + outputs, strict=True))
        packed = [self._scratch(operand) for operand in self.operands]
        count = self.work.partial_count(self.splits, self.images)
        partial = self.launcher.empty(count, "float32") if count else None
        for first, last, packing, launches in self.portions:
            some = named
            if len(self.portions) > 1:
                some = {name: array[first:last] if name in MAPS else array for name, array in named.items()}
            arrays = [some[operand.name] for operand in self.operands]
            if packing:
                assert self.packer is not None
                self.packer.start(packing, arrays, packed)
            operands = [array if scratch is None else scratch for array, scratch in zip(arrays, packed, strict=True)]
            pointers = [*operands, some[self.form.result], some.get("bias"), some.get("residual"), partial]
            for grid, parameters in launches:
                self.multiply(grid, parameters, pointers)
        if self.parts:
            self.add((-(-self.sums // _SUM_THREADS),), launches[0][1], pointers)

    def _scratch(self, operand: Operand) -> Any:
        packing = operand.packing
        if packing is None:
            return None
        outer = self.images if operand.name in MAPS else packing.outer
        return self.launcher.empty(outer * packing.outer_elements, self.scratch_dtype)
