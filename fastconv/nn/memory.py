"""Where the values of a graph lie: few buffers, each used by one value after another, and concatenations in place."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastconv.buffers import Life, aligned, shared
from fastconv.nn.graph import Graph, Operation, Value
from fastconv.nn.plain import namespace


class Place(NamedTuple):
    """Where a value is: all channels of another value from one on, or a reshaped view of it."""

    owner: Value
    channel: int


def places(graph: Graph) -> dict[Value, Place]:
    """Say which values lie within which: inputs of a concatenation within its output, a reshaped value in its input."""
    found: dict[Value, Place] = {}
    for operation in reversed(graph.operations):
        if operation.kind == "concat":
            channel = 0
            for value in operation.inputs:
                if value is not graph.input and value not in found and _may_lie_inside(value, operation):
                    found[value] = Place(operation.output, channel)
                channel += value.shape[1]
        elif operation.kind == "reshape":
            found[operation.output] = Place(operation.inputs[0], 0)
    return found


def _may_lie_inside(value: Value, concat: Operation) -> bool:
    """Whether a value can be made where a concatenation wants it; one that is reshaped must be contiguous."""
    reshaped = any(reader.kind == "reshape" for reader in value.readers)
    made_by_reshape = value.maker is not None and value.maker.kind == "reshape"
    return not reshaped and not made_by_reshape and concat.inputs.count(value) == 1


def root(value: Value, found: dict[Value, Place]) -> Value:
    """Return the value in whose memory another lies in the end."""
    while value in found:
        value = found[value].owner
    return value


def arrays(graph: Graph, found: dict[Value, Place], like: Any) -> tuple[dict[Value, Any], int]:
    """Return an array for every value, and the bytes that they take together."""
    last: dict[Value, int] = {}
    first: dict[Value, int] = {root(graph.input, found): 0}
    for at, operation in enumerate(graph.operations):
        for value in (*operation.inputs, operation.output):
            owner = root(value, found)
            first.setdefault(owner, at)
            last[owner] = at
    # The network's output is read after everything else.
    end = graph.operations[-1].output if graph.operations else graph.input
    last[root(end, found)] = len(graph.operations)
    lives = [Life(at, last[owner], math.prod(owner.shape) * like.dtype.itemsize) for owner, at in first.items()]
    buffers, sizes = shared(lives)
    rooms = [aligned(size, namespace(like)) for size in sizes]
    views: dict[Value, Any] = {
        owner: rooms[buffer][: life.bytes].view(like.dtype).reshape(owner.shape)
        for owner, buffer, life in zip(first, buffers, lives, strict=True)
    }
    for value in (graph.input, *(operation.output for operation in graph.operations)):
        _view(value, found, views)
    return views, sum(sizes)


def _view(value: Value, found: dict[Value, Place], views: dict[Value, Any]) -> Any:
    if value not in views:
        owner, channel = found[value]
        whole = _view(owner, found, views)
        views[value] = (
            whole.reshape(value.shape) if is_reshaped(value) else whole[:, channel : channel + value.shape[1]]
        )
    return views[value]


def is_reshaped(value: Value) -> bool:
    """Whether a value is another one with a different shape."""
    return value.maker is not None and value.maker.kind == "reshape"
