"""Running a depthwise input gradient at stride one: the forward loops, with kernels read backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.backends.cpu.depthwise.run import DepthwiseRunner
from fastconv.backends.cpu.depthwise.walked_run import WalkedRunner
from fastconv.backends.cpu.dgrad.unturned import Finite, Unturned
from fastconv.backends.cpu.runner import fresh
from fastconv.backends.cpu.work import ConvWork
from fastconv.problem import ConvProblem


class _Backwards(Unturned):
    """Runs one problem on arrays of any strides.

    Parameters
    ----------
    problem : ConvProblem
        The gradient.
    work : ConvWork
        The forward convolution of ``dy``.
    """

    def __init__(self, problem: ConvProblem, work: ConvWork) -> None:
        self.gradient, self.finite = problem, Finite(problem, work)
        super().__init__(work, backwards=True)  # type: ignore[call-arg, arg-type]  # that of the forward runner

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Any:
        """Return the weight as it is."""
        return self.looked_at(super().pack(w, new))  # type: ignore[safe-super]


class BackwardsRunner(_Backwards, DepthwiseRunner):
    """By tiles of rows."""


class BackwardsWalkedRunner(_Backwards, WalkedRunner):
    """By walking down strips of columns."""
