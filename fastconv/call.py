"""One call of a public function: a problem, its arrays, and the way back to what the caller holds.

Every public function is written as a *lowering*: it reads its arguments and returns a `Call`. The `op`
decorator makes of it the function that users see, which runs the call; `vjp`, `plan`, `explain` and `tune`
take the same function and use its lowering without running it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, cast

import numpy as np

from fastconv import arrays, dispatch, repeat
from fastconv.algorithm import AnyProblem, Plan
from fastconv.arrays import Array, Kind
from fastconv.options import Options
from fastconv.problem import PoolProblem, Sizes

P = ParamSpec("P")

# How long NumPy may look for an element that two arrays share.
_WORK: Any = 1000


@dataclass(frozen=True)
class Call:
    """A call, read and checked but not run.

    Attributes
    ----------
    problem : ConvProblem or PoolProblem
    inputs : dict of str to array
        NumPy or CuPy arrays with the shapes of ``problem.inputs``, in that order, by the caller's names.
    shapes : dict of str to tuple
        The shapes the caller gave them (unbatched, say).
    shape : tuple of int
        The shape of what the caller gets.
    kind : Kind
        What the caller's arrays are.
    options : Options
    out : array or None
        Where the caller wants the first output, as the caller gave it.
    """

    problem: AnyProblem
    inputs: dict[str, Any]
    shapes: dict[str, Sizes]
    shape: Sizes
    kind: Kind
    options: Options
    out: Any = None

    def run(self) -> Any:
        """Compute, and return what the public function returns."""
        return self.finish(self.compute())

    def compute(self, plan: Plan | None = None) -> tuple[Any, ...]:
        """Compute, by a plan chosen before or by the dispatcher's, and return the problem's outputs."""
        inputs = tuple(self.inputs.values())
        outputs = None if self.out is None else self.outputs()
        return execute(self.problem, inputs, self.options, outputs, plan)

    def finish(self, outputs: tuple[Any, ...]) -> Any:
        """Return the problem's outputs as the caller's: kind, shape, and `out` itself if it was given."""
        shaped = [o.reshape(self.shape) for o in outputs]
        results = [self.kind.give_back(array) for array in shaped]
        if self.out is not None:
            target = arrays.read("out", self.out)[0]
            if not arrays.may_overlap(target, outputs[0]):
                with arrays.at(target):
                    target[...] = shaped[0]
            results[0] = self.out
        return results[0] if len(results) == 1 else tuple(results)

    def outputs(self) -> tuple[Any, ...]:
        """Return arrays to compute into: ``out`` itself unless an input may lie in the same memory."""
        inputs = tuple(self.inputs.values())
        first, *others = self.problem.outputs
        target = arrays.read_as("out", self.out, self.kind, "input")
        if target.shape != self.shape:
            raise ValueError(f"out: expected shape {self.shape}, got {target.shape}")
        arrays.check_dtype("out", target, first.dtype)
        if isinstance(target, np.ndarray) and not target.flags.writeable:
            raise ValueError("out: is read-only")
        if any(lies_over(target, a) for a in inputs):
            target = arrays.empty(first, self.problem.layout, inputs[0])
        return (target.reshape(first.shape), *(arrays.empty(o, self.problem.layout, inputs[0]) for o in others))

    @property
    def depends_on_form(self) -> bool:
        """Whether a call of other arrays of the same form is the same but for the data: `fastconv.repeat`."""
        looks_at_data = isinstance(self.problem, PoolProblem) and self.problem.kind == "max_unpool"
        plain = self.out is None and self.kind.module is None and self.shape == self.problem.outputs[0].shape
        return plain and self.problem.n > 0 and not looks_at_data

    def remember(
        self,
        form: repeat.Form,
        lower: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        entry: Callable[[repeat.Repeat], Any] = lambda again: again,
    ) -> None:
        """Remember how to make a lowering's call again, or what ``entry`` makes of that, if its form tells all."""
        if self.depends_on_form:
            plan = dispatch.plan_for(self.problem, self.options, self.kind.gpu)
            again = repeat.repeated(plan, self.inputs, _parameters(lower), args, kwargs)
            if again is not None:
                repeat.remember(form, entry(again))

    def with_problem(self, **changes: Any) -> Call:
        """Return the call with some fields of its problem changed."""
        return replace(self, problem=self.problem.replace(**changes))

    def with_inputs(self, inputs: dict[str, Any], out: Any = None) -> Call:
        """Return the call with other arrays of the same shapes."""
        return replace(self, inputs=inputs, out=out)


@functools.cache
def _parameters(lower: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(lower).parameters)


def lies_over(target: Any, operand: Any) -> bool:
    """Whether an array might share memory with an operand; a packed weight, which no caller holds, never does."""
    if not isinstance(operand, type(target)) or not arrays.may_overlap(target, operand):
        return False
    if not isinstance(target, np.ndarray):
        return True
    try:  # channels of one map interleave with others of it, and share nothing
        return bool(np.shares_memory(target, operand, max_work=_WORK))
    except np.exceptions.TooHardError:
        return True


def execute(
    problem: AnyProblem,
    inputs: tuple[Any, ...],
    options: Options,
    outputs: tuple[Any, ...] | None = None,
    plan: Plan | None = None,
) -> tuple[Any, ...]:
    """Solve a problem and return its outputs, allocated here unless they are given."""
    if outputs is None:
        outputs = tuple(arrays.empty(o, problem.layout, inputs[0]) for o in problem.outputs)
    if problem.n == 0:
        for output in outputs:  # gradients of weights over no images are zero; all else is empty
            with arrays.at(output):
                output[...] = 0
        return outputs
    (plan or dispatch.plan_for(problem, options, arrays.gpu_of(inputs[0]))).run(inputs, outputs)
    return outputs


def op(lower: Callable[P, Call]) -> Callable[P, Array]:
    """Make a public function of a lowering; the lowering stays reachable for `lowering_of`."""

    @functools.wraps(lower)
    def function(*args: P.args, **kwargs: P.kwargs) -> Array:
        form = repeat.form(lower, args, kwargs)
        again = None if form is None else repeat.find(form)
        if again is not None:
            _, outputs = again(args, kwargs)
            return outputs[0] if len(outputs) == 1 else outputs
        call = lower(*args, **kwargs)
        result = call.run()
        if form is not None:
            call.remember(form, lower, args, kwargs)
        return result

    function.lower = lower  # type: ignore[attr-defined]
    function.__signature__ = inspect.signature(lower).replace(return_annotation="Array")  # type: ignore[attr-defined]
    return function


def named_op(lower: Callable[P, Call], name: str, doc: str, ndim: int) -> Callable[P, Array]:
    """Make a public function of one member of a family: the lowering for ``ndim`` spatial axes.

    ``doc`` may use ``{ndim}``, ``{axes}`` (``H, W``) and ``{kernel}`` (``R, S``).
    """
    lower.__name__ = lower.__qualname__ = name
    lower.__doc__ = doc.format(ndim=ndim, axes=", ".join("DHW"[-ndim:]), kernel=", ".join("QRS"[-ndim:]))
    return op(lower)


def lowering_of(function: Any) -> Callable[..., Call]:
    """Return the lowering of a public function.

    Raises
    ------
    TypeError
        If the function is none of fastconv's ops.
    """
    lower = getattr(function, "lower", None)
    if lower is None:
        raise TypeError(f"function: expected one of fastconv's ops, such as fastconv.conv2d, got {function!r}")
    return cast("Callable[..., Call]", lower)
