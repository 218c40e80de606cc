"""The input gradient of channels-last maps as a matrix product, whose rows are added up where they belong.

A row is what one element of the output's gradient adds to all that it was computed from: for every kernel position a
run of channels, as they lie in the map. Whatever the stride and the dilation there are no phases to be computed one
after the other, no product is with padding, and a weight in OHWI order is read as it came.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.dgrad.rounds import images_a_round
from fastconv.backends.cpu.dgrad.shifts import refuses_all_but_plain
from fastconv.backends.cpu.pointwise.algorithm import Pointwise
from fastconv.backends.cpu.registers import simd
from fastconv.backends.cpu.work import workers_for
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Seconds of a call beyond the product's.
_OVERHEAD = 4e-6
# Cycles of an element of the map, of one of a row's runs, and of a vector of it.
_PLACE, _RUN, _VECTOR = 8.0, 4.0, 1.0
# Bytes a second of a weight that is put in order.
_ORDER_RATE = 7.5e9

PRODUCT = Pointwise()


class Steps(NamedTuple):
    """What is done in so many rounds: a matrix product, then sums."""

    rounds: int
    product: ConvProblem


class ChannelsDgrad(Algorithm):
    """By a matrix product and sums of its rows; any kernel, stride and dilation, channels last."""

    name = "dgrad_channels"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but_plain(problem, "channels_last")
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.ic == problem.groups > 1:
            return "adds up runs of channels, not one of each group"
        if math.prod(problem.kernel_size) == math.prod(problem.stride) == 1:
            return "leaves kernels of one element to matrix products alone"
        return None

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        product = steps_of(problem).product
        # A weight that is packed once for all rounds takes as much as one that a round packs.
        working = PRODUCT.workspace_bytes(product.replace(prepacked=problem.prepacked))
        return math.prod(product.y_shape) * product.itemsize + working

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        assert isinstance(problem, ConvProblem)
        rounds, product = steps_of(problem)
        taps = math.prod(problem.kernel_size)
        vectors = -(-problem.ic // problem.groups // simd().lanes(problem.itemsize))
        places = problem.n * problem.groups * math.prod(problem.input_size)
        runs = problem.n * problem.groups * math.prod(problem.output_size) * taps
        cycles = places * (_PLACE + vectors * _VECTOR) + runs * (_RUN + vectors * _VECTOR)
        rows = math.prod(product.y_shape) * product.itemsize
        beyond = max(0, rows - machine.l2_bytes * workers_for(problem))
        moving = rounds * machine.moving(2 * beyond) + machine.moving(math.prod(problem.x_shape) * problem.itemsize)
        weight = 0.0 if problem.prepacked else math.prod(problem.w_shape) * problem.itemsize / _ORDER_RATE
        adding = (cycles / machine.hertz + moving + weight) / workers_for(problem)
        return _OVERHEAD + rounds * PRODUCT.predict(product, machine) + adding

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.dgrad.channels_run import ChannelsRunner

        assert isinstance(problem, ConvProblem)
        runner = ChannelsRunner(problem, PRODUCT.plan(steps_of(problem).product))
        return Plan(problem, self, runner.run, runner.pack)


def steps_of(problem: ConvProblem) -> Steps:
    """Return the steps of a gradient."""
    taps, positions = math.prod(problem.kernel_size), math.prod(problem.output_size)
    images = images_a_round(problem)
    product = ConvProblem(
        op="conv1d",
        direction="fprop",
        n=images,
        ic=problem.oc,
        oc=problem.ic * taps,
        input_size=(positions,),
        kernel_size=(1,),
        groups=problem.groups,
        prepacked=problem.prepacked or images < problem.n,
        dtype=problem.dtype,
        layout="channels_last",
        device=problem.device,
    )
    return Steps(problem.n // images, product)
