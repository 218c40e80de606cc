"""Inference: a network made ready for inputs of one shape."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from fastconv import arrays
from fastconv.arrays import Array
from fastconv.choice import BoundPlan, plan
from fastconv.machine import machine
from fastconv.nn import memory
from fastconv.nn.activations import OP_SLOPE, Activation
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Operation, Value
from fastconv.nn.layer import Layer, Parameter
from fastconv.nn.pools import Pool
from fastconv.nn.weighted import Weighted
from fastconv.options import Options, applied, current

# Seconds that a sleeping thread takes to wake up, at least.
_AWAKE = 5e-6


class Step(NamedTuple):
    """One thing that a run does.

    Attributes
    ----------
    path : str
        The layer's, such as ``layer1.0.body.conv1.0``.
    what : str
        What is done there, and by which algorithm.
    run : callable
        Takes no arguments.
    """

    path: str
    what: str
    run: Callable[[], object]


class Inference:
    """A network made ready to be run again and again, on inputs of one shape and dtype.

    Batch normalisation is folded into the weights before it, activations and sums into the operation before them,
    and dropout and auxiliary classifiers are left out. Algorithms are chosen and weights packed here, once; a few
    buffers serve all intermediate results, and what is concatenated is computed in its place.

    The weights are those that the network has now, and some are read where they lie: when an optimiser or `load_state`
    has changed them, a run raises an error, and another `Inference` is to be made. Of a network that goes on learning,
    make it of a copy (`copy.deepcopy`). The options in force now hold for every run. One `Inference` runs in one thread
    at a time.

    Parameters
    ----------
    network : Layer
    example : array, shape (N, C, H, W)
        Tells shape, dtype and kind of the inputs.

    Attributes
    ----------
    steps : list of Step
        What a run does, in order.
    memory : int
        Bytes of all buffers together; packed weights are not among them.

    Raises
    ------
    TypeError, ValueError
        If a layer does not take such an input, or the network's dtype is another.

    Examples
    --------
    >>> predict = fastconv.nn.Inference(network, x)
    >>> y = predict(x)
    """

    def __init__(self, network: Layer, example: Array) -> None:
        array, self._kind = arrays.read("example", example)
        self._options = current()
        self._versions = [(parameter, parameter.version) for parameter in network.parameters().values()]
        self._changes = Parameter.changes
        graph = Graph(array.shape)
        output = network.trace(graph, graph.input)
        found = memory.places(graph)
        self._views, self.memory = memory.arrays(graph, found, array)
        self._input, self._output = self._views[graph.input], self._views[output]
        self._input[...] = array
        self.steps = [step for operation in graph.operations for step in self._steps(operation, found)]

    def __call__(self, x: Array) -> Array:
        """Run the network.

        Parameters
        ----------
        x : array
            Of the example's shape, dtype and kind.

        Returns
        -------
        array
            New; what `Layer.forward` returns in evaluation mode, but for rounding.

        Raises
        ------
        TypeError, ValueError
            If the input is not like the example.
        RuntimeError
            If the network's weights are others by now.
        """
        if self._changes != Parameter.changes:
            self._check_weights()
        array = arrays.read_as("x", x, self._kind, "the example")
        if array.shape != self._input.shape:
            raise ValueError(f"x: expected the example's shape {self._input.shape}, got {array.shape}")
        if array.dtype != self._input.dtype:  # to tell names takes as long as a small layer
            arrays.check_dtype("x", array, self._input.dtype.name)
        with applied(self._options):
            self._input[...] = array
            for step in self.steps:
                step.run()
        return self._kind.give_back(self._output.copy())

    def _check_weights(self) -> None:
        if any(parameter.version != version for parameter, version in self._versions):
            raise RuntimeError(
                "network: its weights have changed since this Inference was made, which has packed some of them: "
                "make another one, or make it of a copy of the network"
            )
        self._changes = Parameter.changes

    def profile(self, x: Array, repeat: int = 1) -> list[tuple[Step, float]]:
        """Run the network, and return every step with the least of its times, in seconds."""
        self(x)
        best = [float("inf")] * len(self.steps)
        with applied(self._options):
            for _ in range(repeat):
                self._input[...] = x
                for at, step in enumerate(self.steps):
                    start = time.perf_counter()
                    step.run()
                    best[at] = min(best[at], time.perf_counter() - start)
        return list(zip(self.steps, best, strict=True))

    def _steps(self, operation: Operation, found: dict[Value, memory.Place]) -> list[Step]:
        """Return what an operation takes: nothing for one that its inputs' places have done already."""
        views = [self._views[value] for value in operation.inputs]
        out, path = self._views[operation.output], operation.path
        compute = for_array(out)
        residual = views.pop() if operation.residual else None
        x, activation = views[0], operation.activation
        if operation.kind == "reshape":
            return []
        if operation.kind == "concat":
            return self._copies(operation, found)
        if operation.kind == "weighted":
            planned = self._planned(operation, x, out, residual)
            return [
                Step(path, f"{_name(operation)} by {planned.algorithm}", planned.bind(x, out=out, residual=residual))
            ]
        if isinstance(operation.layer, Pool):
            with applied(_team(0, x, out)):
                planned = plan(type(operation.layer).op, x, **operation.layer.settings)
            return [Step(path, f"{_name(operation)} by {planned.algorithm}", planned.bind(x, out=out))]
        ending = activation, OP_SLOPE
        run: Callable[[], object]
        if operation.kind == "affine":
            weight, bias = operation.weight, operation.bias
            run = partial(compute.affine, x, weight, bias, *ending, residual, out)
        elif operation.kind == "add":
            second = views[1]
            run = partial(compute.add, x, second, *ending, out)
        elif operation.kind == "gate":
            factors = views[1]
            run = partial(compute.gate, x, factors, activation, residual, out)
        elif isinstance(operation.layer, Activation):
            run = partial(operation.layer.apply, x, out)
        else:
            run = _forward(operation, x, out)
        return [Step(path, _name(operation), run)]

    def _planned(self, operation: Operation, x: Any, out: Any, residual: Any) -> BoundPlan:
        layer = operation.layer
        assert isinstance(layer, Weighted)
        ending = {"activation": operation.activation, "residual": residual}
        with applied(_team(len(x) * layer.macs(x.shape[1:]), x, operation.weight, out)):
            return plan(type(layer).op, x, operation.weight, operation.bias, **layer.settings, **ending)

    def _copies(self, operation: Operation, found: dict[Value, memory.Place]) -> list[Step]:
        """Return a step for every input of a concatenation that could not be made in its place."""
        whole, channel, steps = self._views[operation.output], 0, []
        for value in operation.inputs:
            place = memory.Place(operation.output, channel)
            if found.get(value) != place:
                part = whole[:, channel : channel + value.shape[1]]
                steps.append(Step(operation.path, "copy", _copy(self._views[value], part)))
            channel += value.shape[1]
        return steps


def _team(macs: int, *moved: Any) -> Options:
    """Return the options in force, with one thread for what that has done before another one is awake."""
    one = machine()
    computing = 2 * macs / one.peak(moved[0].dtype.name, 1)
    short = max(computing, one.moving(sum(array.nbytes for array in moved))) < _AWAKE
    return dataclasses.replace(current(), threads=1) if short else current()


def _copy(source: Any, target: Any) -> Callable[[], object]:
    def run() -> None:
        target[...] = source

    return run


def _forward(operation: Operation, x: Any, out: Any) -> Callable[[], object]:
    layer = operation.layer
    assert layer is not None

    def run() -> None:
        with layer.evaluating():
            y = layer.forward(x)
        if y.shape != out.shape or y.dtype != out.dtype:
            raise ValueError(
                f"network: {operation.path} returns {y.dtype} of shape {y.shape} for an input of shape {x.shape}, "
                f"where its output_shape promises {out.shape} and the network computes in {out.dtype}"
            )
        out[...] = y

    return run


def _name(operation: Operation) -> str:
    """Return what an operation does, with what is fused into it."""
    own = operation.kind if operation.layer is None else type(operation.layer).__name__
    return " + ".join([own, *["residual"] * operation.residual, *filter(None, [operation.activation])])
