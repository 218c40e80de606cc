"""Running a bias gradient: rows of pixels summed for one channel, or vectors of channels pixel by pixel."""

from __future__ import annotations

import math
from functools import cache, reduce
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.job import HEAD, Start, fields_of, job_type, never, record_of, start_of, task_type
from fastconv.backends.cpu.memory import record
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.simd import I64, Emitter, literals
from fastconv.problem import ConvProblem

FIELDS = fields_of("x xn xc xp y images channels pixels", HEAD)
JOB = job_type(FIELDS)

# Vectors that are summed apart, so that additions need not wait for one another.
_SUMS = 4


@intrinsic(prefer_literal=True)
def _sum(typingctx, lanes, bits, last, x, xn, xp, images, pixels, count, target):
    """Store the sum of one channel or, if ``last``, of ``count`` neighbouring ones, at most ``_SUMS`` vectors."""
    given = (lanes, bits, last)
    known = literals(*given)
    if known is None:
        return None
    width, element, is_last = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, element, width)
        (_channels if is_last else _pixels)(e, *args[3:])
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 7), codegen


def _channels(e: Emitter, x: Any, xn: Any, xp: Any, images: Any, pixels: Any, count: Any, target: Any) -> None:
    vector = e.lanes * e.bytes
    masks = [e.first(e.builder.sub(count, I64(v * e.lanes))) for v in range(_SUMS)]

    def pixel(_: Any, values: list[Any]) -> list[Any]:
        at, *sums = values
        loaded = [e.load_masked(e.at(at, v * vector), mask) for v, mask in enumerate(masks)]
        return [e.at(at, xp), *(e.builder.fadd(a, b) for a, b in zip(sums, loaded, strict=True))]

    def image(_: Any, values: list[Any]) -> list[Any]:
        return [e.at(values[0], xn), *e.loop(pixels, values, pixel)[1:]]

    for v, total in enumerate(e.loop(images, [x, *[e.zero] * _SUMS], image)[1:]):
        e.store_masked(total, e.at(target, v * vector), masks[v])


def _pixels(e: Emitter, x: Any, xn: Any, xp: Any, images: Any, pixels: Any, count: Any, target: Any) -> None:
    b, vector, step = e.builder, e.lanes * e.bytes, _SUMS * e.lanes
    rounds = b.sdiv(pixels, I64(step))
    done = e.times(rounds, step)
    masks = [e.first(b.sub(b.sub(pixels, done), I64(v * e.lanes))) for v in range(_SUMS)]

    def add(sums: list[Any], at: Any, masks: list[Any]) -> list[Any]:
        loaded = [e.load_masked(e.at(at, v * vector), mask) for v, mask in enumerate(masks)]
        return [b.fadd(s, value) for s, value in zip(sums, loaded, strict=True)]

    def image(_: Any, values: list[Any]) -> list[Any]:
        at, *sums = values

        def whole(index: Any, sums: list[Any]) -> list[Any]:
            return add(sums, e.at(at, e.times(index, step * e.bytes)), [None] * _SUMS)

        sums = e.unless_zero(rounds, sums, lambda s: e.loop(rounds, s, whole))
        return [e.at(at, xn), *add(sums, e.at(at, e.times(done, e.bytes)), masks)]

    total = reduce(b.fadd, e.loop(images, [x, *[e.zero] * _SUMS], image)[1:])
    lanes = [b.extract_element(total, I64(lane)) for lane in range(e.lanes)]
    stored = b.store(reduce(b.fadd, lanes), b.inttoptr(target, e.scalar.as_pointer()))
    stored.align = e.bytes


@cache
def _loops(lanes: int, bits: int, last: int) -> Any:
    """Return the compiled sums of a range of channels, or of blocks of them if they are neighbours."""
    size, block = bits // 8, _SUMS * lanes if last else 1
    sources = fingerprint()

    @callback(task_type(JOB))
    def run(jobs, start, stop, worker):
        if sources == 0:
            return
        job = record(jobs, 0)
        for unit in range(start, stop):
            first = unit * block
            _sum(
                lanes, bits, last, job.x + first * job.xc, job.xn, job.xp, job.images, job.pixels,
                min(block, job.channels - first), job.y + first * size,
            )  # fmt: skip

    return run


class Runner:
    """Runs one problem; arrays whose pixels or channels do not lie together are copied."""

    def __init__(self, problem: ConvProblem, workers: int) -> None:
        self.problem, self.workers = problem, workers
        self._lanes, self._bits = simd().lanes(problem.itemsize), 8 * problem.itemsize
        self._pixels = math.prod(problem.output_size)
        self._start: Start = never

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        dy, db = inputs[0], outputs[0]
        if self._start(dy, None, db, None, None, 0, 0):
            return
        size = dy.itemsize
        step = _pixel_step(dy)
        last = step is not None and step != size and dy.strides[1] == size
        if not dy.flags.aligned or not (last or step == size):
            dy, step, last = np.array(dy, order="C"), size, self._pixels == 1
        result = db if db.flags.c_contiguous and db.flags.aligned else np.empty(db.shape, db.dtype)
        self._start = self._described(dy, result, step, last)
        self._start(dy, None, result, None, None, 0, 0)
        if result is not db:
            db[...] = result

    def _described(self, dy: Any, db: Any, step: int | None, last: bool) -> Start:
        p = self.problem
        f = {"xn": dy.strides[0], "xc": dy.strides[1], "xp": step or 0}
        f |= {"images": p.n, "channels": p.oc, "pixels": self._pixels}
        units = -(-p.oc // (_SUMS * self._lanes)) if last else p.oc
        kernel = _loops(self._lanes, self._bits, int(last)).address
        return start_of(kernel, record_of(FIELDS, f), units, self.workers, (dy, None, db, None, None))


def _pixel_step(dy: Any) -> int | None:
    """Return how many bytes the pixels of a map lie apart; None if not evenly, 0 if there is only one."""
    step = expected = 0
    for size, stride in zip(reversed(dy.shape[2:]), reversed(dy.strides[2:]), strict=True):
        if size == 1:
            continue
        if expected and stride != expected:
            return None
        step = step or stride
        expected = stride * size
    return step
