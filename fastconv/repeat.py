"""Calls that are made again: what was worked out for arguments of one form is found by that form.

Reading and checking arguments takes longer than a small convolution. All of it depends on the arguments' form
alone (shapes, strides, dtypes, numbers), not on what the arrays hold, so the second call of a form skips it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastconv import arrays, dispatch
from fastconv.algorithm import AnyProblem, Plan
from fastconv.options import current

Form: TypeAlias = tuple[Any, ...]

_MOST = 4096
_SIMPLE = frozenset({int, float, bool, str, NoneType})


class Repeat(NamedTuple):
    """A call whose plan is known: where its arguments hold the problem's inputs."""

    plan: Plan
    places: tuple[int | str, ...]
    outputs: Callable[[], tuple[Any, ...]]

    def compute(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Compute, and return the problem's inputs and outputs."""
        inputs = tuple([args[p] if type(p) is int else kwargs[p] for p in self.places])  # type: ignore[index]
        outputs = self.outputs()
        self.plan.run(inputs, outputs)
        return inputs, outputs

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Compute, and return what the public function returns."""
        _, outputs = self.compute(args, kwargs)
        return outputs[0] if len(outputs) == 1 else outputs


def new_outputs(problem: AnyProblem) -> Callable[[], tuple[Any, ...]]:
    """Return a function that makes a problem's outputs as new NumPy arrays, as quickly as may be."""
    dtypes = [arrays.dtype_named(operand.dtype) for operand in problem.outputs]
    shapes = [operand.shape for operand in problem.outputs]
    if len(shapes) > 1 or problem.layout == "channels_last":
        like = [np.empty(0, dtype) for dtype in dtypes]
        return lambda: tuple(
            arrays.empty(o, problem.layout, array) for o, array in zip(problem.outputs, like, strict=True)
        )
    shape, dtype = shapes[0], dtypes[0]
    return lambda: (np.empty(shape, dtype),)


_known: dict[Form, Any] = {}


def _is_pair(value: Any) -> bool:
    """Whether it is padding before and after an axis."""
    return type(value) is tuple and all(type(entry) is int for entry in value)


def form(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """Return what a call's plan depends on; None for arguments that are no NumPy arrays, numbers or strings."""
    parts: list[Any] = [function, current(), dispatch.generation(), *kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind is np.ndarray:
            parts += value.shape, value.strides, value.dtype
        elif kind in _SIMPLE:  # with its type: True is no 1 here
            parts += kind, value
        elif kind is tuple and all(type(entry) is int or _is_pair(entry) for entry in value):
            parts.append(value)
        elif kind is list and all(type(entry) is int for entry in value):
            parts.append(tuple(value))
        elif isinstance(value, np.integer):
            parts += int, int(value)
        else:
            return None
    return tuple(parts)


def find(form: Form) -> Any:
    """Return what is remembered of a form, None if that is nothing."""
    return _known.get(form)


def remember(form: Form, entry: Any) -> None:
    """Remember something of a form: a `Repeat`, or what contains one."""
    if len(_known) >= _MOST:
        _known.clear()
    _known[form] = entry


def repeated(plan: Plan, inputs: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Repeat | None:
    """Return how to make a call again; None if an input was made from the arguments rather than being one of them."""
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    places = [next((place for place, value in given if value is array), None) for array in inputs]
    return None if None in places else Repeat(plan, tuple(places), new_outputs(plan.problem))  # type: ignore[arg-type]
