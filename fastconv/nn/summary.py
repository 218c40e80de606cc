"""A network as a table: what each layer makes, holds, costs and sees."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastconv import arguments
from fastconv.nn.containers import Auxiliary, Concat, Gate, Residual, Sequential
from fastconv.nn.layer import Distance, Layer, Shape
from fastconv.nn.normalisation import RowNorm
from fastconv.nn.pools import GlobalAvgPool
from fastconv.nn.shapes import Flatten
from fastconv.nn.weighted import Linear


class Field(NamedTuple):
    """A receptive field: its height and width in pixels of the input, and how far neighbours' fields lie apart.

    Behind a transposed convolution these are fractions: several outputs share an input.
    """

    size: tuple[Distance, Distance] = (1, 1)
    step: tuple[Distance, Distance] = (1, 1)


class Row(NamedTuple):
    """One layer, or what a container makes of the outputs of those inside: a sum, a product, a concatenation.

    Attributes
    ----------
    path, kind : str
    output : tuple of int
        Of one image.
    parameters : int
        Learned numbers.
    macs : int
        Multiply-adds for one image.
    memory : int
        Bytes of one image's output.
    field : tuple of int or None
        Height and width of the part of the input that one output sees, ``1 + sum of (k - 1) * earlier strides``; None
        for all of it.
    """

    path: str
    kind: str
    output: Shape
    parameters: int
    macs: int
    memory: int
    field: tuple[int, int] | None

    @property
    def flops(self) -> int:
        """Operations for one image: a multiplication and an addition for each multiply-add."""
        return 2 * self.macs


class Summary(NamedTuple):
    """The layers of a network; prints as a table."""

    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """All learned numbers."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """All multiply-adds for one image."""
        return sum(row.macs for row in self.rows)

    @property
    def flops(self) -> int:
        """All operations for one image."""
        return 2 * self.macs

    @property
    def memory(self) -> int:
        """Bytes of all outputs of one image: what a backward pass may have to keep."""
        return sum(row.memory for row in self.rows)

    def __str__(self) -> str:
        table = [("layer", "kind", "output", "parameters", "multiply-adds", "FLOPs", "memory", "sees")]
        table += [
            (
                row.path,
                row.kind,
                "x".join(map(str, row.output)),
                f"{row.parameters:,}",
                f"{row.macs:,}",
                f"{row.flops:,}",
                _bytes(row.memory),
                "all" if row.field is None else "x".join(map(str, row.field)),
            )
            for row in self.rows
        ]
        totals = f"{self.parameters:,}", f"{self.macs:,}", f"{self.flops:,}"
        table.append(("total", "", "", *totals, _bytes(self.memory), ""))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        return "\n".join(lines)


def summary(network: Layer, input_shape: Shape) -> Summary:
    """Return what each layer of a network makes, holds, costs and sees.

    Parameters
    ----------
    network : Layer
    input_shape : tuple of int
        Of one image: (channels, height, width).

    Returns
    -------
    Summary
        Data that prints as a table; auxiliary classifiers are in it.

    Raises
    ------
    ValueError
        If a layer does not take what it would get.
    """
    first = next(iter(network.state().values()), None)
    itemsize = 4 if first is None else first.dtype.itemsize
    shape = arguments.shape("input_shape", input_shape)
    return Summary(tuple(_Walker(itemsize).layer(network, "", shape, Field())[0]))


class _Walker:
    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize

    def layer(
        self, layer: Layer, path: str, shape: Shape, field: Field | None
    ) -> tuple[list[Row], Shape, Field | None]:
        """Return a layer's rows, the shape of its output, and what an output sees."""
        inside = layer.children()
        if isinstance(layer, Sequential):
            rows: list[Row] = []
            for name, child in inside.items():
                more, shape, field = self.layer(child, _joined(path, name), shape, field)
                rows += more
            return rows, shape, field
        if isinstance(layer, Residual | Concat | Gate | Auxiliary):
            branches = [self.layer(child, _joined(path, name), shape, field) for name, child in inside.items()]
            rows = [row for more, _, _ in branches for row in more]
            if isinstance(layer, Auxiliary):
                return rows, shape, field
            result, after = layer.output_shape(shape), _widest([after for _, _, after in branches])
            return [*rows, self._row(layer, path, result, 0, 0, after)], result, after
        result, after = layer.output_shape(shape), _seen(layer, shape, field)
        # What is learned inside, too: a container of the user's own is one row.
        return [self._row(layer, path, result, layer.count(), layer.macs(shape), after)], result, after

    def _row(self, layer: Layer, path: str, result: Shape, learned: int, macs: int, field: Field | None) -> Row:
        seen = None if field is None else (math.ceil(field.size[0]), math.ceil(field.size[1]))
        return Row(path, type(layer).__name__, result, learned, macs, math.prod(result) * self.itemsize, seen)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _seen(layer: Layer, shape: Shape, field: Field | None) -> Field | None:
    """Return what an output of a layer sees, given what an input sees."""
    window = layer.window()
    whole = isinstance(layer, GlobalAvgPool | Flatten | RowNorm) and math.prod(shape[1:]) > 1
    if field is None or whole or isinstance(layer, Linear):
        return None
    if window is None:
        return field
    (kh, kw), (sh, sw) = window
    (h, w), (dh, dw) = field
    return Field((h + (kh - 1) * dh, w + (kw - 1) * dw), (dh * sh, dw * sw))


def _widest(fields: list[Field | None]) -> Field | None:
    if any(field is None for field in fields):
        return None
    sizes, steps = zip(*(field for field in fields if field is not None), strict=True)
    return Field((max(h for h, _ in sizes), max(w for _, w in sizes)), steps[0])


def _bytes(size: int) -> str:
    power = min(3, max(size, 1).bit_length() // 10)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
