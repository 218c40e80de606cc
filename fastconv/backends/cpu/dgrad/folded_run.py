"""Running an input gradient as a matrix product and a fold."""

from __future__ import annotations

import math
from typing import Any

from fastconv.algorithm import Plan
from fastconv.arrays import dtype_named
from fastconv.backends.cpu import scratch
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.work import workers_for
from fastconv.problem import ConvProblem


class FoldedRunner:
    """Runs one problem on arrays of any strides, as many images at a time as the ``product`` has."""

    def __init__(self, problem: ConvProblem, product: Plan, fold: Plan) -> None:
        self.problem, self._product, self._fold = problem, product, fold
        self._shape = product.problem.x_shape
        self._images, self._positions = self._shape[0], self._shape[-1]
        self._bytes = math.prod(self._shape) * problem.itemsize
        self._workers = workers_for(problem)
        self._dtype = dtype_named(problem.dtype)

    def pack(self, w: Any) -> Any:
        """Return the weight as `run` takes it where the problem is prepacked."""
        return self._product.pack(self._matrix(w))

    def _matrix(self, w: Any) -> Any:
        return ordered(w, self._workers).reshape(w.shape[0], -1, 1)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        (dy, w), (dx,) = inputs, outputs
        weight = w if self.problem.prepacked else self._matrix(w)
        columns = scratch.room(self._bytes, "columns")[: self._bytes].view(self._dtype).reshape(self._shape)
        pixels = dy.reshape(*dy.shape[:2], self._positions)
        for first in range(0, self.problem.n, self._images):
            part = slice(first, first + self._images)
            self._product.run((pixels[part], weight), (columns,))
            self._fold.run((columns,), (dx[part],))
