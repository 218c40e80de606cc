"""Calls that are made again: what was worked out for arguments of one form is found by that form.

Reading and checking arguments takes longer than a small convolution. All of it depends on the arguments' form
alone (shapes, strides, dtypes, numbers), not on what the arrays hold, so the second call of a form skips it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from types import NoneType
from typing import Any, TypeAlias

import numpy as np

from fastconv import arrays, dispatch
from fastconv.algorithm import AnyProblem, Plan
from fastconv.options import current

Form: TypeAlias = tuple[Any, ...]
Repeat: TypeAlias = Callable[[Sequence[Any], Mapping[str, Any]], tuple[tuple[Any, ...], tuple[Any, ...]]]
"""Makes a call whose plan is known, of its arguments; returns the problem's inputs and outputs."""

_MOST = 4096
# A name of this module is found sooner than one of another's.
_ARRAY = np.ndarray
_SIMPLE = frozenset({int, float, bool, str, NoneType})


def new_outputs(problem: AnyProblem) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that makes a problem's outputs as new arrays like its first input, as quickly as may be."""
    first, *others = problem.outputs
    if others or problem.layout == "channels_last" or problem.device != "cpu":
        return lambda like: tuple([arrays.empty(o, problem.layout, like) for o in problem.outputs])
    new = partial(np.empty, first.shape, arrays.dtype_named(first.dtype))
    return lambda like: (new(),)


_known: dict[Form, Any] = {}


def _are_integers(values: Sequence[Any]) -> bool:
    """Whether these are integers, or pairs of them. A loop: a generator takes longer than all else here."""
    for value in values:  # noqa: SIM110
        if type(value) is not int and not (type(value) is tuple and _are_integers(value)):
            return False
    return True


def _gpu_arrays() -> Any:
    """Return the type of CuPy's arrays, if CuPy is imported."""
    return getattr(sys.modules.get("cupy"), "ndarray", None)


def form(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """Return what a call's plan depends on; None for what is no array of NumPy or CuPy, no number and no string."""
    parts: list[Any] = [function, current().number, dispatch.generation(), *kwargs]
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind is _ARRAY:
            parts += value.shape, value.strides, value.dtype
        elif kind in _SIMPLE:  # with its type: True is no 1 here
            parts += kind, value
        elif kind is tuple and _are_integers(value):
            parts.append(value)
        elif kind is list and _are_integers(value):
            parts.append(tuple(value))
        elif isinstance(value, np.integer):
            parts += int, int(value)
        elif kind is _gpu_arrays():
            parts += value.device.id, value.shape, value.strides, value.dtype
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


def repeated(
    plan: Plan, inputs: Mapping[str, Any], names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Repeat | None:
    """Return what makes a call again, if its form tells: every array among the arguments is an input, as it is.

    Otherwise None: an input may have been made from an argument, and of arrays that are no inputs (sizes, say) the form
    does not tell what they hold.

    Parameters
    ----------
    plan : Plan
    inputs : mapping of str to array
        The problem's, by the parameters that they came by.
    names : sequence of str
        The function's parameters.
    args, kwargs
        What it was called with.
    """
    kinds = _ARRAY, _gpu_arrays()
    places = {name: at for at, name in enumerate((*names[: len(args)], *kwargs))}
    values = (*args, *kwargs.values())
    if any(name not in places or values[places[name]] is not array for name, array in inputs.items()):
        return None
    if sum(type(value) in kinds for value in values) != len(inputs):
        return None
    chosen = [places[name] for name in inputs]
    pick: Callable[[Any], tuple[Any, ...]] = (
        itemgetter(*chosen) if len(chosen) > 1 else lambda given: (given[chosen[0]],)
    )
    if chosen == [*range(len(values))]:
        pick = tuple
    run, new = plan.run, new_outputs(plan.problem)

    def again(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        inputs = pick((*args, *kwargs.values()) if kwargs else args)
        outputs = new(inputs[0])
        run(inputs, outputs)
        return inputs, outputs

    return again
