"""The sums of a channels-last input gradient by a matrix product, and the run that starts both."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastconv.algorithm import Plan
from fastconv.arrays import dtype_named
from fastconv.backends.cpu import scratch, threads
from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import fields_of, job_type, record_of, task_type
from fastconv.backends.cpu.memory import clear, record, word
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.simd import Emitter, literals
from fastconv.backends.cpu.work import workers_for
from fastconv.geometry import Axis
from fastconv.problem import AXES, ConvProblem

FIELDS = fields_of(
    """
    rows x                          | addresses: the product's rows, the gradient
    image xn xd xh xw               | bytes of an image's rows; strides of the gradient
    depths heights widths           | its sizes
    groups channels group           | groups, channels of one, bytes of the runs of one
    runs_d runs_h runs_w            | tables: the places of runs, those of all elements one after the other
    from_d from_h from_w            | tables: for each depth, row and column its first run, and behind the last its end
    """
)
JOB = job_type(FIELDS)
_ROWS, _X, _STRIDES = FIELDS.index("rows"), FIELDS.index("x"), FIELDS.index("xn")

# Vectors of channels that are summed together.
_VECTORS = 4


@intrinsic(prefer_literal=True)
def _add_runs(
    typingctx, vectors, lanes, bits, source, runs_d, count_d, runs_h, count_h, runs_w, count_w, target, count
):  # fmt: skip
    """Store the sum of runs of at most ``vectors`` vectors, one for each depth, row and column that tables name."""
    known = literals(vectors, lanes, bits)
    if known is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        many, width, element = known
        source, runs_d, count_d, runs_h, count_h, runs_w, count_w, target, count = args[3:]
        e = Emitter(builder, element, width)
        masks = [e.first(e.at(count, -v * width)) for v in range(many)]

        def add(at: Any, sums: list[Any]) -> list[Any]:
            places = [e.at(at, v * width * e.bytes) for v in range(many)]
            loaded = [e.load_masked(place, mask) for place, mask in zip(places, masks, strict=True)]
            return [builder.fadd(total, value) for total, value in zip(sums, loaded, strict=True)]

        def over(base: Any, tables: list[tuple[Any, Any]], sums: list[Any]) -> list[Any]:
            if not tables:
                return add(base, sums)
            (table, number), *rest = tables

            def body(index: Any, values: list[Any]) -> list[Any]:
                return over(e.at(base, e.load_integer(e.at(table, e.times(index, 8)))), rest, values)

            return e.loop(number, sums, body)

        tables = [(runs_d, count_d), (runs_h, count_h), (runs_w, count_w)]
        for v, total in enumerate(over(source, tables, [e.zero] * many)):
            e.store_masked(total, e.at(target, v * width * e.bytes), masks[v])
        return context.get_dummy_value()

    return types.void(vectors, lanes, bits, *(types.int64,) * 9), codegen


@cache
def _loops(lanes: int, bits: int) -> Any:
    """Return the compiled ``run(job, start, stop, worker)``; a unit is a row of the gradient."""
    size = bits // 8
    most = _VECTORS * lanes
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            h, rest = unit % job.heights, unit // job.heights
            d, n = rest % job.depths, rest // job.depths
            first_d, first_h = word(job.from_d, d), word(job.from_h, h)
            count_d, count_h = word(job.from_d, d + 1) - first_d, word(job.from_h, h + 1) - first_h
            source, x = job.rows + n * job.image, job.x + n * job.xn + d * job.xd + h * job.xh
            if count_d * count_h == 0 and job.xw == job.groups * job.channels * size:
                clear(x, job.widths * job.xw)
                continue
            for w in range(job.widths):
                first_w = word(job.from_w, w)
                count_w = word(job.from_w, w + 1) - first_w
                if count_d * count_h * count_w == 0:
                    clear(x + w * job.xw, job.groups * job.channels * size)
                    continue
                depths, heights, widths = job.runs_d + 8 * first_d, job.runs_h + 8 * first_h, job.runs_w + 8 * first_w
                for group in range(job.groups):
                    at, to = source + group * job.group, x + w * job.xw + group * job.channels * size
                    for c in range(0, job.channels, most):
                        left = job.channels - c
                        if left <= lanes:
                            _add_runs(
                                1, lanes, bits, at + c * size, depths, count_d, heights, count_h, widths, count_w,
                                to + c * size, left,
                            )  # fmt: skip
                        else:
                            _add_runs(
                                _VECTORS, lanes, bits, at + c * size, depths, count_d, heights, count_h,
                                widths, count_w, to + c * size, left,
                            )  # fmt: skip

    return run


class ChannelsRunner:
    """Runs one problem on arrays of any strides, as many images at a time as the ``product`` has."""

    def __init__(self, problem: ConvProblem, product: Plan) -> None:
        self.problem, self._product = problem, product
        self._images, self._columns, self._positions = product.problem.y_shape
        self._bytes = math.prod(product.problem.y_shape) * problem.itemsize
        self._dtype = dtype_named(problem.dtype)
        self._workers = workers_for(problem)
        self._last = (0, *range(2, 2 + problem.ndim), 1)
        lanes = simd().lanes(problem.itemsize)
        self._loops = _loops(lanes, 8 * problem.itemsize).address
        self._tables: list[Any] = []  # the loops look at these by address
        axes = lifted_axes(problem)
        f = {"image": self._columns * self._positions * problem.itemsize, "groups": problem.groups}
        f |= {"channels": problem.ic // problem.groups, "group": self._columns // problem.groups * problem.itemsize}
        f |= dict(zip(("depths", "heights", "widths"), (axis.size for axis in axes), strict=True))
        run, row = f["channels"] * problem.itemsize, self._columns * problem.itemsize
        for name, axis in reversed(list(zip("dhw", axes, strict=True))):
            runs, starts = _runs(axis, run, row)
            self._tables += [runs, starts]
            f |= {f"runs_{name}": address(runs), f"from_{name}": address(starts)}
            run, row = run * axis.kernel, row * axis.out
        self._known = record_of(FIELDS, f)
        self._units = self._images * axes[0].size * axes[1].size

    def pack(self, w: Any) -> Any:
        """Return the weight as `run` takes it where the problem is prepacked."""
        return self._product.pack(self._matrix(w))

    def _matrix(self, w: Any) -> Any:
        """Return the weight as the product takes it: for each kernel position and channel a row."""
        groups = self.problem.groups
        rows = ordered(w.transpose(self._last), self._workers)
        rows = rows.reshape(groups, self.problem.oc // groups, self._columns // groups)
        return rows.swapaxes(1, 2).reshape(self._columns, -1, 1)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (dy, w), (dx,) = inputs, outputs
        p = self.problem
        weight = w if p.prepacked else self._matrix(w)
        if self._product.problem.prepacked and not p.prepacked:
            weight = self._product.pack(weight)
        rows = scratch.room(self._bytes, "columns")[: self._bytes].view(self._dtype)
        columns = rows.reshape(self._images, self._positions, self._columns).swapaxes(1, 2)
        pixels = dy.transpose(self._last).reshape(p.n, self._positions, p.oc).swapaxes(1, 2)
        fits = dx.flags.aligned and (dx.strides[1] == p.itemsize or p.ic == 1)
        target = dx if fits else np.moveaxis(np.empty((p.n, *p.input_size, p.ic), dx.dtype), -1, 1)
        job = self._known.copy()
        strides = target.strides
        job[_ROWS] = address(rows)
        job[_STRIDES : _STRIDES + 4] = (strides[0], *(0,) * (len(AXES) - p.ndim), *strides[2:])
        for first in range(0, p.n, self._images):
            self._product.run((pixels[first : first + self._images], weight), (columns,))
            job[_X] = address(target[first:])
            threads.run(self._loops, address(job), self._units, self._workers)
        if target is not dx:
            dx[...] = target


def _runs(axis: Axis, run: int, row: int) -> tuple[Any, Any]:
    """Return where the runs lie that an axis's elements sum, and which are whose, in bytes of a run and of a row."""
    places: list[int] = []
    starts = [0]
    for place in range(axis.before, axis.before + axis.size):
        windows = ((k, *divmod(place - k * axis.dilation, axis.stride)) for k in range(axis.kernel))
        places += [k * run + o * row for k, o, rest in windows if rest == 0 and 0 <= o < axis.out]
        starts.append(len(places))
    return np.array(places or [0], np.int64), np.array(starts, np.int64)
