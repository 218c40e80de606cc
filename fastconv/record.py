"""What all problems share: their common fields and the checks of these, short names, hashes, pickles."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from fastconv import arguments
from fastconv.sizes import AXES, Padding, Sizes

Direction: TypeAlias = Literal["fprop", "dgrad", "wgrad", "bgrad"]

LAYOUTS = ("channels_first", "channels_last")
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
# Flat indices of maxima, and the bytes of one.
INDEX_DTYPES = {"int64": 8, "int32": 4, "int16": 2}
ACCUMULATORS = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}
DEVICES = ("cpu", "cuda")

_ADDRESSABLE = 2**47
# What makes an array larger than those that are given.
_EXTENT = ("output_size", "input_size", "padding", "stride", "dilation")
_LETTERS = {
    "i": "input_size",
    "o": "output_size",
    "k": "kernel_size",
    "s": "stride",
    "d": "dilation",
}


class Operand(NamedTuple):
    """One array of a problem.

    ``spatial`` says that the array is a map (N, C, spatial) whose memory order follows ``problem.layout``;
    the others (weights, biases) are C-contiguous when fastconv allocates them.
    """

    name: str
    shape: Sizes
    dtype: str
    spatial: bool


def axes_of(op: str, given: int) -> int:
    """Return how many spatial axes an op has; unfold has as many as it is given."""
    if op == "unfold":
        return given
    return 0 if op == "linear" else int(op[-2])


def stride_follows_kernel(op: str) -> bool:
    """Whether a missing stride means the kernel's size, as in PyTorch's pools."""
    return op.startswith(("max_pool", "avg_pool", "lp_pool"))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What convolution and window problems share. Not instantiated itself."""

    op: str
    direction: Direction
    n: int
    input_size: Sizes
    kernel_size: Sizes = ()
    output_size: Sizes
    stride: Sizes = ()
    padding: Padding = ()
    dilation: Sizes = ()
    dtype: str = "float32"
    layout: str = "channels_first"
    device: str = "cpu"

    OPS: ClassVar[tuple[str, ...]]

    @classmethod
    def fields_of(cls, op: str) -> set[str]:
        """Return the names of the fields that mean something to an op; the others have their defaults."""
        raise NotImplementedError

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self, **choices: Any) -> None:
        """Check what all problems have, and that fields are among their ``choices``."""
        for name, allowed in {
            "op": self.OPS,
            "dtype": DTYPES,
            "layout": LAYOUTS,
            "device": DEVICES,
            "direction": self.directions,
            **choices,
        }.items():
            value = getattr(self, name)
            if not (value is None and None in allowed) and arguments.word(name, value) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}, got {value!r}")
        self._set("n", arguments.integer("n", self.n, 0))
        given = arguments.shape("input_size", self.input_size)
        axes = axes_of(self.op, len(given))
        ones = (1,) * axes
        kernel = arguments.hashable("kernel_size", self.kernel_size)
        self._set("kernel_size", ones if kernel == () and "kernel_size" not in self.fields_of(self.op) else kernel)
        defaults = {
            "stride": self.kernel_size if stride_follows_kernel(self.op) else ones,
            "dilation": ones,
            "padding": ((0, 0),) * axes,
        }
        for name in ("input_size", "kernel_size", *defaults):
            value = arguments.hashable(name, getattr(self, name))
            value = defaults.get(name, value) if value == () else value
            if not isinstance(value, tuple):
                raise TypeError(f"{name}: expected a tuple, got {value!r}")
            if len(value) != axes:
                raise ValueError(f"{name}: {self.op} has {axes} spatial axes, got {value}")
            if name == "padding":
                if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
                    raise TypeError(f"padding: expected pairs (before, after), got {value}")
                value = tuple((arguments.integer(name, p), arguments.integer(name, q)) for p, q in value)
            else:
                value = tuple(arguments.integer(name, entry, 1) for entry in value)
            self._set(name, value)

    def _check_extent(self) -> None:
        for array in self.inputs + self.outputs:
            if math.prod(array.shape) * self.itemsize > _ADDRESSABLE:
                raise ValueError(
                    f"{', '.join(n for n in _EXTENT if n in self.fields_of(self.op))}: {array.name} of shape "
                    f"{array.shape} is more than a process can address"
                )

    def __getattr__(self, name: str) -> Any:
        # `kh` is kernel_size along h, and so on; only reached when ordinary lookup has failed.
        if len(name) == 2 and name[1] in AXES:
            axis = len(self.input_size) - len(AXES) + AXES.index(name[1])
            if axis >= 0:
                if name[0] == "p":
                    before, after = self.padding[axis]
                    if before == after:
                        return before
                    raise AttributeError(f"{name}: padding is asymmetric here: {before}, {after}; read .padding")
                if name[0] in _LETTERS:
                    return getattr(self, _LETTERS[name[0]])[axis]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __hash__(self) -> int:
        # A plan is found by its problem in every call, so the hash is computed once.
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f.name) for f in fields(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Not the cached hash: string hashes differ between processes.
        # By name, so that a field that is new since has its default.
        return partial(type(self), **{f.name: getattr(self, f.name) for f in fields(self) if f.init}), ()

    @property
    def directions(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[Operand, ...]:
        """The arrays that `Plan.run` reads, in order."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[Operand, ...]:
        """The arrays that `Plan.run` writes, in order."""
        raise NotImplementedError

    @property
    def macs(self) -> int:
        """Multiply-adds (convolution) or element visits (windows) of the direct method, padding counted."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 0 (linear) to 3."""
        return len(self.input_size)

    @property
    def accumulator(self) -> str:
        """The dtype in which sums are kept: float32 for the half types."""
        return ACCUMULATORS[self.dtype]

    @cached_property
    def itemsize(self) -> int:
        """Bytes an element of ``dtype``."""
        return DTYPES[self.dtype]

    @property
    def flops(self) -> int:
        """Floating point operations of the direct method: two a multiply-add."""
        return 2 * self.macs

    @cached_property
    def bytes(self) -> int:
        """Bytes that must move at least: every input read once, every output written once."""
        size = {**DTYPES, **INDEX_DTYPES}
        return sum(math.prod(a.shape) * size[a.dtype] for a in self.inputs + self.outputs)

    def replace(self, **changes: Any) -> Any:
        """Return a copy with some fields changed; computed fields are computed anew."""
        return replace(self, **changes)
