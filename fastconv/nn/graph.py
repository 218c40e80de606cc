"""What a network does in evaluation mode, written down: operations on values, fused where one pass does for several.

Layers write themselves down by `Layer.trace`, and ask for what may go into the operation before them: factors and
summands of channels into its weights, activations and sums into what it does as it stores its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastconv.arrays import Array
from fastconv.nn import plain
from fastconv.problem import Sizes


@dataclass(eq=False)
class Value:
    """An array that flows through the graph: its shape (with the batch), who makes it, and who reads it.

    One that is ``shared`` will be read again by a part of the network that is yet to be traced.
    """

    shape: Sizes
    maker: Operation | None = None
    shared: bool = False
    readers: list[Operation] = field(default_factory=list)


@dataclass(eq=False)
class Operation:
    """One thing to do.

    Attributes
    ----------
    kind : str
        ``layer``, ``weighted``, ``affine``, ``add``, ``gate``, ``concat`` or ``reshape``.
    path : str
        Where in the network it stands.
    inputs : list of Value
        A residual that was fused in comes last.
    output : Value
    layer : Layer or None
        Who wrote it down.
    weight, bias : array or None
        Of a weighted operation, with what was folded in; of an affine one, the factor and summand of each channel.
    channel_axis : int or None
        The weight's axis that belongs to output channels; None if that is not one axis for all of them.
    fuses : frozenset of str
        The activations that it can apply as it stores its result.
    adds : bool
        Whether it can add a residual before.
    activation : str or None
    residual : bool
        Whether the last input is added before the activation.
    """

    kind: str
    path: str
    inputs: list[Value]
    output: Value
    layer: Any = None
    weight: Array | None = None
    bias: Array | None = None
    channel_axis: int | None = None
    fuses: frozenset[str] = frozenset()
    adds: bool = False
    activation: str | None = None
    residual: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing is done to its result yet."""
        return self.activation is None and not self.residual


class Graph:
    """A network's operations, in the order of execution.

    Parameters
    ----------
    shape : tuple of int
        The input's, with the batch.
    """

    def __init__(self, shape: Sizes) -> None:
        self.input = Value(shape)
        self.operations: list[Operation] = []
        self._path: list[str] = []

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Name the part of the network whose layers are traced."""
        self._path.append(name)
        yield
        self._path.pop()

    def write(self, kind: str, inputs: Sequence[Value], shape: Sizes, **fields: Any) -> Value:
        """Write down an operation whose result has a shape, without the batch; return the result."""
        output = Value((inputs[0].shape[0], *shape))
        operation = Operation(kind, ".".join(self._path), list(inputs), output, **fields)
        output.maker = operation
        for value in inputs:
            value.readers.append(operation)
        self.operations.append(operation)
        return output

    def activate(self, value: Value, activation: str) -> bool:
        """Let whoever makes a value apply an activation to it; tell if that went."""
        maker = _alone(value)
        if maker is None or maker.activation is not None or activation not in maker.fuses:
            return False
        maker.activation = activation
        return True

    def fold(self, value: Value, scale: Any, shift: Any = None) -> bool:
        """Multiply a value by a scale and add a shift, by changing its maker's weights; tell if that went.

        Without a shift the scale is a number, else both have an element a channel.
        """
        maker = _alone(value)
        if maker is None or maker.kind != "weighted" or not maker.is_plain:
            return False
        assert maker.weight is not None
        w, dtype, factors = plain.wide(maker.weight), maker.weight.dtype, scale
        if shift is not None:
            if maker.channel_axis is None:
                return False
            shape = [1] * w.ndim
            shape[maker.channel_axis] = -1
            factors = plain.wide(scale).reshape(shape)
        maker.weight = (w * factors).astype(dtype)
        if maker.bias is not None:
            scaled = plain.wide(maker.bias) * scale
            maker.bias = (scaled if shift is None else scaled + shift).astype(dtype)
        elif shift is not None:
            maker.bias = shift.astype(dtype)
        return True

    def add(self, first: Value, second: Value, fuses: frozenset[str]) -> Value:
        """Write down a sum; in what was made last, if that can add a residual and nobody else reads it."""
        if first is not second:
            for value, other in ((first, second), (second, first)):
                maker = _alone(value)
                if maker is not None and maker is self.operations[-1] and maker.adds and maker.is_plain:
                    maker.inputs.append(other)
                    maker.residual = True
                    other.readers.append(maker)
                    return value
        return self.write("add", [first, second], first.shape[1:], fuses=fuses)


def _alone(value: Value) -> Operation | None:
    """Return who makes a value, if what it does may still be changed: nobody else has read the value, or will."""
    return None if value.readers or value.shared else value.maker
