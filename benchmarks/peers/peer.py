"""What a peer is: another library that solves the same problems, to be measured beside fastconv's algorithms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar

from fastconv.algorithm import EPSILON, ERROR_CONSTANT, AnyProblem
from fastconv.problem import ConvProblem, PoolProblem

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})


class Peer(ABC):
    """One way to use another library. Stateless.

    Attributes
    ----------
    name : str
        What its rows are called; it says so where arrays are not NCHW in memory.
    library : str
        What is imported, and what is installed: the names are the same for all of them.
    needs : tuple of str
        What else has to be installed.
    ops : frozenset of str
        The ops it has.
    directions, dtypes : tuple of str
        What it computes.
    layouts : tuple of str
        The memory orders that it takes arrays in.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    ops: ClassVar[frozenset[str]]
    directions: ClassVar[tuple[str, ...]] = ("fprop",)
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    layouts: ClassVar[tuple[str, ...]] = ("channels_first",)

    def missing(self) -> str | None:
        """Return what to do before it can be used; None if it can."""
        absent = [name for name in (self.library, *self.needs) if find_spec(name) is None]
        return f"pip install {' '.join(absent)}" if absent else None

    @property
    def version(self) -> str:
        """The version of the library that is installed."""
        return version(self.library)

    def refuses(self, problem: AnyProblem) -> str | None:
        """Return why the peer cannot solve a problem as it is asked for; None if it can."""
        return next((reason for applies, reason in self.limits(problem) if applies), None)

    def limits(self, problem: AnyProblem) -> Iterator[tuple[bool, str]]:
        """Yield what the peer cannot do, each with whether the problem asks for it."""
        yield problem.op not in self.ops, f"has no {problem.op}"
        yield problem.direction not in self.directions, f"computes no {problem.direction}"
        yield problem.dtype not in self.dtypes, f"is measured in {', '.join(self.dtypes)} only"
        yield problem.device != "cpu", "is measured on the CPU only"
        yield problem.layout not in self.layouts, f"is handed {' and '.join(self.layouts)} arrays only"
        yield any(min(pad) < 0 for pad in problem.padding), "has no negative padding"
        if isinstance(problem, ConvProblem):
            yield problem.padding_mode != "zeros", "pads with zeros only"
            yield problem.activation is not None or problem.residual, "is measured without an epilogue"
        else:
            yield problem.direction == "fprop" and problem.return_indices, "is measured without indices"

    @abstractmethod
    def prepare(self, problem: AnyProblem, inputs: tuple[Any, ...], threads: int) -> Callable[[], Any]:
        """Do everything that need not be done on every call.

        Parameters
        ----------
        problem : ConvProblem or PoolProblem
            One that the peer does not refuse.
        inputs : tuple of numpy.ndarray
            The arrays of ``problem.inputs``.
        threads : int
            How many threads it may use.

        Returns
        -------
        callable
            ``run()`` solves the problem for these inputs and returns the result, which `numpy.asarray` understands.
        """

    def error_bound(self, problem: AnyProblem) -> float:
        """Return the factor that `testing.compare` takes: that of a plain sum in the problem's precision."""
        return ERROR_CONSTANT * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)


def symmetric(problem: AnyProblem) -> bool:
    """Whether each axis is padded by as much before as after."""
    return all(before == after for before, after in problem.padding)


def is_global_average(problem: AnyProblem) -> bool:
    """Whether a pool averages over whole maps."""
    adaptive = isinstance(problem, PoolProblem) and problem.kind == "adaptive_avg_pool"
    return adaptive and set(problem.output_size) == {1}
