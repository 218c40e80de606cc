"""What the engine's algorithms for convolutions begin with: common refusals, and a problem made ready."""

from __future__ import annotations

import math
from typing import Self

from fastconv.algorithm import AnyProblem
from fastconv.backends.cpu.axes import lifted_axes
from fastconv.backends.cpu.formats import computed, format_of, size_of
from fastconv.backends.cpu.registers import Simd, simd
from fastconv.machine import Machine, machine
from fastconv.problem import ConvProblem, Problem

# Seconds on one core that are worth other threads, to start which takes 1 to 3 us, and the later ones cold caches:
# two were faster from 7 us on, as this counts, and slower below 5, whatever the algorithm.
WORTH_SHARING = 6e-6
# Seconds of handing over a packed weight for which a problem must take as many seconds more.
_HANDED = 3e-6
#: Second-level caches' worth of bytes, a worker, beyond which a map is out of the caches before anybody reads it.
KEPT = 8

_ONLY = {
    "fprop": "computes forward only",
    "dgrad": "computes input gradients and transposed convolutions only",
    "wgrad": "computes weight gradients only",
}


def refuses_all_but(direction: str, problem: AnyProblem) -> str | None:
    """Return why a problem is refused that is no convolution with shared weights in a direction."""
    if not isinstance(problem, ConvProblem):
        return "solves convolutions only"
    if problem.direction != direction:
        return _ONLY[direction]
    if problem.is_local:
        return "shares weights between positions, which a locally connected layer does not"
    return None


def refuses_halves(problem: Problem) -> str | None:
    """Return why a problem is refused whose arrays hold another type than it is computed in."""
    if problem.dtype != problem.accumulator:
        return f"computes in float32 and float64, not on {problem.dtype}"
    return None


def workers_for(problem: Problem, packed: float = 0.0) -> int:
    """Return how many threads a problem is worth, of those that the options allow.

    Parameters
    ----------
    problem : Problem
    packed : float
        Bytes of a weight that is packed in every run, and that threads then get from one another.
    """
    here = machine()
    threads = here.threads()
    alone = problem.flops / here.peak(problem.accumulator, 1) + here.moving(problem.bytes)
    worth = WORTH_SHARING * (1 + here.handing(packed) / _HANDED)
    return threads if alone > worth else 1


def packed_in_a_run(problem: Problem, growth: float = 1.0) -> float:
    """Return the bytes of a weight that every run packs, ``growth`` times as large as it comes; 0 if none does."""
    if not isinstance(problem, ConvProblem) or problem.prepacked or problem.direction == "wgrad":
        return 0.0
    return growth * math.prod(problem.w_shape) * problem.itemsize


class ConvWork:
    """A problem as the loops take it. Every algorithm derives its own from it.

    Parameters
    ----------
    problem : ConvProblem
    vectors : Simd
        The register file.
    workers : int
        Threads that will share the work.
    cache : int
        Bytes of a core's L2 cache.

    Attributes
    ----------
    problem, simd, workers, cache
        The parameters.
    format : int
        How the arrays' elements are stored: `fastconv.backends.cpu.formats`.
    size, lanes : int
        Bytes of an element, and elements of a vector, as they are computed; arrays may hold less.
    inputs, outputs : int
        Channels of a group.
    taps : int
        Kernel positions.
    """

    def __init__(self, problem: ConvProblem, vectors: Simd, workers: int, cache: int) -> None:
        self.problem, self.simd, self.workers, self.cache = problem, vectors, workers, cache
        self.format = format_of(problem)
        self.size = size_of(computed(self.format))
        self.lanes = vectors.lanes(self.size)
        self.axes = lifted_axes(problem)
        self.inputs, self.outputs = problem.ic // problem.groups, problem.oc // problem.groups
        self.taps = math.prod(problem.kernel_size)

    #: How much larger a packed weight is than it comes; 0 if it is read where it is.
    growth: float = 1.0

    @classmethod
    def of(cls, problem: AnyProblem) -> Self:
        """Return a problem made ready for this machine and as many threads as it is worth."""
        return cls(*cls.parameters(problem))

    @classmethod
    def parameters(cls, problem: AnyProblem) -> tuple[ConvProblem, Simd, int, int]:
        """Return what is passed to make a problem ready for this machine and as many threads as it is worth."""
        assert isinstance(problem, ConvProblem)
        return problem, simd(), workers_for(problem, packed_in_a_run(problem, cls.growth)), machine().l2_bytes

    def handing_over(self, here: Machine) -> float:
        """Return the seconds that threads wait for a weight that others of them pack in every run."""
        return here.handing(packed_in_a_run(self.problem, self.growth)) if self.workers > 1 else 0.0

    @property
    def bytes(self) -> float:
        """Bytes that a run moves at least: rows of the input that a stride passes over stay where they are."""
        p = self.problem
        read = math.prod(p.x_shape) * p.itemsize
        kept = math.prod(axis.out * axis.kernel / axis.size for axis in self.axes[:-1] if axis.kernel < axis.stride)
        return p.bytes - read * (1 - min(1.0, kept))
