"""Which taps of a kernel meet the input, at each output position: at the borders, some meet nothing but zeros."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastconv.geometry import Axis


class Borders:
    """The taps that meet the input, along one axis.

    Parameters
    ----------
    axis : Axis

    Attributes
    ----------
    taps : array of int64
        (output positions, 2): the first tap that meets the input, and the one behind the last. Both never grow from
        one position to the next.
    inner : tuple of int
        The first of the positions at which all taps meet it, and the position behind the last.
    """

    def __init__(self, axis: Axis) -> None:
        self._axis = axis
        self.inner = (0, axis.out)
        if axis.mode == "zeros" and not axis.is_inside((0, axis.out)):
            # Windows that begin and that end inside the input.
            first = max(0, -(-axis.before // axis.stride))
            stop = min(axis.out, (axis.size + axis.before - axis.extent(1)) // axis.stride + 1)
            self.inner = (first, stop) if first < stop else (0, 0)

    @cached_property
    def taps(self) -> NDArray[np.int64]:
        axis = self._axis
        # From a window's first element to the input's, and to what is behind its last.
        near = axis.before - np.arange(axis.out, dtype=np.int64) * axis.stride
        found = -(-np.stack((near, near + axis.size), axis=1) // axis.dilation)
        return np.ascontiguousarray(found.clip(0, axis.kernel))

    @property
    def outputs(self) -> NDArray[np.int64]:
        """For each tap the first output position at which it meets the input, and the one behind the last."""
        axis = self._axis
        if self.are_plain:
            return np.array([(0, axis.out)] * axis.kernel, np.int64)
        near = axis.before - np.arange(axis.kernel, dtype=np.int64) * axis.dilation
        found = -(-np.stack((near, near + axis.size), axis=1) // axis.stride)
        return np.ascontiguousarray(found.clip(0, axis.out))

    @property
    def are_plain(self) -> bool:
        """Whether all taps meet the input everywhere."""
        return self.inner == (0, self._axis.out)

    def met(self, together: int) -> float:
        """Return for how many positions it would take as long, if so many neighbours meet what any of them does.

        Positions of the last piece that are in the one before count again, as those of all pieces are one position.
        """
        out = self._axis.out
        pieces = -(-out // together)
        if self.are_plain:
            return float(pieces)
        if together == 1:
            met = np.diff(self.outputs)
        else:
            first = np.minimum(np.arange(pieces) * together, out - together)
            met = self.taps[first, 1] - self.taps[first + together - 1, 0]
        return float(np.maximum(met, 0).sum()) / self._axis.kernel
