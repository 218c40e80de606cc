"""Running a convolution by Fourier transforms, tile by tile (overlap-save).

Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7. A convolutional layer is a correlation, hence the
conjugate of the weight's transform.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from fastconv import epilogue
from fastconv.backends.cpu.direct.algorithm import Direct
from fastconv.backends.cpu.fft.work import Work
from fastconv.geometry import Axis, source_line


class Packed(NamedTuple):
    """A weight's transforms, (bins, groups, outputs, inputs), and the weight: NaN and infinity are left to others."""

    transformed: Any
    plain: Any


class Runner:
    """Runs one problem on arrays of any strides."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._where = tuple(range(-len(work.axes), 0))
        self._lines = [source_line(axis) for axis in work.axes]

    def pack(self, w: Any) -> Packed:
        """Return the weight's transforms."""
        work, p = self.work, self.work.problem
        spread: Any = np.zeros((p.oc, work.inputs, *(axis.extent(1) for axis in work.axes)))
        spread[(..., *(slice(None, None, axis.dilation) for axis in work.axes))] = w
        if not np.isfinite(spread).all():
            return Packed(None, w)
        bins = np.fft.rfftn(spread, work.lengths, axes=self._where).reshape(p.groups, work.outputs, work.inputs, -1)
        return Packed(np.ascontiguousarray(np.moveaxis(bins, -1, 0).conj()), w)

    def run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        """Compute; see `fastconv.algorithm` for inputs and outputs."""
        p, (x, w, *rest), (y,) = self.work.problem, inputs, outputs
        packed = w if p.prepacked else self.pack(w)
        if packed.transformed is None or not np.isfinite(x).all():
            self._run_plainly((x, packed.plain, *rest), y)
            return
        bias = rest[0] if p.bias != "none" else None
        residual = rest[-1] if p.residual else None
        units = itertools.product(
            range(p.n), range(0, p.groups, self.work.groups), *(range(tiles) for tiles in self.work.tiles)
        )
        if self.work.workers == 1:
            for unit in units:
                self._compute(unit, x, packed.transformed, bias, residual, y)
            return
        with ThreadPoolExecutor(self.work.workers) as pool:
            for done in [pool.submit(self._compute, u, x, packed.transformed, bias, residual, y) for u in units]:
                done.result()

    def _run_plainly(self, inputs: tuple[Any, ...], y: Any) -> None:
        """Sum term by term, by an algorithm that computes in the accumulator's type."""
        p = self.work.problem
        plain = Direct().plan(p.replace(prepacked=False, dtype=p.accumulator))
        wide = tuple(array.astype(p.accumulator, copy=False) for array in inputs)
        result = y if p.dtype == p.accumulator else np.empty(y.shape, p.accumulator)
        plain.run(wide, (result,))
        if result is not y:
            y[...] = result

    def _compute(self, unit: tuple[int, ...], x: Any, w: Any, bias: Any, residual: Any, y: Any) -> None:
        """Compute a tile of an image, for some groups."""
        work, p = self.work, self.work.problem
        image, first, *tile = unit
        groups = slice(first, min(first + work.groups, p.groups))
        count = groups.stop - first
        source = x[image, first * work.inputs : groups.stop * work.inputs]
        bins = np.fft.rfftn(self._read(source, tile), work.lengths, axes=self._where)
        spectrum = np.moveaxis(bins.reshape(count, work.inputs, -1), -1, 0)
        product = np.matmul(w[:, groups], np.ascontiguousarray(spectrum)[..., None])[..., 0]
        shape = (count * work.outputs, *work.lengths[:-1], work.lengths[-1] // 2 + 1)
        values = np.fft.irfftn(np.moveaxis(product, 0, -1).reshape(shape), work.lengths, axes=self._where)
        channels = slice(first * work.outputs, groups.stop * work.outputs)
        targets: list[Any] = [image, channels]
        parts = []
        for axis, length, index in zip(work.axes, work.lengths, tile, strict=True):
            start, stop = self._outputs(axis, length, index)
            targets.append(slice(start, stop))
            parts.append(slice(0, (stop - start - 1) * axis.stride + 1, axis.stride))
        where = tuple(targets)
        result = values[(slice(None), *parts)]
        epilogue.apply(
            p.activation,
            result,
            None if bias is None else bias[channels].reshape(-1, *(1,) * len(tile)),
            None if residual is None else residual[where],
        )
        with np.errstate(over="ignore"):  # narrowed, a large sum is infinite
            y[where] = result

    def _outputs(self, axis: Axis, length: int, index: int) -> tuple[int, int]:
        step = self.work.outputs_of(axis, length)
        return index * step, min((index + 1) * step, axis.out)

    def _read(self, source: Any, tile: list[int]) -> Any:
        """Return what a tile of outputs reads of some channels, padded, in double precision."""
        work = self.work
        lines = []
        for axis, line, length, index in zip(work.axes, self._lines, work.lengths, tile, strict=True):
            start, stop = self._outputs(axis, length, index)
            lines.append(line[start * axis.stride : start * axis.stride + axis.extent(stop - start)])
        kept = [np.flatnonzero(line >= 0) for line in lines]
        read = np.zeros((len(source), *map(len, lines)))
        if all(map(len, kept)):
            channels = np.arange(len(source))
            indices = [line[keep] for line, keep in zip(lines, kept, strict=True)]
            read[np.ix_(channels, *kept)] = source[np.ix_(channels, *indices)]
        return read
