"""Running a depthwise convolution that walks down strips: addresses into the record of integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.backends.cpu.depthwise.walked_loops import FIELDS, loops
from fastconv.backends.cpu.depthwise.walked_work import Work
from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address
from fastconv.problem import Sizes


class WalkedRunner(Runner):
    """Runs one problem on arrays whose columns are neighbours, others by way of copies.

    Parameters
    ----------
    work : Work
    backwards : bool, optional
        Whether kernels are read from their last position to the first.
    """

    fields = FIELDS

    def __init__(self, work: Work, backwards: bool = False) -> None:
        super().__init__(work.problem, work.units, work.workers, 0)
        self.work = work
        strip, (_, height, width) = work.strip, work.axes
        form = (strip.planes, strip.vectors, strip.lanes, 8 * work.size, int(work.simd.fma), height.stride)
        self._loops = loops(*form).address
        self._zeros = np.zeros(work.zero_bytes, np.uint8)
        f = {"heights": height.size, "widths": width.size, "oh": height.out, "ow": width.out}
        # Where the first tap is in a channel's weight.
        self._first = (work.taps - 1) * work.size if backwards else 0
        f |= {"wc": work.taps * work.size, "wstep": -work.size if backwards else work.size}
        f |= {"channels": work.problem.ic, "pairs": work.groups}
        f |= {"bands": work.bands, "band": work.band, "before_h": height.before, "before_w": width.before}
        f |= {"far": int(work.far)}
        self._known = f | {"zeros": address(self._zeros), "activation": self.activation}

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as the micro-kernel reads it: as it is, if it is in one piece."""
        rows = ordered(w, self.work.workers, new)
        return Packed(rows, address(rows) + self._first)

    def describe(self, x: Sizes, y: Sizes) -> tuple[dict[str, int], int, Any] | None:
        """See `Runner`."""
        if x[-1] != self.work.size or y[-1] != self.work.size:
            return None
        f = {"xn": x[0], "xc": x[1], "xh": x[3], "yn": y[0], "yk": y[1], "yh": y[3]}
        return self._known | f, self._loops, None
