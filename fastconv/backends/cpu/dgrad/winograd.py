"""Input gradients by Winograd's convolution."""

from __future__ import annotations

from fastconv.backends.cpu.dgrad.algorithm import Dgrad, Rooms
from fastconv.backends.cpu.winograd import algorithm
from fastconv.backends.cpu.winograd.algorithm import Winograd
from fastconv.problem import ConvProblem


class DgradWinograd(Dgrad):
    """By one of Winograd's algorithms: of kernels of its taps, and of phases of kernels that move by more than one.

    Parameters
    ----------
    forward : Winograd
    """

    strict = False
    forward: Winograd
    views = 2

    def __init__(self, forward: Winograd) -> None:
        self.name, self.forward = f"dgrad_{forward.name}", forward

    def _rooms(self, forward: ConvProblem) -> Rooms:
        rooms = super()._rooms(forward)
        # What rounds share is transformed whole, where a run would transform a block at a time.
        return rooms._replace(packing=self.forward.packed_bytes(forward)) if forward.prepacked else rooms


ALGORITHMS = tuple(map(DgradWinograd, algorithm.ALGORITHMS))
