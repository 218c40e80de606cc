"""Input gradients that read the weight where it is: what keeps padding from being multiplied by what is not finite."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.dgrad import weights
from fastconv.backends.cpu.dgrad.exact import input_gradient
from fastconv.backends.cpu.job import record_of
from fastconv.backends.cpu.runner import Packed, Runner
from fastconv.backends.cpu.scratch import address
from fastconv.backends.cpu.work import ConvWork
from fastconv.problem import ConvProblem

_W, _SPECIAL = (weights.FIELDS.index(name) for name in ("w", "special"))


class Weight(NamedTuple):
    """A weight, what is said of where it is, and whether it is finite."""

    array: Any
    address: int
    finite: bool


class Finite:
    """Says of contiguous weights of a problem whether they are finite."""

    def __init__(self, problem: ConvProblem, work: ConvWork) -> None:
        self._pieces, self._workers = problem.groups, work.workers
        self._look = weights.looking(work.lanes, work.format).address
        if problem.ic == problem.groups:  # of which each is too short for a vector
            self._pieces = 1
        self._job = record_of(weights.FIELDS, {"terms": 1, "outputs": math.prod(problem.w_shape) // self._pieces})

    def __call__(self, w: Any) -> bool:
        found = np.array([0, 1], np.int64)
        job = self._job.copy()
        job[_W], job[_SPECIAL] = address(w), address(found)
        threads.run(self._look, address(job), self._pieces, self._workers)
        return not found[0]


class Unturned(Runner):
    """Runs a forward convolution of ``dy``, whose weight is the gradient's own. Its `pack` returns a `Weight`.

    Attributes
    ----------
    gradient : ConvProblem
        The problem, while ``problem`` is the forward one.
    finite : Finite
    """

    gradient: ConvProblem
    finite: Finite

    def looked_at(self, packed: Packed) -> Any:
        """Return a weight with whether it is finite."""
        return Weight(*packed, self.finite(packed.array))

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        dy, w = inputs
        weight: Any = w if isinstance(w, Weight) else self.pack(w)
        if weight.finite:
            super().run((dy, weight), outputs)
        else:
            input_gradient(self.gradient, dy, weight.array, outputs[0])
