"""What a network does in evaluation mode, written down: operations on values, fused where one pass does for several.

Layers write themselves down by `Layer.trace`. What the graph folds away: batch normalisation and constant factors go
into the weights before them; activations and sums go into the operation before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastconv.arrays import Array
from fastconv.nn import plain
from fastconv.nn.activations import SIMPLE, Activation
from fastconv.nn.layer import Layer, Shape
from fastconv.nn.normalisation import BatchNorm2d
from fastconv.nn.shapes import Flatten, Scale
from fastconv.nn.weighted import Weighted


@dataclass(eq=False)
class Value:
    """An array that flows through the graph: its shape (with the batch), who makes it, and who reads it.

    One that is ``shared`` will be read again by a part of the network that is yet to be traced.
    """

    shape: Shape
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
    weight, bias : array or None
        Of a weighted operation, with what was folded in; of an affine one, the factor and summand of each channel.
    activation : str or None
    residual : bool
        Whether the last input is added before the activation.
    """

    kind: str
    path: str
    inputs: list[Value]
    output: Value
    layer: Layer | None = None
    weight: Array | None = None
    bias: Array | None = None
    activation: str | None = None
    residual: bool = False

    def fuses(self, activation: str) -> bool:
        """Whether it can apply an activation as it stores its result."""
        if self.activation is not None:
            return False
        if isinstance(self.layer, Weighted):
            return activation in self.layer.fuses
        return activation in {"affine": SIMPLE, "add": SIMPLE, "gate": SIMPLE - {"leaky_relu"}}.get(self.kind, ())


class Graph:
    """A network's operations, in the order of execution.

    Parameters
    ----------
    shape : tuple of int
        The input's, with the batch.
    """

    def __init__(self, shape: Shape) -> None:
        self.input = Value(shape)
        self.operations: list[Operation] = []
        self._path: list[str] = []

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Name the part of the network whose layers are traced."""
        self._path.append(name)
        yield
        self._path.pop()

    def _append(self, kind: str, inputs: Sequence[Value], shape: Shape, **fields: Any) -> Value:
        output = Value(shape)
        operation = Operation(kind, ".".join(self._path), list(inputs), output, **fields)
        output.maker = operation
        for value in inputs:
            value.readers.append(operation)
        self.operations.append(operation)
        return output

    def leaf(self, layer: Layer, value: Value, shape: Shape) -> Value:
        """Write down a layer that has none inside; return its output."""
        result = (value.shape[0], *shape)
        before = None if value.readers or value.shared else value.maker
        if isinstance(layer, Flatten):
            return self._append("reshape", [value], result)
        if isinstance(layer, Activation):
            fused = layer.fused
            if before is not None and fused is not None and before.fuses(fused):
                before.activation = fused
                return value
        if isinstance(layer, BatchNorm2d):
            scale, shift = layer.scale_and_shift()
            if before is not None and self._fold(before, scale, shift):
                return value
            return self._append("affine", [value], result, layer=layer, weight=scale, bias=shift)
        if isinstance(layer, Scale) and before is not None and self._fold(before, layer.factor, None):
            return value
        if isinstance(layer, Weighted):
            bias = None if layer.bias is None else layer.bias.value
            return self._append("weighted", [value], result, layer=layer, weight=layer.weight.value, bias=bias)
        return self._append("layer", [value], result, layer=layer)

    @staticmethod
    def _fold(operation: Operation, scale: Any, shift: Any) -> bool:
        """Multiply what an operation makes by a scale, and add a shift, by changing its weights; tell if that went."""
        layer = operation.layer
        if operation.kind != "weighted" or operation.activation is not None or operation.residual:
            return False
        assert isinstance(layer, Weighted)
        assert operation.weight is not None
        local, groups = operation.weight.ndim == 6, layer.settings.get("groups", 1)
        if (local or layer.channel_axis and groups > 1) and shift is not None:
            return False
        w, dtype = plain.wide(operation.weight), operation.weight.dtype
        factors = scale
        if shift is not None:
            shape = [1] * w.ndim
            shape[layer.channel_axis] = -1
            factors = plain.wide(scale).reshape(shape)
        operation.weight = (w * factors).astype(dtype)
        if operation.bias is not None:
            scaled = plain.wide(operation.bias) * scale
            operation.bias = (scaled if shift is None else scaled + shift).astype(dtype)
        elif shift is not None:
            operation.bias = shift.astype(dtype)
        return True

    def add(self, first: Value, second: Value) -> Value:
        """Write down a sum; in what was made last, if that can add a residual and nobody else reads it."""
        if first is not second:
            for value, other in ((first, second), (second, first)):
                last = value.maker
                if last is None or value.readers or value.shared or last is not self.operations[-1]:
                    continue
                plans = isinstance(last.layer, Weighted) and len(value.shape) == 4
                if (plans or last.kind in ("affine", "gate")) and not last.residual and last.activation is None:
                    last.inputs.append(other)
                    last.residual = True
                    other.readers.append(last)
                    return value
        return self._append("add", [first, second], first.shape)

    def gate(self, value: Value, factors: Value) -> Value:
        """Write down a product of planes and factors."""
        return self._append("gate", [value, factors], value.shape)

    def concat(self, values: Sequence[Value]) -> Value:
        """Write down values side by side along the channels."""
        n, _, *rest = values[0].shape
        return self._append("concat", values, (n, sum(value.shape[1] for value in values), *rest))
