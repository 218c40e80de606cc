"""The input gradient as a matrix product, the columns of which are folded (col2im).

No product is with padding, whatever the kernel, and the output's gradient is read once: best where the kernel is
larger than the map, or the gradient's channels are few.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.dgrad.algorithm import DgradPointwiseInPlace
from fastconv.backends.cpu.dgrad.rounds import images_a_round
from fastconv.backends.cpu.dgrad.shifts import refuses_all_but_plain
from fastconv.backends.cpu.unfold.algorithm import Fold
from fastconv.machine import Machine
from fastconv.problem import ConvProblem, PoolProblem

# Bytes a second of a weight that outgrows a core's cache: it is copied across its rows, a few channels at a time.
_FETCH_RATE = 28e9
# How much longer both steps take where the columns were not in the caches before.
_COLD = 1.15

_PRODUCT, _FOLD = DgradPointwiseInPlace(), Fold()


class Steps(NamedTuple):
    """What is done in so many rounds: a matrix product, and a fold."""

    rounds: int
    product: ConvProblem
    fold: PoolProblem


class FoldedDgrad(Algorithm):
    """By a matrix product and a fold; any kernel, stride and dilation."""

    name = "dgrad_folded"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but_plain(problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if math.prod(problem.kernel_size) == 1:
            return "leaves kernels of one element to matrix products alone"
        if min(map(min, problem.padding)) < 0:
            return "reads the whole map"
        return _FOLD.refuses(steps_of(problem).fold)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        _, product, fold = steps_of(problem)
        columns = math.prod(product.x_shape) * product.itemsize
        return columns + max(_PRODUCT.workspace_bytes(product), _FOLD.workspace_bytes(fold))

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        assert isinstance(problem, ConvProblem)
        rounds, product, fold = steps_of(problem)
        weight = math.prod(problem.w_shape) * problem.itemsize
        fetching = weight / _FETCH_RATE if weight > machine.l2_bytes else 0.0
        return _COLD * rounds * (_PRODUCT.predict(product, machine) + fetching + _FOLD.predict(fold, machine))

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.dgrad.folded_run import FoldedRunner

        assert isinstance(problem, ConvProblem)
        _, product, fold = steps_of(problem)
        runner = FoldedRunner(problem, _PRODUCT.plan(product), _FOLD.plan(fold))
        return Plan(problem, self, runner.run, runner.pack)


def steps_of(problem: ConvProblem) -> Steps:
    """Return the steps of a gradient."""
    taps, positions = math.prod(problem.kernel_size), math.prod(problem.output_size)
    images = images_a_round(problem)
    product = ConvProblem(
        op="conv1d",
        direction="dgrad",
        n=images,
        ic=problem.ic * taps,
        oc=problem.oc,
        input_size=(positions,),
        kernel_size=(1,),
        groups=problem.groups,
        prepacked=problem.prepacked,
        dtype=problem.dtype,
        device=problem.device,
    )
    fold = PoolProblem(
        op="unfold",
        direction="dgrad",
        n=images,
        c=problem.ic,
        input_size=problem.input_size,
        kernel_size=problem.kernel_size,
        stride=problem.stride,
        padding=problem.padding,
        dilation=problem.dilation,
        dtype=problem.dtype,
        device=problem.device,
    )
    return Steps(problem.n // images, product, fold)
