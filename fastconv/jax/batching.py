"""What `jax.vmap` makes of the primitive: a larger problem of the same kind.

The mapped axis joins the batch where the weight is not mapped. Otherwise it joins the channels: output channels if the
weight alone is mapped, groups if both are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import batching

from fastconv.jax.derivatives import push_p
from fastconv.jax.primitive import run, run_p
from fastconv.jax.stored import Stored
from fastconv.options import Options
from fastconv.problem import ConvProblem


def _batch(inputs: Any, axes: Any, *, problem: Any, options: Options, stored: Stored | None) -> tuple[Any, Any]:
    (size,) = {a.shape[axis] for a, axis in zip(inputs, axes, strict=True) if axis is not None}
    if stored is not None:
        inputs, axes = _taken(inputs, axes, problem, stored)
    rule = _rule(problem, {o.name for o, axis in zip(problem.inputs, axes, strict=True) if axis is not None})
    outputs, axis = rule(inputs, axes, size, problem, options)
    return outputs, [axis] * len(outputs)


def _taken(inputs: Any, axes: Any, problem: Any, stored: Stored) -> tuple[list[Any], list[Any]]:
    """Return inputs with the weight in the problem's own order, and which axes are mapped."""
    arrays, mapped = list(inputs), list(axes)
    place = [operand.name for operand in problem.inputs].index("w")
    if mapped[place] is None:
        arrays[place] = stored.take(arrays[place])
    else:
        arrays[place] = jax.vmap(stored.take, in_axes=mapped[place])(arrays[place])
        mapped[place] = 0
    return arrays, mapped


def _rule(problem: Any, mapped: set[str]) -> Any:
    if not isinstance(problem, ConvProblem) or (problem.direction != "wgrad" and not mapped & {"w", "bias"}):
        return _into_batch
    if problem.is_local or problem.op == "linear" or problem.direction == "bgrad":
        return _one_by_one
    return _into_channels


def _front(array: Any, axis: int | None, size: int, to: int = 0) -> Any:
    """Return an array with the mapped axis at a place of its own, where it may be repeated."""
    if axis is not None:
        return jnp.moveaxis(array, axis, to)
    array = jnp.expand_dims(array, to)
    return jnp.broadcast_to(array, (*array.shape[:to], size, *array.shape[to + 1 :]))


def _join(array: Any, axis: int) -> Any:
    """Return an array with an axis and the next one made one."""
    shape = array.shape
    return array.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def _into_batch(inputs: Any, axes: Any, size: int, problem: Any, options: Options) -> tuple[Any, int]:
    shared = ("w", "bias")
    wide = [
        a if operand.name in shared else _join(_front(a, axis, size), 0)
        for a, axis, operand in zip(inputs, axes, problem.inputs, strict=True)
    ]
    outputs = run(problem.replace(n=size * problem.n), options, *wide)
    return [y.reshape(size, problem.n, *y.shape[1:]) for y in outputs], 0


def _one_by_one(inputs: Any, axes: Any, size: int, problem: Any, options: Options) -> tuple[Any, int]:
    wide = tuple(_front(a, axis, size) for a, axis in zip(inputs, axes, strict=True))
    return jax.lax.map(lambda each: run(problem, options, *each), wide), 0


# Whose channels a map has.
_CHANNELS = {"x": "ic", "dx": "ic", "y": "oc", "dy": "oc"}


def _into_channels(inputs: Any, axes: Any, size: int, problem: ConvProblem, options: Options) -> tuple[Any, int]:
    """Join the mapped axis to input and output channels, as groups; or to those of one side alone.

    With one group, an input that is not mapped can be shared by all: then only the other side's channels multiply.
    """
    roles = [operand.name for operand in problem.inputs]
    alone = _alone(problem, {role for role, axis in zip(roles, axes, strict=True) if axis is not None})
    wide = []
    for array, axis, role in zip(inputs, axes, roles, strict=True):
        place = _place(role, problem, alone)
        wide.append(array if place is None else _join(_front(array, axis, size, place), place))
    changes = {name: size * getattr(problem, name) for name in ("ic", "oc") if alone in ("", name)}
    if not alone:
        changes["groups"] = size * problem.groups
    (result,) = run(problem.replace(**changes), options, *wide)
    place = _place(problem.outputs[0].name, problem, alone)
    assert place is not None
    return [result.reshape(*result.shape[:place], size, -1, *result.shape[place + 1 :])], place


def _alone(problem: ConvProblem, mapped: set[str]) -> str:
    """Return which side's channels alone multiply; none if groups must."""
    if problem.groups == 1:
        for role in ("x", "dy"):
            if role in (operand.name for operand in problem.inputs) and role not in mapped:
                return "oc" if role == "x" else "ic"
    return ""


def _place(role: str, problem: ConvProblem, alone: str) -> int | None:
    """Return the axis of an array that the mapped one joins; None if the array does not take part."""
    if role in ("w", "dw"):
        return 1 if alone == "ic" else 0
    has = _CHANNELS[problem.outputs[0].name if role in ("bias", "residual") else role]
    if alone and has != alone:
        return None
    return 0 if role == "bias" else 1


def _batch_push(inputs: Any, axes: Any, *, problem: Any, options: Options) -> tuple[Any, int]:
    (size,) = {a.shape[axis] for a, axis in zip(inputs, axes, strict=True) if axis is not None}
    wide = [_join(_front(a, axis, size), 0) for a, axis in zip(inputs, axes, strict=True)]
    result = push_p.bind(*wide, problem=problem.replace(n=size * problem.n), options=options)
    return result.reshape(size, problem.n, *result.shape[1:]), 0


batching.primitive_batchers[run_p] = _batch
batching.primitive_batchers[push_p] = _batch_push
