"""1x1 convolutions of channels-last maps with few outputs: products of the few rows of the weight and all pixels."""

from __future__ import annotations

import math

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.gemv.work import Work
from fastconv.backends.cpu.work import refuses_all_but, refuses_halves
from fastconv.machine import Machine
from fastconv.problem import ConvProblem

# Output channels that are worth it: what tiles hold at once, since pixels are read again for more.
_MOST_OUTPUTS = 4
# Seconds that the way there and back takes; elements a second that are brought where they belong, of several outputs.
_OVERHEAD, _TURNED = 3e-6, 1e9


def turned(problem: ConvProblem) -> ConvProblem:
    """Return the fully connected layer whose weight is the input, whose input the weight, and whose outputs pixels."""
    pixels = problem.n * math.prod(problem.input_size)
    return ConvProblem(
        op="linear", direction="fprop", n=problem.oc, ic=problem.ic, oc=pixels, input_size=(), dtype=problem.dtype
    )


class GemvPixels(Algorithm):
    """Lanes run along the channels of a pixel, which lie together: pixels are read once, and nothing is turned."""

    name = "gemv_pixels"
    backend = "numba"

    def refuses(self, problem: AnyProblem) -> str | None:
        common = refuses_all_but("fprop", problem)
        if common is not None:
            return common
        assert isinstance(problem, ConvProblem)
        if problem.layout != "channels_last":
            return "needs the channels of a pixel to lie together"
        # As many outputs as pixels are not enough: strides over padding leave some out.
        whole = problem.input_size == problem.output_size and all(pad == (0, 0) for pad in problem.padding)
        if set(problem.kernel_size) != {1} or not whole or problem.groups > 1:
            return "needs a kernel of 1, all channels in one group, every pixel, and no padding"
        if problem.oc > _MOST_OUTPUTS:
            return f"takes at most {_MOST_OUTPUTS} output channels, not {problem.oc}"
        return refuses_halves(problem)

    def workspace_bytes(self, problem: AnyProblem) -> int:
        assert isinstance(problem, ConvProblem)
        work = Work.of(turned(problem))
        return work.workers * work.scratch_bytes + math.prod(problem.y_shape) * problem.itemsize

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        assert isinstance(problem, ConvProblem)
        sums = math.prod(problem.y_shape)
        finished = bool(problem.residual or problem.activation or problem.bias != "none")
        return Work.of(turned(problem)).seconds(machine) + _OVERHEAD + ((problem.oc > 1) + finished) * sums / _TURNED

    def plan(self, problem: AnyProblem) -> Plan:
        from fastconv.backends.cpu.gemv.pixels_run import PixelsRunner

        assert isinstance(problem, ConvProblem)
        runner = PixelsRunner(problem, Work.of(turned(problem)))
        return Plan(problem, self, runner.run, runner.pack)
