"""What all CUDA algorithms have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cuda import launching
from fastconv.options import applied, current

# Elements from one entry to the next, for each axis of each array of a problem: inputs first, then outputs.
Strides: TypeAlias = tuple[tuple[int, ...], ...]
Arrays: TypeAlias = tuple[Any, ...]
Start: TypeAlias = Callable[[Arrays, Arrays], None]

# Forms of arrays that a plan keeps kernels ready for.
_MOST_FORMS = 64

ELEMENTS = {
    "float32": "float",
    "float64": "double",
    "float16": "fastconv::Half",
    "bfloat16": "fastconv::BFloat16",
}
"""What an element is called in ``kernels/``."""

ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2, "relu6": 3, "sigmoid": 4, "tanh": 5}
"""What an activation is called there: ``Activation`` of ``epilogue.cuh``."""


class CudaAlgorithm(Algorithm):
    """An algorithm whose arrays are on a GPU. It has `declines` and `prepare` for `refuses` and `plan`."""

    backend: ClassVar[str] = "cuda"
    device: ClassVar[str] = "cuda"

    def refuses(self, problem: AnyProblem) -> str | None:
        if problem.device != "cuda":
            return "computes on arrays in GPU memory"
        return launching.launcher().missing() or self.declines(problem)

    @abstractmethod
    def declines(self, problem: AnyProblem) -> str | None:
        """Return why this algorithm does not solve the problem on any GPU; None if it does."""

    @abstractmethod
    def prepare(self, problem: AnyProblem, strides: Strides, alignment: int) -> Start:
        """Return what solves a problem for arrays of some form: compiled, its parameters packed.

        Parameters
        ----------
        problem : ConvProblem or PoolProblem
        strides : tuple of tuple of int
            Of the inputs and the outputs, in elements.
        alignment : int
            Bytes, at most 16, of which the addresses of all arrays are multiples.

        Returns
        -------
        callable
            ``start(inputs, outputs)`` launches kernels on the current device and stream.
        """

    def plan(self, problem: AnyProblem) -> Plan:
        launcher, chosen = launching.launcher(), current()
        forms: dict[tuple[Strides, int], Start] = {}

        def prepared(form: tuple[Strides, int]) -> Start:
            if len(forms) >= _MOST_FORMS:
                forms.clear()
            with applied(chosen):  # those of the plan, not of the run that meets a new form
                start = forms[form] = self.prepare(problem, *form)
            return start

        def run(inputs: Arrays, outputs: Arrays) -> None:
            arrays = inputs + outputs
            together = 16
            for array in arrays:
                address, size = launcher.address(array), array.itemsize
                if address % size:
                    raise ValueError(f"addresses: expected multiples of {size} bytes, an element's size")
                together |= address
            with launcher.on(inputs[0]):
                form = tuple([strides_of(array) for array in arrays]), together & -together
                (forms.get(form) or prepared(form))(inputs, outputs)

        # Compiled now, for arrays as fastconv allocates them.
        prepared((usual_strides(problem), 16))
        return Plan(problem, self, run)


def strides_of(array: Any) -> tuple[int, ...]:
    """Return an array's strides in elements. Those of axes of one entry, which no address depends on, are zero.

    Raises
    ------
    ValueError
        If elements lie apart by other than whole elements, as in a field of a structured array.
    """
    size = array.itemsize
    if any(s % size for s in array.strides):
        raise ValueError(f"strides: expected multiples of {size} bytes, an element's size, got {array.strides}")
    return tuple([s // size if n > 1 else 0 for s, n in zip(array.strides, array.shape, strict=True)])


def usual_strides(problem: AnyProblem) -> Strides:
    """Return the strides of arrays as fastconv allocates them for a problem."""
    return tuple(
        contiguous(operand.shape, operand.spatial and problem.layout == "channels_last")
        for operand in problem.inputs + problem.outputs
    )


def contiguous(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Return the strides of an array without gaps."""
    order = (0, *range(2, len(shape)), 1) if channels_last and len(shape) > 2 else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step if shape[axis] > 1 else 0
        step *= shape[axis]
    return tuple(strides)
