"""Input gradients whose phases have kernels of several sizes: each phase by the algorithm that is fastest for it."""

from __future__ import annotations

from functools import lru_cache

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cpu.dgrad.algorithm import Dgrad
from fastconv.backends.cpu.direct.algorithm import Direct
from fastconv.backends.cpu.pointwise.algorithm import Pointwise
from fastconv.backends.cpu.winograd import algorithm as winograd
from fastconv.machine import Machine, machine
from fastconv.options import options
from fastconv.problem import ConvProblem

# What predictions of calls that follow one another leave out: of what each finds in the caches, the last one's is gone.
_COLD = 1.1
# With longer steps there are many phases, of few taps each.
_MOST_APART = 4
# Images for which a phase's algorithm is chosen: how many are done together depends on threads, and no result may.
_IMAGES = 8

_ALGORITHMS = (Direct(), Pointwise(), *winograd.ALGORITHMS)


@lru_cache(maxsize=1024)
def _fastest(problem: AnyProblem) -> Algorithm:
    """Return the algorithm that is predicted to take the least time on one thread."""
    able = (algorithm for algorithm in _ALGORITHMS if algorithm.refuses(problem) is None)
    with options(threads=1):
        return min(able, key=lambda algorithm: algorithm.predict(problem, machine()))


class _Fastest(Algorithm):
    """Of several algorithms the one that is predicted to take the least time."""

    name = "fastest"
    backend = "numba"
    strict = False

    def refuses(self, problem: AnyProblem) -> str | None:
        return _ALGORITHMS[0].refuses(problem)

    def choose(self, problem: AnyProblem) -> Algorithm:
        """Return the algorithm for a problem."""
        assert isinstance(problem, ConvProblem)
        return _fastest(problem.replace(n=_IMAGES, prepacked=True))

    def workspace_bytes(self, problem: AnyProblem) -> int:
        return self.choose(problem).workspace_bytes(problem)

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return self.choose(problem).predict(problem, machine)

    def error_bound(self, problem: AnyProblem) -> float:
        return self.choose(problem).error_bound(problem)

    def plan(self, problem: AnyProblem) -> Plan:
        return self.choose(problem).plan(problem)


class DgradMixed(Dgrad):
    """By Winograd's algorithms, where a phase has several taps, and by a matrix product, where it has one."""

    name = "dgrad_mixed"
    strict = False
    forward = _Fastest()

    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        return _COLD * super().predict(problem, machine)

    def refuses(self, problem: AnyProblem) -> str | None:
        if isinstance(problem, ConvProblem) and not 1 < max(problem.stride, default=1) <= _MOST_APART:
            return f"takes kernels that step by two to {_MOST_APART}"
        why = super().refuses(problem)
        if why is not None:
            return why
        kernels = {tuple(line.kernel for line in group.lines) for group in self._work(problem).groups}
        if len(kernels) == 1:
            return "takes kernels whose phases have different numbers of taps"
        return None
