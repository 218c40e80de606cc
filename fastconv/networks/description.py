"""The language in which networks are described: a tree of nodes that knows no sizes but those it adds.

Leaves are operations (`Conv`, `Pool`, `BatchNorm`, ...), inner nodes say how they are wired: `Sequence`,
`Concat`, `Add`, `Multiply` and `Auxiliary`. Input sizes are never written down: `Node.trace` carries the
shape of one image through the tree, and every leaf it reaches then knows its problem.

Descriptions are written with the functions below. Where they take nodes, a keyword becomes a part of the
path (``seq(conv1=conv(64, 7, 2), pool=max_pool(3, 2))``) and a positional node adds nothing to it, so that
``conv2`` of block 0 of ``layer1`` is ``layer1.0.conv2`` and its batch normalisation ``layer1.0.conv2.norm``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from fastconv.problem import ConvProblem, Padding, PoolProblem, Sizes

Shape: TypeAlias = tuple[int, ...]
"""Of one image: (channels, height, width), or (features,) once flattened."""


class Step(NamedTuple):
    """One operation of a network, reached by tracing it.

    Attributes
    ----------
    path : str
        Where it is, such as ``layer1.0.conv2``.
    operation : Leaf
        What it does.
    shape : tuple of int
        The shape of its input.
    auxiliary : bool
        Whether only training needs it.
    """

    path: str
    operation: Leaf
    shape: Shape
    auxiliary: bool = False


Trace: TypeAlias = Generator[Step, None, Shape]


class Node(ABC):
    """A part of a network."""

    @abstractmethod
    def trace(self, shape: Shape, path: str = "") -> Trace:
        """Yield the operations in the order of execution for an input of this shape; return the output's shape."""


# ---------------------------------------------------------------------------------------------- operations


class Leaf(Node):
    """An operation on one array. The defaults are those of one without problem, parameters or change of shape."""

    def problem(self, shape: Shape, n: int, dtype: str) -> ConvProblem | PoolProblem | None:
        """Return what fastconv computes here for a batch of ``n``, or None where it has nothing to do."""
        return None

    def output_shape(self, shape: Shape) -> Shape:
        problem = self.problem(shape, 1, "float32")
        return problem.y_shape[1:] if problem else shape

    def parameters(self, shape: Shape) -> int:
        """How many numbers are learned here."""
        problem = self.problem(shape, 1, "float32")
        return problem.parameters if isinstance(problem, ConvProblem) else 0

    def trace(self, shape: Shape, path: str = "") -> Trace:
        yield Step(path, self, shape)
        return self.output_shape(shape)


@dataclass(frozen=True)
class Conv(Leaf):
    """A 2-D convolution. ``channels=None`` keeps the input's number, ``groups=None`` makes a group a channel."""

    channels: int | None
    kernel: Sizes
    stride: Sizes = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    groups: int | None = 1
    bias: bool = True

    def problem(self, shape: Shape, n: int, dtype: str) -> ConvProblem:
        ic, *size = shape
        return ConvProblem(
            op="conv2d",
            direction="fprop",
            n=n,
            ic=ic,
            oc=ic if self.channels is None else self.channels,
            groups=ic if self.groups is None else self.groups,
            input_size=tuple(size),
            kernel_size=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=(1, 1),
            bias="channel" if self.bias else "none",
            dtype=dtype,
        )


@dataclass(frozen=True)
class Linear(Leaf):
    """A fully connected layer, on a flattened input."""

    features: int

    def problem(self, shape: Shape, n: int, dtype: str) -> ConvProblem:
        (ic,) = shape
        return ConvProblem(
            op="linear",
            direction="fprop",
            n=n,
            ic=ic,
            oc=self.features,
            input_size=(),
            kernel_size=(),
            stride=(),
            padding=(),
            dilation=(),
            bias="channel",
            dtype=dtype,
        )


@dataclass(frozen=True)
class Pool(Leaf):
    """2-D pooling; ``op`` is ``max_pool2d`` or ``avg_pool2d``."""

    op: str
    kernel: Sizes
    stride: Sizes
    padding: Padding = ((0, 0), (0, 0))
    ceil_mode: bool = False
    count_include_pad: bool = True

    def problem(self, shape: Shape, n: int, dtype: str) -> PoolProblem:
        c, *size = shape
        return PoolProblem(
            op=self.op,
            direction="fprop",
            n=n,
            c=c,
            input_size=tuple(size),
            kernel_size=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=(1, 1),
            ceil_mode=self.ceil_mode,
            count_include_pad=self.count_include_pad,
            dtype=dtype,
        )


@dataclass(frozen=True)
class GlobalAvgPool(Leaf):
    """The average of every channel, as a map of 1x1."""

    def problem(self, shape: Shape, n: int, dtype: str) -> PoolProblem:
        c, *size = shape
        return PoolProblem(
            op="adaptive_avg_pool2d",
            direction="fprop",
            n=n,
            c=c,
            input_size=tuple(size),
            output_size=(1, 1),
            kernel_size=(1, 1),
            stride=(1, 1),
            padding=((0, 0), (0, 0)),
            dilation=(1, 1),
            dtype=dtype,
        )


@dataclass(frozen=True)
class BatchNorm(Leaf):
    """Batch normalisation: a scale and a shift a channel are learned."""

    def parameters(self, shape: Shape) -> int:
        return 2 * shape[0]


@dataclass(frozen=True)
class LocalResponseNorm(Leaf):
    """Division by ``(k + alpha / size * sum of squares over size neighbouring channels) ** beta``."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0


@dataclass(frozen=True)
class Activation(Leaf):
    """A non-linearity, by the name that ``activation=`` of fastconv's operations takes."""

    function: str


@dataclass(frozen=True)
class Dropout(Leaf):
    """Dropout of a share ``p`` of the values, while training."""

    p: float


@dataclass(frozen=True)
class Scale(Leaf):
    """Multiplication by a constant."""

    factor: float


@dataclass(frozen=True)
class Flatten(Leaf):
    """A map as one vector."""

    def output_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)


# -------------------------------------------------------------------------------------------------- wiring


@dataclass(frozen=True)
class Inner(Node):
    """Nodes with their names; an empty name adds nothing to the path."""

    children: tuple[tuple[str, Node], ...]

    def _paths(self, path: str) -> list[tuple[str, Node]]:
        return [(".".join(filter(None, (path, name))), node) for name, node in self.children]


@dataclass(frozen=True)
class Sequence(Inner):
    """One node after the other; without nodes, the identity."""

    def trace(self, shape: Shape, path: str = "") -> Trace:
        for child_path, node in self._paths(path):
            shape = yield from node.trace(shape, child_path)
        return shape


@dataclass(frozen=True)
class Branches(Inner):
    """Nodes that all take the same input, and whose outputs are joined."""

    @abstractmethod
    def joined(self, first: Shape, *others: Shape) -> Shape | None:
        """Return the shape of the joined outputs, or None where they do not fit together."""

    def trace(self, shape: Shape, path: str = "") -> Trace:
        outputs = []
        for child_path, node in self._paths(path):
            outputs.append((yield from node.trace(shape, child_path)))
        joined = self.joined(*outputs)
        if joined is None:
            raise ValueError(f"{path or 'branches'}: cannot {type(self).__name__.lower()} outputs of shapes {outputs}")
        return joined


@dataclass(frozen=True)
class Concat(Branches):
    """Outputs side by side along the channels."""

    def joined(self, first: Shape, *others: Shape) -> Shape | None:
        if any(shape[1:] != first[1:] for shape in others):
            return None
        return (first[0] + sum(shape[0] for shape in others), *first[1:])


@dataclass(frozen=True)
class Add(Branches):
    """The sum of the outputs."""

    def joined(self, first: Shape, *others: Shape) -> Shape | None:
        return first if all(shape == first for shape in others) else None


@dataclass(frozen=True)
class Multiply(Branches):
    """The first output, every channel of it multiplied by the other outputs' one number."""

    def joined(self, first: Shape, *others: Shape) -> Shape | None:
        return first if all(shape == first[:1] for shape in others) else None


@dataclass(frozen=True)
class Auxiliary(Node):
    """A second output that only training has; what follows gets this node's input."""

    node: Node

    def trace(self, shape: Shape, path: str = "") -> Trace:
        for step in self.node.trace(shape, path):
            yield step._replace(auxiliary=True)
        return shape


@dataclass(frozen=True)
class Network:
    """A network: its input, its nodes, and the layer that stands for it where only one is measured.

    Parameters
    ----------
    body : Node
        The whole network.
    representative : str
        The path of the layer with the most multiply-adds among those of the kind the network is known for.
    input_shape : tuple of int
        (channels, height, width) of the images it was published for.
    """

    body: Node
    representative: str
    input_shape: Shape = (3, 224, 224)

    def steps(self) -> list[Step]:
        """Every operation, in the order of execution."""
        return list(self.body.trace(self.input_shape))


# ------------------------------------------------------------------------------- what descriptions are written in


def _children(unnamed: tuple[Node, ...], named: dict[str, Node]) -> tuple[tuple[str, Node], ...]:
    return (*(("", node) for node in unnamed), *named.items())


def seq(*unnamed: Node, **named: Node) -> Sequence:
    """One node after the other."""
    return Sequence(_children(unnamed, named))


def stack(nodes: Iterable[Node]) -> Sequence:
    """One node after the other, named 0, 1, 2 and so on."""
    return Sequence(tuple((str(i), node) for i, node in enumerate(nodes)))


def identity() -> Sequence:
    """Nothing: the output is the input."""
    return seq()


def concat(*unnamed: Node, **named: Node) -> Concat:
    """Branches whose outputs are put side by side along the channels."""
    return Concat(_children(unnamed, named))


def add(*unnamed: Node, **named: Node) -> Add:
    """Branches whose outputs are added."""
    return Add(_children(unnamed, named))


def multiply(*unnamed: Node, **named: Node) -> Multiply:
    """A branch whose channels are multiplied by the numbers that the others give."""
    return Multiply(_children(unnamed, named))


def conv(
    channels: int,
    kernel: int | Sizes,
    stride: int = 1,
    padding: int | None = None,
    *,
    groups: int = 1,
    norm: bool = True,
    bias: bool | None = None,
    activation: str | None = "relu",
) -> Sequence:
    """A convolution, then batch normalisation and an activation if wanted.

    Parameters
    ----------
    channels : int
        Output channels.
    kernel : int or (int, int)
        Height and width of the filters.
    stride : int
        On both axes.
    padding : int, optional
        On all four sides; by default half the kernel, which keeps the size at stride 1.
    groups : int
        Groups of channels.
    norm : bool
        Whether batch normalisation follows.
    bias : bool, optional
        By default, where no normalisation follows that would cancel it.
    activation : str or None
        The non-linearity at the end.
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    pads = tuple((p, p) for p in ((k // 2 if padding is None else padding) for k in size))
    layer = Conv(channels, size, (stride, stride), pads, groups, not norm if bias is None else bias)
    return seq(layer, **({"norm": BatchNorm()} if norm else {}), **_activations(activation))


def separable_conv(channels: int, kernel: int = 3) -> Sequence:
    """A depthwise and then a 1x1 convolution, with nothing between them and batch normalisation after."""
    pad = (kernel // 2, kernel // 2)
    depthwise = Conv(None, (kernel, kernel), padding=(pad, pad), groups=None, bias=False)
    return seq(depthwise=depthwise, pointwise=conv(channels, 1, activation=None))


def linear(features: int, activation: str | None = None) -> Sequence:
    """A fully connected layer and, if wanted, an activation."""
    return seq(Linear(features), **_activations(activation))


def max_pool(kernel: int, stride: int, padding: int = 0, *, ceil_mode: bool = False) -> Pool:
    """Max pooling."""
    return Pool("max_pool2d", (kernel, kernel), (stride, stride), ((padding, padding),) * 2, ceil_mode)


def avg_pool(kernel: int, stride: int, padding: int = 0, *, count_include_pad: bool = True) -> Pool:
    """Average pooling."""
    pads = ((padding, padding),) * 2
    return Pool("avg_pool2d", (kernel, kernel), (stride, stride), pads, count_include_pad=count_include_pad)


def global_avg_pool() -> Sequence:
    """The average of every channel, as a vector."""
    return seq(GlobalAvgPool(), flatten=Flatten())


def relu() -> Activation:
    """The rectifier."""
    return Activation("relu")


def _activations(function: str | None) -> dict[str, Node]:
    return {} if function is None else {function: Activation(function)}
