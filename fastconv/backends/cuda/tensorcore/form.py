"""The strides of a problem's arrays as `kernels/tensorcore.cu` sees them: what is packed, how results are stored."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

from fastconv.backends.cuda.algorithm import Strides
from fastconv.backends.cuda.geometry import Phase
from fastconv.backends.cuda.tensorcore.packing import (
    CHUNK_BYTES,
    Lines,
    Packing,
    Three,
    packed_map,
    packed_weight,
    three,
)
from fastconv.backends.cuda.tensorcore.product import Product

_MOST_CHUNKS = 2**31


class Map(NamedTuple):
    """The strides of an input or output: image, channel, and three spatial axes."""

    image: int
    channel: int
    axis: Three

    @classmethod
    def of(cls, strides: tuple[int, ...]) -> Map:
        return cls(strides[0], strides[1], three(strides[2:], 0))


class Operand(NamedTuple):
    """One operand of the product: its array, its strides in chunks, and how it is packed, if it is."""

    name: str
    lines: Lines
    packing: Packing | None


class Form:
    """The strides of a problem's arrays, in the kernel's terms."""

    def __init__(self, product: Product, strides: Strides, alignment: int) -> None:
        self.product, self.problem, self.alignment = product, product.problem, alignment
        self.shapes = {o.name: o.shape for o in self.problem.inputs + self.problem.outputs}
        self.strides = dict(zip(self.shapes, strides, strict=True))

    @property
    def packs(self) -> tuple[bool, bool]:
        """Whether the gathered array is packed, and whether the other operand is."""
        return self.gathered.packing is not None, self.matrix.packing is not None

    def _map(self, name: str) -> Map:
        return Map.of(self.strides[name])

    def _size(self, name: str) -> Three:
        return three(self.shapes[name][2:], 1)

    def _in_chunks(self, lines: Lines, shape: tuple[int, ...], channels: int) -> Lines | None:
        found = lines.in_chunks(channels, self.product.count, self.alignment)
        if found is None or not self.reachable(found, shape):
            return None
        return found

    @staticmethod
    def reachable(lines: Lines, shape: tuple[int, ...]) -> bool:
        """Whether 32 bits hold every offset."""
        size = three(shape[2:], 1)
        reach = abs(lines.line) * shape[0] + sum(abs(s) * n for s, n in zip(lines.axis, size, strict=True))
        return reach < _MOST_CHUNKS

    def _packed_map(self, name: str, channels: int) -> Operand:
        source = self._map(name)
        groups, itemsize = self.problem.groups, self.problem.itemsize
        lines = Lines(source.channel * channels, source.image, source.channel, source.axis)
        return Operand(name, *packed_map(self.problem.n, self._size(name), groups, channels, lines, itemsize))

    @cached_property
    def gathered(self) -> Operand:
        name, channels = "dy" if self.problem.direction == "dgrad" else "x", self.product.channels
        source = self._map(name)
        lines = Lines(source.channel * channels, source.image, source.channel, source.axis)
        found = self._in_chunks(lines, self.shapes[name], channels)
        return Operand(name, found, None) if found else self._packed_map(name, channels)

    @cached_property
    def matrix(self) -> Operand:
        return self._positions() if self.product.is_wgrad else self._weight()

    def _positions(self) -> Operand:
        """Of a weight gradient: dy, whose positions follow each other at one distance, over all images."""
        dy, channels = self._map("dy"), self.product.results
        step = even_step((self.problem.n, *self._size("dy")), (dy.image, *dy.axis))
        if step is not None:
            lines = Lines(dy.channel * channels, step, dy.channel, (0, 0, 0))
            found = lines.in_chunks(channels, self.product.count, self.alignment)
            if found and abs(found.line) * self.problem.n * math.prod(self._size("dy")) < _MOST_CHUNKS:
                return Operand("dy", found, None)
        name, lines, packing = self._packed_map("dy", channels)
        return Operand(name, lines._replace(line=lines.axis[2], axis=(0, 0, 0)), packing)

    def _weight(self) -> Operand:
        """Of the other directions: rows are result channels."""
        output, input_, *axis = self.strides["w"]
        problem, product = self.problem, self.product
        taps = three(problem.kernel_size, 1)
        group = output * (problem.oc // problem.groups)
        row, channel = (input_, output) if problem.direction == "dgrad" else (output, input_)
        lines = Lines(group, row, channel, three(axis, 0))
        shape = (product.results, 1, *problem.kernel_size)
        found = self._in_chunks(lines, shape, product.channels)
        if found:
            return Operand("w", found, None)
        return Operand(
            "w", *packed_weight(product.results, taps, problem.groups, product.channels, lines, problem.itemsize)
        )

    # The result, and arrays of its shape.

    @property
    def result(self) -> str:
        return {"fprop": "y", "dgrad": "dx", "wgrad": "dw"}[self.problem.direction]

    def strides_like_result(self, name: str) -> tuple[Any, ...]:
        if name not in self.strides:
            return _strides(0, 0, (0, 0, 0))
        if self.product.is_wgrad:
            output, input_, *axis = self.strides[name]
            return _strides(output, input_, three(axis, 0))
        found = self._map(name)
        steps = [s * a.out_step for s, a in zip(found.axis, self.product.phases[0], strict=True)]
        return _strides(found.channel, found.image, steps)

    def phase(self, phase: Phase) -> tuple[Any, ...]:
        tap = sum(a.first_tap * s for a, s in zip(phase, self.matrix.lines.axis, strict=True))
        out, residual = (
            sum(a.first_out * s for a, s in zip(phase, self._map(name).axis, strict=True))
            if name in self.strides and not self.product.is_wgrad
            else 0
            for name in (self.result, "residual")
        )
        return [axis.packed() for axis in phase], 0 if self.product.is_wgrad else tap, out, residual

    @property
    def bias_row(self) -> int:
        return self.strides["bias"][0] if "bias" in self.strides else 0

    @cached_property
    def stores(self) -> tuple[bool, bool]:
        """Whether neighbouring threads store neighbouring positions, rather than channels; whether 16 bytes each."""
        if self.product.is_wgrad:
            return False, False
        names = [name for name in (self.result, "residual") if name in self.strides]
        maps = [self._map(name) for name in names]
        if self.alignment >= CHUNK_BYTES:
            if all(self._channels_in_chunks(m) for m in maps):
                return False, True
            if all(self._positions_in_chunks(m) for m in maps):
                return True, True
        nearest = min((abs(s) for s in maps[0].axis if s), default=0)
        return nearest != 0 and nearest < abs(maps[0].channel), False

    def _channels_in_chunks(self, result: Map) -> bool:
        count = self.product.count
        whole = self.product.results % count == 0 and all(s % count == 0 for s in (result.image, *result.axis))
        return result.channel == 1 and whole

    def _positions_in_chunks(self, result: Map) -> bool:
        count, size = self.product.count, self._size(self.result)
        whole = math.prod(size) % count == 0 and result.image % count == 0 and result.channel % count == 0
        return len(self.product.phases) == 1 and whole and even_step(size, result.axis) == 1

    @property
    def taps_fastest(self) -> bool:
        """Whether a weight gradient's taps lie closer together than its channels."""
        _, channel, *axis = self.strides[self.result]
        nearest = min((abs(s) for s in axis if s), default=0)
        return nearest != 0 and nearest < abs(channel)


def even_step(sizes: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """Return the distance at which entries of several axes follow each other; None if they do not at one distance."""
    step, expected = 0, None
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if expected is None:
            step = expected = stride
        elif stride != expected:
            return None
        expected *= size
    return step


def _strides(row: int, outer: int, axis: Any) -> tuple[Any, ...]:
    return 0, row, outer, tuple(axis), (0, 0, 0)
