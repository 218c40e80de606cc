"""The input gradient by a forward algorithm: the convolution of ``dy`` with the weight turned round."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.depthwise.algorithm import Depthwise
from fastconv.backends.cpu.dgrad.work import Work
from fastconv.backends.cpu.direct.algorithm import Direct
from fastconv.backends.cpu.formats import computed, format_of, size_of
from fastconv.backends.cpu.gemv.algorithm import GemvAcross, GemvBatchAcross
from fastconv.backends.cpu.grouped.algorithm import Grouped
from fastconv.backends.cpu.phases import MOST_WAYS, shuffles
from fastconv.backends.cpu.pointwise.algorithm import Pointwise, PointwiseInPlace
from fastconv.backends.cpu.registers import LINE, simd
from fastconv.backends.cpu.work import refuses_all_but, workers_for
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem

# Seconds beyond the forward convolutions, whatever their size: of a call, of a call that passes its arrays on, of
# turning the weight, and of bringing phases together.
_OVERHEAD, _PASSING, _COPYING, _TURNING, _WEAVING = 8e-6, 0.5e-6, 6e-6, 6e-6, 28e-6

# Cycles, an element of a weight that is turned tap by tap, and a filter of one that is turned whole.
_PICK_CYCLES, _FILTER_CYCLES = 4.0, 9.6

# Bytes a second of a weight that is packed where it is.
_COPY_RATE = 20e9

# Cycles to bring the phases of a row together, of a vector of it beside its shuffles, and of an element that is moved
# on its own.
_ROW_CYCLES, _WEAVE_CYCLES, _MOVE_CYCLES = 22.0, 10.0, 4.0


class Rooms(NamedTuple):
    """Bytes that a forward convolution takes for its packed weight, and beside it."""

    packing: int
    working: int


class Dgrad(Algorithm):
    """Phases of the stride, each a forward convolution of stride 1; any stride, dilation and padding with zeros."""

    backend = "numba"
    forward: Algorithm
    # Whether the forward algorithm packs a weight that is turned by its strides alone, as `Work` has it.
    views: ClassVar[int] = 0
    # Whether it reads such a weight where it is.
    in_place: ClassVar[bool] = False

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("dgrad", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.padding_mode != "zeros":
            return f"adds up no border that the padding mode {problem.padding_mode!r} read twice"
        if problem.dtype != problem.accumulator and problem.residual:
            return f"would round {problem.dtype} before the residual"
        work = self._work(problem)
        if not work.groups:
            return "nothing contributes to the gradient"
        return next((why for why in map(self.forward.refuses, work.forward) if why is not None), None)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        work = self._work(problem)
        rooms = {forward: self._rooms(forward) for forward in set(work.forward)}
        packed = 0
        if not work.problem.prepacked:
            packing = [rooms[forward].packing for forward in work.forward]
            packed = sum(packing) if work.rounds > 1 else max(packing)  # all are kept from round to round
        # A block is turned in the memory in which the forward convolutions work then.
        turning = work.room_bytes * work.workers if work.turns else 0
        working = max(turning, *(room.working for room in rooms.values()))
        return sum(size for _, size in work.places) + packed + working

    def _rooms(self, forward: ConvProblem) -> Rooms:
        other = self.forward.workspace_bytes(forward.replace(prepacked=not forward.prepacked))
        own = self.forward.workspace_bytes(forward)
        every, working = (other, own) if forward.prepacked else (own, other)
        return Rooms(max(0, every - working), working)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        work = self._work(problem)
        copied = work.as_view and self.views == 1
        forwards = [forward.replace(prepacked=forward.prepacked or copied) for forward in work.forward]
        seconds = _PASSING if work.is_straight else _OVERHEAD
        seconds += work.rounds * sum(self.forward.predict(forward, machine) for forward in forwards)
        if not work.problem.prepacked:
            seconds += self._turning(work, machine)
        if work.interleaved:
            seconds += work.rounds * _WEAVING + self._weaving(work, machine)
        return seconds + self._scattering(work, machine)

    def _scattering(self, work: Work, machine: Machine) -> float:
        """Return the seconds that it takes to read and write lines of the cache for one phase after the other."""
        p = work.problem
        written = math.prod(p.x_shape) * work.size
        if p.layout == "channels_first" or math.prod(p.stride[-1:]) == 1 or written <= machine.l2_bytes:
            return 0.0
        run = p.ic * work.size
        touched = sum(math.prod(line.length for line in group.lines) for group in work.groups)
        touched *= p.n * min(p.stride[-1] * run, run + LINE)
        return 2 * machine.moving(max(0, touched - written)) / work.workers

    def _weaving(self, work: Work, machine: Machine) -> float:
        """Return the seconds that it takes to bring the phases together, row by row."""
        p = work.problem
        rows = math.prod(p.x_shape[:-1])
        ways, columns = p.stride[-1], p.x_shape[-1]
        weave = _WEAVE_CYCLES + shuffles(ways) if ways <= MOST_WAYS else work.lanes * _MOVE_CYCLES
        computing = rows * (_ROW_CYCLES + weave * -(-columns // work.lanes)) / machine.hertz
        return (computing + machine.moving(math.prod(p.x_shape) * work.size, rows)) / work.workers

    def _turning(self, work: Work, machine: Machine) -> float:
        """Return the seconds that it takes to turn and pack the weight, beyond what the forward convolutions take."""
        if work.as_view and self.in_place:
            return 0.0
        if work.as_view:
            return (_COPYING if self.views == 1 else 0.0) + work.weight_bytes / _COPY_RATE / work.workers
        elements = work.weight_bytes / work.size
        taps = math.prod(work.problem.kernel_size)
        cycles = elements * (_FILTER_CYCLES / taps if work.whole and 1 < taps <= work.lanes else _PICK_CYCLES)
        moving = machine.moving(2 * work.weight_bytes) if work.weight_bytes > machine.l2_bytes else 0.0
        seconds = _TURNING + (cycles / machine.hertz + moving) / work.workers
        if work.rounds > 1:
            seconds += sum(_packing_seconds(self.forward, forward, machine) for forward in work.forward)
        return seconds

    def error_bound(self, problem: AnyProblem) -> float:
        if self.refuses(problem) is not None:
            return super().error_bound(problem)
        return max(map(self.forward.error_bound, self._work(problem).forward))

    def _work(self, problem: AnyProblem) -> Work:
        assert isinstance(problem, ConvProblem)
        lanes = simd().lanes(size_of(computed(format_of(problem))))
        workers, here = workers_for(problem), machine()
        # What is not strict computes all images of a round in another way if one of them holds NaN or infinity: which
        # these are must not depend on the number of threads.
        cache = here.l2_bytes * (workers if self.forward.strict else here.cores)
        return _work_of(problem, lanes, workers, cache, self.views, self.in_place)

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.dgrad.run import Runner

        runner = Runner(self._work(problem), self.forward)
        return Plan(problem, self, runner.run, runner.pack)


# Many algorithms ask about the same problem, one after the other.
_work_of = lru_cache(maxsize=16)(Work)


def _packing_seconds(algorithm: Algorithm, forward: ConvProblem, machine: Machine) -> float:
    every, once = (algorithm.predict(forward.replace(prepacked=packed), machine) for packed in (False, True))
    return max(0.0, every - once)


class DgradDirect(Dgrad):
    """By implicit GEMM: everything."""

    name = "dgrad_direct"
    forward = Direct()
    views = 1


class DgradPointwise(Dgrad):
    """By matrix products: where one tap reaches an element."""

    name = "dgrad_pointwise"
    forward = Pointwise()
    views = 1


class DgradPointwiseInPlace(DgradPointwise):
    """By matrix products on the weight where it lies."""

    name = "dgrad_pointwise_in_place"
    forward = PointwiseInPlace()
    in_place = True


class DgradGemv(Dgrad):
    """Of fully connected layers, those with a kernel as large as the map among them: the weight is read where it is."""

    name = "dgrad_gemv"
    forward: Algorithm = GemvAcross()
    views = 1
    in_place = True

    def _work(self, problem: AnyProblem) -> Work:
        assert isinstance(problem, ConvProblem)
        return super()._work(_flat(problem))

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        copied = problem.layout == "channels_last" and _flat(problem) is not problem
        maps = math.prod(problem.x_shape) * (1 + problem.residual) + math.prod(problem.y_shape)
        return super().workspace_bytes(problem) + copied * maps * problem.itemsize

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.ordering import ordered

        assert isinstance(problem, ConvProblem)
        flat = _flat(problem)
        plan = super().plan(flat)
        if flat is problem:
            return plan

        def pack(w: Any) -> Any:
            return plan.pack(w.reshape(flat.w_shape))

        def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            dy, w, *residual = inputs
            (dx,) = outputs
            result = dx.reshape(flat.x_shape)  # a copy if a map's elements do not lie together
            added = [array.reshape(flat.x_shape) for array in residual]
            filters = w if problem.prepacked else ordered(w, workers_for(problem)).reshape(flat.w_shape)
            plan.run((dy.reshape(flat.y_shape), filters, *added), (result,))
            if not np.may_share_memory(result, dx):
                dx[...] = result.reshape(dx.shape)

        return Plan(problem, self, run, pack)


class DgradGemvBatch(DgradGemv):
    """The same for more images, which are the lanes."""

    name = "dgrad_gemv_batch"
    forward = GemvBatchAcross()


def _flat(problem: ConvProblem) -> ConvProblem:
    """Return a problem whose kernel sees the whole map as one of a linear layer; any other as it is."""
    whole = problem.kernel_size == problem.input_size and math.prod(problem.output_size) == 1
    padded = any(pad != (0, 0) for pad in problem.padding)
    if problem.op == "linear" or not whole or padded or problem.groups > 1 or problem.bias != "none":
        return problem
    return ConvProblem(
        op="linear",
        direction=problem.direction,
        n=problem.n,
        ic=problem.ic * math.prod(problem.kernel_size),
        oc=problem.oc,
        input_size=(),
        activation=problem.activation,
        residual=problem.residual,
        prepacked=problem.prepacked,
        dtype=problem.dtype,
        device=problem.device,
    )


class DgradGrouped(Dgrad):
    """By lanes of pixels: few channels of the gradient, or few of a group."""

    name = "dgrad_grouped"
    forward = Grouped()


class DgradDepthwise(Dgrad):
    """Every channel on its own."""

    name = "dgrad_depthwise"
    forward = Depthwise()
