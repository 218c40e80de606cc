"""Running forward convolutions of one tap that read the weight where it is, as it was made or transposed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from fastconv.backends.cpu.ordering import ordered
from fastconv.backends.cpu.runner import Packed, Runner, fresh
from fastconv.backends.cpu.scratch import address


class InPlace(Runner):
    """Runs one problem. A weight in any other order is copied.

    Attributes
    ----------
    work : ConvWork
        What a runner is made of.
    across : bool
        Whether it takes a weight whose outputs lie together, and not its inputs.
    """

    work: Any
    across: bool
    in_place = True

    @cached_property
    def _transposed(self) -> Runner:
        make: Callable[..., Runner] = type(self)
        return make(self.work, across=True)

    def _run_otherwise(self, inputs: tuple[Any, ...], y: Any, packed: Any, slab: int) -> None:
        """A weight that was transposed is read as it is, too, unless it was packed."""
        if self.across or self._prepacked or not _is_transposed(inputs[1]):
            super()._run_otherwise(inputs, y, packed, slab)
        else:
            self._transposed.run(inputs, (y,))

    def pack(self, w: Any, new: Callable[[int], Any] = fresh) -> Packed:
        """Return the weight as it is."""
        # Where outputs lie together, their rows are in the order of terms: inputs, then kernel positions.
        rows = w.transpose(*range(1, w.ndim), 0) if self.across else w
        flags = rows.flags
        if not (flags.c_contiguous and flags.aligned):
            rows = ordered(rows, self._workers, new)
            w = rows.transpose(-1, *range(rows.ndim - 1)) if self.across else rows
        return Packed(w, address(w))


def _is_transposed(w: Any) -> bool:
    """Whether a weight's outputs lie together, input after input."""
    return not w.flags.c_contiguous and bool(w.flags.f_contiguous) and w.shape[1] * w.shape[0] == w.size
