"""What every layer is: a forward pass, a backward pass, parameters, and a name for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

from fastconv.arrays import Array, may_overlap
from fastconv.nn import checks
from fastconv.nn.compute import for_array
from fastconv.nn.graph import Graph, Value

if TYPE_CHECKING:
    from typing import Self

Shape: TypeAlias = tuple[int, ...]
"""Of one image: (channels, height, width), or (features,)."""

Distance: TypeAlias = "int | Fraction"
"""In elements of an input, between what neighbours see: a fraction where maps grow."""

Window: TypeAlias = tuple[tuple[int, int], tuple[Distance, Distance]]
"""What an output sees of the input, and how far neighbouring outputs lie apart there."""


class Parameter:
    """A learned array.

    Attributes
    ----------
    value : array
        Optimisers change it in place.
    gradient : array or None
        Of the loss with respect to it, as the last backward pass left it; None before the first.
    version : int
        How often the value has been changed by an optimiser or by loading.
    filters : (shape, axes) or None
        How max-norm sees filters in it: the value in that shape, where these axes are within one filter. By default
        the first axis counts filters. None for what it does not limit: biases, and a normalisation's factors.
    """

    __slots__ = ("filters", "gradient", "value", "version")

    changes: ClassVar[int] = 0
    """How often any parameter has been changed: while it stays, nobody need look at versions."""

    def __init__(
        self, value: Array, filters: tuple[Shape, tuple[int, ...]] | None = None, *, limited: bool = True
    ) -> None:
        self.value = value
        self.version = 0
        self.gradient: Array | None = None
        by_default = (value.shape, tuple(range(1, value.ndim))) if limited and value.ndim > 1 else None
        self.filters = by_default if filters is None else filters

    def note_change(self) -> None:
        """Count that the value has been changed in place."""
        self.version += 1
        Parameter.changes += 1

    def __repr__(self) -> str:
        return f"Parameter{self.value.shape}"


class Layer(ABC):
    """A part of a network.

    In training mode, in which a layer begins, `forward` keeps what `backward` needs, and `backward` uses that up:
    each backward pass belongs to the forward pass before it. It sets the gradients of the parameters; they do not
    add up over several passes. In evaluation mode (`eval`) nothing is kept.

    Attributes
    ----------
    training : bool
        Change it by `train` and `eval`, which reach the layers inside, too.
    """

    # Names of attributes that are arrays and belong to the state, but are not learned.
    buffers: ClassVar[tuple[str, ...]] = ()

    training: bool = True
    _kept: Any = None

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Return the layer's output for a batch."""

    @abstractmethod
    def backward(self, dy: Array, wanted: bool = True) -> Array | None:
        """Carry a gradient back.

        Parameters
        ----------
        dy : array
            The gradient of the loss with respect to the last output.
        wanted : bool
            Whether the gradient with respect to the input is needed; the first layer of a network need not make it.

        Returns
        -------
        array or None
            The gradient with respect to the input.

        Raises
        ------
        RuntimeError
            If no forward pass in training mode came before.
        """

    def backward_onto(self, dy: Array, added: Array) -> Array:
        """Carry a gradient back, and return it with another gradient of the input added, which stays as it is."""
        dx = self.backward(dy)
        assert dx is not None
        if may_overlap(dx, dy) or may_overlap(dx, added):
            return cast("Array", for_array(dx).add(dx, added))
        for_array(dx).accumulate(dx, added)
        return dx

    def __call__(self, x: Array) -> Array:
        return self.forward(x)

    def _keep(self, y: Array, *values: Any) -> None:
        """Keep what `backward` needs, in training mode; y is the output."""
        self._kept = (y.shape, y.dtype, values) if self.training else None

    def _take(self, dy: Array) -> Any:
        """Return what was kept, once, if dy is a gradient for the output."""
        if self._kept is None:
            raise RuntimeError(
                f"backward: {type(self).__name__} has kept nothing; it takes a forward pass in training mode before, "
                f"and a layer that stands in two places of a network keeps only the last"
            )
        shape, dtype, values = self._kept
        checks.alike("dy", dy, shape, dtype)
        self._kept = None
        return values

    # ------------------------------------------------------------------------------------- what is inside

    def children(self) -> dict[str, Layer]:
        """Return the layers inside, by name."""
        return {}

    def named_layers(self, path: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield this layer and all inside, with their paths such as ``block.0.conv``."""
        yield path, self
        for name, child in self.children().items():
            yield from child.named_layers(_joined(path, name))

    def parameters(self) -> dict[str, Parameter]:
        """Return every learned array, by its path such as ``block.0.conv.weight``."""
        return {
            _joined(path, name): value
            for path, layer in self.named_layers()
            for name, value in vars(layer).items()
            if isinstance(value, Parameter)
        }

    def count(self) -> int:
        """Return how many numbers are learned; a parameter that layers share counts once."""
        return sum({id(parameter): parameter.value.size for parameter in self.parameters().values()}.values())

    def state(self) -> dict[str, Array]:
        """Return every learned array and every running statistic, by path: the arrays themselves, no copies."""
        state: dict[str, Array] = {}
        for path, layer in self.named_layers():
            for name, value in vars(layer).items():
                if isinstance(value, Parameter):
                    state[_joined(path, name)] = value.value
                elif name in layer.buffers:
                    state[_joined(path, name)] = value
        return state

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Copy arrays into the layer's, which keep their dtype.

        Raises
        ------
        TypeError, ValueError
            If names are missing or unknown, a value is no array of floating-point numbers, or a shape differs.
            Nothing is changed then.
        """
        own = self.state()
        if own.keys() != state.keys():
            missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ValueError(f"state: missing {missing[:5]}, unknown {unknown[:5]}, of {len(own)} names")
        for name, value in own.items():
            checks.alike(f"state: {name}", state[name], value.shape)
        for name, value in own.items():
            value[...] = state[name]
        for parameter in self.parameters().values():
            parameter.note_change()

    # ------------------------------------------------------------------------------------- what it is set to

    def train(self, mode: bool = True) -> Self:
        """Put this layer and all inside into training mode; return it."""
        for _, layer in self.named_layers():
            layer.training = mode
            layer._kept = None
        return self

    def eval(self) -> Self:
        """Put this layer and all inside into evaluation mode; return it."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put this layer and all inside into evaluation mode for a while, and then each back into its own."""
        modes = [(layer, layer.training) for _, layer in self.named_layers()]
        for layer, _ in modes:
            layer.training = False
        try:
            yield
        finally:
            for layer, mode in modes:
                layer.training = mode

    def convert(self, function: Callable[[Array], Array]) -> Self:
        """Replace every array of the state by what a function makes of it, ``cupy.asarray`` say; return the layer."""
        for _, layer in self.named_layers():
            layer._kept = None
            for name, value in list(vars(layer).items()):
                if isinstance(value, Parameter):
                    value.value, value.gradient = function(value.value), None
                elif name in layer.buffers:
                    setattr(layer, name, function(value))
        return self

    def astype(self, dtype: Any) -> Self:
        """Change the dtype of every array of the state; return the layer."""
        return self.convert(lambda array: array.astype(dtype))

    # ------------------------------------------------------------------------------------- what it does to sizes

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of one image's output for one image's input.

        Raises
        ------
        ValueError
            If the layer does not take such an input.
        """
        return shape

    def macs(self, shape: Shape) -> int:
        """Return the multiply-adds of one image, counted as the textbooks do: of sums of products only."""
        return 0

    def window(self) -> Window | None:
        """Return span and stride of the layer's window, on both axes; None for one that has no window."""
        return None

    def trace(self, graph: Graph, value: Value) -> Value:
        """Write down what evaluation does, for `Inference`."""
        return graph.write("layer", [value], self.output_shape(value.shape[1:]), layer=self)

    def details(self) -> str:
        """Return the settings, for `repr`."""
        return ""

    def __repr__(self) -> str:
        inside = "".join(
            f"\n  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children().items()
        )
        return f"{type(self).__name__}({self.details()}{inside}{chr(10) if inside else ''})"


class Ending(Layer):
    """A layer that can add a residual to its output and apply an activation, in the same pass over memory.

    With a residual, what `backward` is given is the gradient before the activation: whoever brought the residual
    needs that, too. Without, it is the gradient of the output.
    """

    @property
    def fuses(self) -> frozenset[str]:
        """The activations that it can apply."""
        return frozenset()

    @property
    def adds(self) -> bool:
        """Whether it can add a residual."""
        return False

    @abstractmethod
    def forward(self, x: Array, activation: str | None = None, residual: Array | None = None) -> Array:
        """Return the layer's output for a batch, plus the residual, activated."""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
