"""Running Winograd's convolution: addresses into the records of integers, workers onto the units."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.activation import FUSED
from fastconv.backends.cpu.axes import are_contiguous, inside
from fastconv.backends.cpu.direct.algorithm import Direct
from fastconv.backends.cpu.exponential import Finish
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.scratch import address, aligned, contiguous
from fastconv.backends.cpu.winograd import loops, packing
from fastconv.backends.cpu.winograd.product import products
from fastconv.backends.cpu.winograd.transforms import separates
from fastconv.backends.cpu.winograd.work import Work
from fastconv.problem import AXES

# Where the fields are in a record.
_AT = {name: i for i, name in enumerate(loops.JOB.names or ())}

# Records that are kept, one for each layout of arrays in memory.
_RECORDS = 64


class Packed(NamedTuple):
    """A weight made ready, and as it came: NaN and infinity are left to the direct algorithm, which takes that."""

    transformed: Any
    plain: Any


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work = work
        kind = (work.lanes, 8 * work.size, int(work.simd.fma))
        self._kind = kind
        self._loops = loops.loops().address
        self._products = [products(work.tile.cols, vectors, *kind) for vectors in (work.tile.vectors, work.tile.tail)]
        activation = work.problem.activation
        self._activation = np.array(FUSED[activation], work.problem.dtype) if activation in FUSED else None
        self._finish = Finish(activation, work.workers)
        # The loops look at these by address.
        self._tables = work.tables()
        self._starts, self._spans = work.starts(), work.spans()
        self._places = [work.phases.tap_places(turned) for turned in (False, True)]
        self._fields = self._describe()
        self._packing = self._describe_packing()
        # A weight that is that of a gradient's convolution, turned by its strides alone: filters lie backwards.
        shape = work.problem.w_shape
        self._turned = tuple(-math.prod(shape[axis:]) * work.size for axis in range(3, len(shape) + 1))
        self._forwards = (slice(None),) * 2 + (slice(None, None, -1),) * work.problem.ndim
        self._has_bias = work.problem.bias != "none"
        self._room, self._v_room, self._weight_room = work.room, work.v_room, work.weight_room
        self._packs_blocks, self._block_bytes = work.packs_blocks, work.weight_strides["wblock"]
        self._records: dict[Any, np.ndarray] = {}

    def pack(self, w: Any) -> Packed:
        """Return the weight with every filter transformed."""
        # A vector that crosses a line of the cache takes two loads.
        spare = LINE // self.work.size
        packed = np.empty(self.work.packed_size + spare, self.work.problem.dtype)
        start = -packed.ctypes.data % LINE // self.work.size
        packed = packed[start : start + self.work.packed_size]
        self._transform(w, packed.ctypes.data, scratch.take(self.work.workers * self.work.filters))
        return Packed(packed, w)

    def _transform(self, w: Any, packed: int, room: int) -> None:
        assert not self._packs_blocks, "blocks would be written over one another"
        kernel, job, _ = self._transforming(w, packed, room)
        threads.run(kernel, address(job), self.work.problem.groups * self.work.blocks, self.work.workers)

    def _transforming(self, w: Any, packed: int, room: int) -> tuple[int, np.ndarray, Any]:
        """Return the address of what transforms a weight, its record, and the array that this points to."""
        work = self.work
        turned = w.strides[2:] == self._turned and w.flags.aligned
        if turned:
            w = w[self._forwards]
            stride, down = w.strides[0], w.strides[1]
        else:
            if not (are_contiguous(w.strides[1:], w.shape[1:], work.size) and w.flags.aligned):
                w = ordered(w, work.workers)
            stride, down = w.strides[0], 0
        job = self._packing.copy()
        job[: len(packing.HEAD)] = (address(w), stride, down, address(self._places[turned]), packed, room)
        elements = math.prod(work.phases.kernel)
        together = elements if turned and separates(elements, work.lanes) else 0
        kernel = packing.pack_kernel(*work.m, *work.extent, together, *self._kind, int(turned)).address
        return kernel, job, w

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        work, problem, y = self.work, self.work.problem, outputs[0]
        x, w = aligned(inputs[0]), inputs[1]
        bias = contiguous(inputs[2]) if self._has_bias else None
        residual = inputs[-1] if problem.residual else None
        # The transformed weight lies there too: fresh memory would cost more than to fill it.
        room, plain, pack, packing_job = scratch.take(self._room + self._weight_room), w, 0, None
        weight = room + self._room
        if problem.prepacked:
            transformed, plain = w
            weight = address(transformed)
        elif self._packs_blocks:
            pack, packing_job, w = self._transforming(w, weight, weight + self._block_bytes)
        else:
            self._transform(w, weight, room)
        target = y if work.size in (y.strides[1], y.strides[-1]) else np.empty(y.shape, y.dtype)
        job = self._record(x.strides, target.strides).copy()
        adds = residual is None or (residual.strides == target.strides and residual.flags.aligned)
        constants = 0 if self._activation is None or not adds else address(self._activation)
        job[: len(loops.HEAD)] = (
            address(x), address(target), weight,
            0 if bias is None else address(bias),
            0 if residual is None or not adds else address(residual) - address(target),
            constants if residual is None else 0, 0 if residual is None else constants,
            room, room + self._v_room, pack, 0 if packing_job is None else address(packing_job),
        )  # fmt: skip
        self._compute(job)
        if job[_AT["special"]]:
            # A transform smears NaN and infinity over its tile.
            Direct().plan(problem.replace(prepacked=False)).run((inputs[0], plain, *inputs[2:]), outputs)
            return
        if not adds:
            epilogue.apply(problem.activation, target, None, residual)
        elif self._activation is None:
            self._finish(target)
        if target is not y:
            y[...] = target

    def _compute(self, job: np.ndarray) -> None:
        work, where = self.work, address(job)
        if not work.block.shared:
            threads.run(self._loops, where, work.units, work.workers)
            return
        for unit in range(work.units):
            job[_AT["unit"]] = unit
            for stage, pieces in ((1, work.block.rows * work.together), (2, work.blocks)):
                job[_AT["stage"]] = stage
                threads.run(self._loops, where, pieces, work.workers)

    def _record(self, x: tuple[int, ...], y: tuple[int, ...]) -> np.ndarray:
        """Return the record for arrays of these strides, addresses left open."""
        known = self._records.get((x, y))
        if known is None:
            if len(self._records) > _RECORDS:
                self._records.clear()
            missing = (0,) * (len(AXES) - self.work.problem.ndim)
            fields = dict(zip(("xn", "xc", "xd", "xh", "xw"), (*x[:2], *missing, *x[2:]), strict=True))
            fields |= dict(zip(("yn", "yk", "yd", "yh", "yw"), (*y[:2], *missing, *y[2:]), strict=True))
            fields["xg"] = x[1] * self.work.inputs
            known = self._records[x, y] = record_of(loops.FIELDS, self._fields | fields)
        return known

    def _describe_packing(self) -> np.ndarray:
        """Return the record of the weight's transformation, what its head says left open."""
        work = self.work
        f = {"ic": work.inputs, "padded": work.pieces * work.chunk, "depths": work.axes[0].kernel}
        f |= {"oc": work.outputs, "blocks": work.blocks, "vectors": work.tile.vectors, "tail": work.tile.tail}
        f |= {"phases": len(work.phases.order), "points": work.points, "elements": math.prod(work.phases.kernel)}
        if work.packs_blocks:
            f |= {"wunit": 0, "wworker": work.block_room, "scratch_bytes": work.block_room}
        else:
            f |= {"wunit": work.weight_strides["wblock"], "wworker": 0, "scratch_bytes": work.filters}
        return record_of(packing.FIELDS, f | {name: work.weight_strides[name] for name in ("wpoint", "wlast")})

    def _describe(self) -> dict[str, int]:
        """Return the fields that are the same for all arrays."""
        work, block = self.work, self.work.block
        table_d, table_h, table_w = self._tables
        depth, height, width = work.axes
        first, last = inside(width)
        f = {"ic": work.inputs, "chunk": work.chunk, "pieces": work.pieces, "chunks": work.chunks, "oc": work.outputs}
        f |= {"phases": len(work.phases.order), "starts": address(self._starts), "spans": address(self._spans)}
        f |= {"od": depth.out, "oh": height.out, "ow": width.out}
        f |= {"table_d": table_d.ctypes.data, "step_d": depth.stride, "dilation_d": depth.dilation}
        f |= {"vectors": work.tile.vectors, "tail": work.tile.tail}
        f |= dict(zip(("product", "product_last"), (p.address for p in self._products), strict=True))
        f |= {"enter": loops.entering(*work.m, *work.extent, *work.phases.stride, *self._kind).address}
        f["points"] = work.points
        f["leave"] = loops.leaving(*work.m, *work.extent, *self._kind).address
        f |= {"table_h": table_h.ctypes.data, "table_w": table_w.ctypes.data}
        f |= {"before": width.before, "first": first, "last": last}
        f |= {"blocks": work.blocks, "rows": block.rows, "cols": block.cols}
        f |= {"down": work.down, "across": work.across, "all_rows": work.all_rows}
        f |= {"row_bands": work.row_bands, "col_bands": work.col_bands}
        f["v_bytes"] = 0 if block.shared else work.v_bytes
        f["wworker"] = work.block_room
        return f | work.scratch | work.weight_strides
