"""Rows of windows, reduced as whole vectors: the first step of pools whose lanes are columns."""

from __future__ import annotations

from typing import Any

from fastconv.backends.cpu.pool.reduction import Reduction, if_any
from fastconv.backends.cpu.simd import I64


class Lines:
    """Emits a reduction over the rows that a window reads.

    Parameters
    ----------
    reduction : Reduction
    rows : int
        How many there are, 0 if that is ``nd`` times ``nh``.
    x, flat : value
        Address of the first row, and index of its first element.
    nd, xd, flat_d, nh, xh, flat_h : value
        How many depths and rows there are, and what one adds to the address and to the index.
    """

    def __init__(
        self, reduction: Reduction, rows: int,
        x: Any, nd: Any, xd: Any, nh: Any, xh: Any, flat: Any, flat_d: Any, flat_h: Any,
    ) -> None:  # fmt: skip
        self.reduction, self.e, self.b, self.rows = reduction, reduction.e, reduction.e.builder, rows
        self.x, self.nd, self.xd, self.nh, self.xh = x, nd, xd, nh, xh
        self.flat, self.flat_d, self.flat_h = flat, flat_d, flat_h

    def reduced(self, first: Any, masks: list[Any]) -> list[Any]:
        """Return the terms of vectors of columns from ``first`` on, one a mask, laid flat, and whether one is NaN."""
        e, b, reduction = self.e, self.b, self.reduction
        at = e.at(self.x, e.times(first, e.bytes))
        loaded: list[Any] = []

        def row(address: Any, flat: Any) -> list[list[Any]]:
            terms = []
            for v, mask in enumerate(masks):
                value = reduction.load(e.at(address, v * e.lanes * e.bytes), mask)
                loaded.append(value)
                terms.append([value])
                if reduction.indexed:
                    lane = reduction.constant(range(v * e.lanes, (v + 1) * e.lanes))
                    index = b.add(reduction.index(b.add(flat, first)), lane)
                    terms[-1].append(index if mask is None else b.select(mask, index, reduction.border[1]))
            return terms

        if self.rows:
            terms = row(at, self.flat)
            for r in range(1, self.rows):
                below = row(e.at(at, e.times(self.xh, r)), e.at(self.flat, e.times(self.flat_h, r)))
                terms = [reduction.combine(a, c) for a, c in zip(terms, below, strict=True)]
            return [*(part for term in terms for part in term), reduction.has_nan(loaded)]
        width = len(reduction.border)

        def plane(d: Any, carried: list[Any]) -> list[Any]:
            def line(h: Any, carried: list[Any]) -> list[Any]:
                *flat, nan = carried
                loaded.clear()
                address = e.at(at, b.mul(d, self.xd), b.mul(h, self.xh))
                new = row(address, e.at(self.flat, b.mul(d, self.flat_d), b.mul(h, self.flat_h)))
                old = [flat[i : i + width] for i in range(0, len(flat), width)]
                terms = [reduction.combine(a, c, False) for a, c in zip(old, new, strict=True)]
                return [*(part for term in terms for part in term), b.or_(nan, reduction.has_nan(loaded))]

            return if_any(e, self.nh, carried, line)

        return if_any(e, self.nd, [*reduction.border * len(masks), I64(0)], plane)
