"""Making fewer and faster steps of a model's nodes: constants computed beforehand, neighbours computed together.

Two neighbours become one step only if nothing else sees what goes between them: no other node, no subgraph, and not
the caller. What depends on arrays that the caller may still replace is never computed beforehand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from fastconv.onnx.convolution import Convolution, TransposedConvolution
from fastconv.onnx.packed import freeze
from fastconv.onnx.steps import FusedConvolution, FusedLinear, ScaleShift, Step, rectified, total

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Dropout"}
)
_KNOWN_MODULES = ("fastconv.onnx.", "onnx.reference.ops.")
FLOATS = frozenset({"float16", "float32", "float64"})


def outside_names(node: Any) -> set[str]:
    """Return the names that a node's subgraphs take from the graph around them."""
    names: set[str] = set()
    for attribute in node.onnx_node.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            names |= _free_names(graph)
    return names


def _free_names(graph: Any) -> set[str]:
    own = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    own |= {i.values.name for i in graph.sparse_initializer}
    used = {o.name for o in graph.output}
    for node in graph.node:
        used |= set(node.input)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                used |= _free_names(inner)
        own |= set(node.output)
    return used - own - {""}


def _is_known(node: Any) -> bool:
    """Whether a node does what ONNX says of its type: one of another class is the caller's own."""
    return node.domain == "" and not node.has_linked_attribute and type(node).__module__.startswith(_KNOWN_MODULES)


def fold(nodes: Iterable[Any], constants: dict[str, Any]) -> list[Any]:
    """Run the nodes all of whose inputs are constants, add what they make to these, and return the other nodes."""
    left = []
    for node in nodes:
        varies = node.op_type in RANDOM or not _is_known(node) or node.need_context() or node.has_subgraph
        if varies or not all(name == "" or name in constants for name in node.input):
            left.append(node)
            continue
        made = node.run(*[None if name == "" else constants[name] for name in node.input])
        for name, value in zip(node.output, made, strict=False):
            if name:
                freeze(value)
                constants[name] = value
    return left


class _Graph:
    """The nodes, who uses what they make, and what is constant."""

    def __init__(self, nodes: list[Any], constants: dict[str, Any], outputs: Iterable[str]) -> None:
        self.nodes, self.constants = nodes, constants
        self.taken: set[int] = set()
        self._uses = Counter(name for node in nodes for name in node.input if name)
        # What a subgraph or the caller sees counts twice, so that it has no sole user.
        for name in [*outputs, *(name for node in nodes for name in outside_names(node))]:
            self._uses[name] += 2
        self._user = {name: i for i, node in enumerate(nodes) for name in node.input}

    def sole_user(self, name: str) -> int | None:
        """Return the place of the only node that uses a result, if there is only one and a step may take it."""
        place = self._user.get(name)
        if place is None or self._uses[name] != 1 or place in self.taken or not _is_known(self.nodes[place]):
            return None
        return place

    def constant(self, name: str) -> Any:
        """Return a constant floating array by name, or None."""
        value = self.constants.get(name)
        return value if isinstance(value, np.ndarray) and value.dtype.name in FLOATS else None


class _Chain:
    """A node, and those after it that one step can compute with it.

    Attributes
    ----------
    places : list of int
        Of the nodes.
    scale, shift : ndarray of float64
        What follows in numbers per channel, or a single one.
    residual : str or None
        The name of what is added.
    activation : str or None
    """

    def __init__(self, graph: _Graph, place: int, channels: int, ndim: int | None) -> None:
        self.graph = graph
        self.places = [place]
        self.channels, self.ndim = channels, ndim
        self.scale, self.shift = np.ones(1), np.zeros(1)
        self.residual: str | None = None
        self.activation: str | None = None

    @property
    def nodes(self) -> list[Any]:
        return [self.graph.nodes[place] for place in self.places]

    @property
    def last(self) -> str:
        """The name of what the chain makes so far."""
        return self.nodes[-1].output[0]  # type: ignore[no-any-return]

    @property
    def is_affine(self) -> bool:
        return self.residual is None and self.activation is None

    def grow(self, residuals: bool) -> None:
        """Take in as many following nodes as can be."""
        while self.activation is None:
            place = self.graph.sole_user(self.last)
            if place is None:
                return
            node = self.graph.nodes[place]
            taken = (
                (self.is_affine and self.take_affine(node))
                or (residuals and self._take_residual(node))
                or self._take_activation(node)
            )
            if not taken:
                return
            self.places.append(place)

    def take_affine(self, node: Any) -> bool:
        """Take a node that multiplies or adds a constant per channel, if it is one; say whether."""
        if node.op_type == "BatchNormalization":
            found = self._normalization(node)
        elif node.op_type in ("Mul", "Add"):
            found = self._constant_operand(node)
        else:
            return False
        if found is None:
            return False
        with np.errstate(all="ignore"):
            scale, shift = self.scale * found[0], self.shift * found[0] + found[1]
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return False
        self.scale, self.shift = scale, shift
        return True

    def _normalization(self, node: Any) -> tuple[Any, Any] | None:
        parameters = [self.graph.constant(name) for name in node.input[1:5]]
        if any(p is None or p.shape != (self.channels,) for p in parameters) or not is_inference(node):
            return None
        scale, bias, mean, variance = (p.astype(np.float64) for p in parameters)
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + float(node.epsilon))
        return factor, bias - mean * factor

    def _constant_operand(self, node: Any) -> tuple[Any, Any] | None:
        if len(node.input) != 2:
            return None
        name = node.input[1] if node.input[0] == self.last else node.input[0]
        value = self.graph.constant(name)
        if value is None:
            return None
        if value.size == 1 and value.ndim <= (self.ndim or 3):
            numbers = value.reshape(1)
        else:
            ndim = self.ndim or (value.ndim if value.ndim > 2 and value.shape[0] == 1 else value.ndim + 1)
            padded = (1,) * (ndim - value.ndim) + value.shape
            if ndim < 3 or len(padded) != ndim or padded != (1, self.channels, *(1,) * (ndim - 2)):
                return None
            self.ndim = ndim
            numbers = value.reshape(-1)
        numbers = numbers.astype(np.float64)
        return (numbers, np.zeros(1)) if node.op_type == "Mul" else (np.ones(1), numbers)

    def _take_residual(self, node: Any) -> bool:
        if not self.is_affine or node.op_type not in ("Add", "Sum") or len(node.input) != 2:
            return False
        other = node.input[1] if node.input[0] == self.last else node.input[0]
        if other in self.graph.constants:
            return False
        self.residual = other
        return True

    def _take_activation(self, node: Any) -> bool:
        self.activation = activation_of(node, self.graph.constants)
        return self.activation is not None


def is_inference(node: Any) -> bool:
    """Whether a BatchNormalization node normalises by the mean and variance that it is given."""
    if any(node.output[1:]) or not getattr(node, "spatial", 1):
        return False
    return not getattr(node, "training_mode", 0) and bool(getattr(node, "is_test", 1))


def _is_relu6(node: Any, constants: dict[str, Any]) -> bool:
    limits = [getattr(node, name, None) for name in ("min", "max")]
    for i, name in enumerate(node.input[1:3]):
        limits[i] = constants.get(name)
    return all(
        v is not None and np.size(v) == 1 and float(np.reshape(v, ())) == w for v, w in zip(limits, (0, 6), strict=True)
    )


def activation_of(node: Any, constants: dict[str, Any]) -> str | None:
    """Return the name that fastconv has for a node's activation, if it has one."""
    if node.op_type == "Clip":
        return "relu6" if _is_relu6(node, constants) else None
    if node.op_type == "LeakyRelu":
        return "leaky_relu" if np.float32(node.alpha) == np.float32(0.01) else None
    return {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}.get(node.op_type)


def _convolution(graph: _Graph, place: int) -> tuple[Step, list[int]] | None:
    node = graph.nodes[place]
    transposed = node.op_type == "ConvTranspose"
    w = graph.constant(node.input[1])
    bias = node.input[2] if len(node.input) > 2 else ""
    b = graph.constant(bias)
    if w is None or w.ndim < 3:
        return None
    if bias and b is None:
        return None
    group = int(node.group or 1)
    channels = w.shape[1] * group if transposed else w.shape[0]
    if b is not None and b.shape != (channels,):
        return None  # the node itself will say what is wrong
    chain = _Chain(graph, place, channels, w.ndim)
    chain.grow(residuals=True)
    weight, shift = w, b
    if chain.scale.size > 1 or chain.scale[0] != 1 or chain.shift.any():
        weight = _scaled(w, chain.scale, group, transposed)
        shift = (0 if b is None else b.astype(np.float64)) * chain.scale + chain.shift
        with np.errstate(over="ignore"):
            shift = np.broadcast_to(shift, (channels,)).astype(w.dtype)
        if not (np.isfinite(weight).all() and np.isfinite(shift).all()):
            return None  # too large for the dtype, or never finite: node by node it is what ONNX says
    for array in (weight, shift):
        freeze(array)
    kind: Any = TransposedConvolution if transposed else Convolution
    attributes = {name: getattr(node, name) for name in node.attributes_names_}
    compute = FusedConvolution(kind(attributes, chain.activation), kind(attributes), weight, shift, chain.activation)
    inputs = [node.input[0]] + ([chain.residual] if chain.residual else [])
    return Step(chain.nodes, inputs, compute), chain.places


def _scaled(w: Any, scale: Any, group: int, transposed: bool) -> Any:
    """Return a weight times a number per output channel."""
    ones = (1,) * (w.ndim - 2)
    if scale.size == 1:
        scaled = w * scale
    elif transposed:
        scaled = w.reshape(group, -1, *w.shape[1:]) * scale.reshape(group, 1, -1, *ones)
    else:
        scaled = w * scale.reshape(-1, 1, *ones)
    with np.errstate(over="ignore"):  # whoever calls looks for infinity
        return scaled.reshape(w.shape).astype(w.dtype)


def _normalization(graph: _Graph, place: int) -> tuple[Step, list[int]] | None:
    node = graph.nodes[place]
    scale = graph.constant(node.input[1])
    if scale is None or scale.ndim != 1:
        return None
    chain = _Chain(graph, place, scale.size, None)
    if not chain.take_affine(node):
        return None
    chain.grow(residuals=False)
    factor, shift = (np.broadcast_to(c, (scale.size,)).astype(scale.dtype) for c in (chain.scale, chain.shift))
    freeze(factor)
    freeze(shift)
    compute = ScaleShift(factor, shift, chain.activation, chain.ndim, _one_by_one(chain.nodes, graph.constants))
    return Step(chain.nodes, [node.input[0]], compute), chain.places


def _one_by_one(nodes: list[Any], constants: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the function of the first node's first input that the nodes compute."""
    kept = {name: constants[name] for node in nodes for name in node.input if name in constants}

    def compute(x: Any) -> Any:
        results = {**kept, "": None, nodes[0].input[0]: x}
        for node in nodes:
            made = node.run(*[results[name] for name in node.input])
            results[node.output[0]] = made[0]
        return results[nodes[-1].output[0]]

    return compute


def _linear(graph: _Graph, place: int) -> tuple[Step, list[int]] | None:
    node = graph.nodes[place]
    w = graph.constant(node.input[1])
    bias = node.input[2] if len(node.input) > 2 else ""
    b = graph.constant(bias)
    if w is None or w.ndim != 2 or (bias and b is None) or node.input[0] in graph.constants:
        return None
    weight = w if node.transB else w.T
    if float(node.alpha) != 1:
        weight = (weight * np.float64(node.alpha)).astype(w.dtype)
    if b is not None:
        if b.size not in (1, len(weight)) or b.shape not in ((), (b.size,), (1, b.size)):
            return None
        b = np.broadcast_to((b.reshape(-1) * np.float64(node.beta)).astype(w.dtype), (len(weight),)).copy()
    for array in (weight, b):
        freeze(array)
    chain = _Chain(graph, place, 0, 2)
    following = graph.sole_user(chain.last)
    if following is not None and chain._take_activation(graph.nodes[following]):
        chain.places.append(following)
    compute = FusedLinear(weight, b, chain.activation, bool(node.transA))
    return Step(chain.nodes, [node.input[0]], compute), chain.places


# Functions that are the same as those of the reference evaluator's nodes, in fewer passes over memory.
_ELEMENTWISE: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "Relu": lambda node: rectified,
    "Sum": lambda node: total,
}


def _elementwise(graph: _Graph, place: int) -> tuple[Step, list[int]]:
    node = graph.nodes[place]
    return Step([node], node.input, _ELEMENTWISE[node.op_type](node)), [place]


_RULES: dict[str, Callable[[_Graph, int], tuple[Step, list[int]] | None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "BatchNormalization": _normalization,
    "Gemm": _linear,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}


def _step(graph: _Graph, place: int) -> tuple[Any, list[int]]:
    """Return the step that a node begins, and the places of the nodes that it computes."""
    node = graph.nodes[place]
    rule = _RULES.get(node.op_type) if _is_known(node) else None
    return (rule and rule(graph, place)) or (node, [place])


def fuse(nodes: list[Any], constants: dict[str, Any], outputs: Iterable[str]) -> list[Any]:
    """Return the steps that compute what nodes compute.

    Parameters
    ----------
    nodes : list of OpRun
        In an order in which they can run.
    constants : dict of str to array
        By name; those that no step uses any more are removed.
    outputs : names that must be computed

    Returns
    -------
    list of OpRun and Step
    """
    outputs = set(outputs)
    graph = _Graph(nodes, constants, outputs)
    steps: dict[int, Any] = {}
    for place in range(len(nodes)):
        if place in graph.taken:
            continue
        # A step stands where its last node stood: all that it uses is there by then.
        step, places = _step(graph, place)
        graph.taken |= set(places)
        steps[places[-1]] = step
    result = [steps[place] for place in sorted(steps)]
    used = {name for step in result for name in step.input} | outputs
    used |= {name for step in result if isinstance(step, OpRun) for name in outside_names(step)}
    for name in constants.keys() - used:
        del constants[name]
    return result
