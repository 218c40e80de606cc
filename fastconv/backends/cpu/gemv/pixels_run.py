"""Running a 1x1 convolution of few outputs as a fully connected layer: maps and weight change places."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu.gemv.run import GemvRunner
from fastconv.backends.cpu.gemv.work import Work
from fastconv.backends.cpu.runner import Packed
from fastconv.backends.cpu.scratch import address, contiguous
from fastconv.problem import ConvProblem


class PixelsRunner:
    """Runs one problem; an input whose pixels do not lie in one piece is copied.

    Parameters
    ----------
    problem : ConvProblem
    work : Work
        The fully connected layer in its place.
    """

    def __init__(self, problem: ConvProblem, work: Work) -> None:
        self.problem, self.work = problem, work
        self._layer = GemvRunner(work)
        self._channels_last = (0, *range(2, 2 + problem.ndim), 1)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        p, (y,) = self.problem, outputs
        rest = inputs[2:]
        w = inputs[1].array if p.prepacked else self.pack(inputs[1]).array
        pixels = inputs[0].transpose(self._channels_last).reshape(-1, p.ic)
        found = y.transpose(self._channels_last)
        if p.oc == 1 and found.flags.c_contiguous:
            self._layer.run((w, pixels), (found.reshape(1, -1),))
        else:
            sums = np.empty((p.oc, len(pixels)), p.dtype)
            self._layer.run((w, pixels), (sums,))
            found[...] = sums.T.reshape(found.shape)
        bias = epilogue.bias_view(p, rest[0]) if p.bias != "none" else None
        epilogue.apply(p.activation, y, bias, rest[-1] if p.residual else None)

    def pack(self, w: Any) -> Packed:
        """Return the weight as the input of a fully connected layer, which has one image for each output channel."""
        rows = contiguous(w).reshape(self.problem.oc, self.problem.ic)
        return Packed(rows, address(rows))
