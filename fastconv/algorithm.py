"""The contract between the dispatcher and whoever computes: `Algorithm`, and the `Plan` it makes.

``Plan.run(inputs, outputs)`` is handed the arrays of ``problem.inputs`` and fills those of
``problem.outputs``, in that order:

================================  =====================================  =================
problem                           inputs                                 outputs
================================  =====================================  =================
conv ``fprop``                    x, w [, bias] [, residual]             y
conv ``dgrad``                    dy, w [, bias] [, residual]            dx
conv ``wgrad``                    x, dy                                  dw
conv ``bgrad``                    dy                                     db
pool ``fprop``                    x                                      y [, indices]
max pool ``dgrad``                dy, indices                            dx
lp pool ``dgrad``                 dy, x, y                               dx
max_unpool ``fprop``              x, indices                             y
max_unpool ``dgrad``              dy, indices                            dx
other ``dgrad``, ``unfold``       dy                                     dx
================================  =====================================  =================

The arrays have the problem's shapes and dtypes and may have any strides; ``problem.layout`` says in which
memory order the spatial ones are when they are contiguous. No dimension is zero: empty batches never get here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from fastconv.problem import ConvProblem, PoolProblem

if TYPE_CHECKING:
    from fastconv.machine import Machine

AnyProblem: TypeAlias = ConvProblem | PoolProblem
Run: TypeAlias = Callable[[tuple[Any, ...], tuple[Any, ...]], None]

# Unit roundoff, spelled out since bfloat16 is not NumPy's own.
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

# The constant C of the error bound C * eps * sqrt(terms): a random walk of roundings stays below it in
# practice with the largest of millions of elements looked at.
ERROR_CONSTANT = 8.0


class Algorithm(ABC):
    """One way to solve some problems. Stateless: everything it learns of a problem goes into the plan.

    Attributes
    ----------
    name : str
        How it computes; unique together with `backend`.
    backend : str
        Which family it belongs to: ``reference``, ``naive``, ``im2col`` or a name of your own.
    device : str
        Where the arrays live: ``cpu`` or ``cuda``. The dispatcher refuses other problems by itself.
    deterministic : bool
        Results are bit-identical from run to run and for any number of threads.
    fallback : bool
        What remains when nothing else may run: it solves every problem of its kind, and ``max_workspace`` does not
        exclude it.
    strict : bool
        Every result is the plain sum of its products (Winograd and FFT are not: they compute neighbours together, so
        that their error bound is a share of the largest magnitude in the image, not of each element's own).
    """

    name: str
    backend: ClassVar[str]
    device: ClassVar[str] = "cpu"
    deterministic: ClassVar[bool] = True
    fallback: ClassVar[bool] = False
    strict: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """``backend/name``."""
        return f"{self.backend}/{self.name}"

    @abstractmethod
    def refuses(self, problem: AnyProblem) -> str | None:
        """Return why this algorithm does not solve the problem, for a person to read; None if it does."""

    @abstractmethod
    def plan(self, problem: AnyProblem) -> Plan:
        """Return a plan. All set-up happens here; `Plan.run` only launches."""

    @abstractmethod
    def predict(self, problem: AnyProblem, machine: Machine) -> float:
        """Return the seconds one run should take, from FLOPs, bytes and efficiency."""

    def workspace_bytes(self, problem: AnyProblem) -> int:
        """Return the bytes of scratch memory a run takes beyond its inputs and outputs, if these are contiguous."""
        return 0

    def error_bound(self, problem: AnyProblem) -> float:
        """Return the factor c of the guarantee ``|result - exact| <= c * (|x| conv |w|) + eps * |result|``.

        It holds element by element. Where algorithms are not `strict`, it does so for data whose elements are about as
        large everywhere; whatever the data, the largest ``|x| conv |w|`` of the image takes the place of the element's.
        """
        return ERROR_CONSTANT * EPSILON[problem.accumulator] * math.sqrt(problem.reduction)


def _unchanged(weight: Any) -> Any:
    return weight


class Plan:
    """What an algorithm made of a problem.

    Parameters
    ----------
    problem : ConvProblem or PoolProblem
    algorithm : Algorithm
    run : callable
        ``run(inputs, outputs)``; see the module's table.
    pack : callable, optional
        ``pack(w)`` prepares a weight once; what it returns stands in for ``w`` among the inputs of problems
        that are ``prepacked``. By default the weight itself.
    """

    __slots__ = ("algorithm", "pack", "problem", "run")

    def __init__(
        self, problem: AnyProblem, algorithm: Algorithm, run: Run, pack: Callable[[Any], Any] = _unchanged
    ) -> None:
        self.problem = problem
        self.algorithm = algorithm
        self.run = run
        self.pack = pack

    def packed(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the inputs with the weight packed, if the problem says that it is prepacked."""
        if not getattr(self.problem, "prepacked", False):
            return inputs
        return tuple(
            self.pack(array) if operand.name == "w" else array
            for operand, array in zip(self.problem.inputs, inputs, strict=True)
        )

    def __repr__(self) -> str:
        return f"Plan({self.algorithm.key})"
