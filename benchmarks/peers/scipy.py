"""SciPy, where it fits: correlation of images of a few channels, one channel and one filter at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.peer import Peer
from fastconv.algorithm import AnyProblem
from fastconv.problem import ConvProblem

# Grey and colour images, which it is made for.
_MOST_CHANNELS = 3


class SciPy(Peer):
    """`scipy.signal.correlate2d`, which sums as plainly as the others; its FFT errs with an image's largest value.

    It has no threads.
    """

    name = "scipy"
    library = "scipy"
    ops: ClassVar[frozenset[str]] = frozenset({"conv2d"})
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        yield from super().limits(problem)
        assert isinstance(problem, ConvProblem)
        yield set(problem.stride) != {1}, "has no stride"
        yield set(problem.dilation) != {1}, "has no dilation"
        channels = problem.ic // problem.groups
        yield channels > _MOST_CHANNELS, f"is measured on filters of at most {_MOST_CHANNELS} channels"

    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        from scipy.signal import correlate2d

        assert isinstance(problem, ConvProblem)
        x, w, bias = (*inputs, None)[:3]
        channels, filters = problem.ic // problem.groups, problem.oc // problem.groups
        pads = ((0, 0), (0, 0), *problem.padding)
        y = np.empty(problem.y_shape, x.dtype)

        def run() -> Any:
            padded = np.pad(x, pads) if any(map(any, pads)) else x
            for n, k in itertools.product(range(problem.n), range(problem.oc)):
                first = k // filters * channels
                y[n, k] = 0 if bias is None else bias[k]
                for image, weight in zip(padded[n, first : first + channels], w[k], strict=True):
                    y[n, k] += correlate2d(image, weight, "valid")
            return y

        return run
