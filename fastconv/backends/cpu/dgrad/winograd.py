"""Input gradients by Winograd's convolution."""

from __future__ import annotations

from fastconv.backends.cpu.dgrad.algorithm import Dgrad
from fastconv.backends.cpu.winograd import algorithm
from fastconv.backends.cpu.winograd.algorithm import Winograd


class DgradWinograd(Dgrad):
    """By one of Winograd's algorithms: of kernels of its taps, and of phases of kernels that move by more than one.

    Parameters
    ----------
    forward : Winograd
    """

    strict = False
    views = 2

    def __init__(self, forward: Winograd) -> None:
        self.name, self.forward = f"dgrad_{forward.name}", forward


ALGORITHMS = tuple(map(DgradWinograd, algorithm.ALGORITHMS))
