"""The micro-kernel of a max pool's gradient with channels in the lanes: a block of elements, stride by stride.

The elements of a block are read by the same few windows, which are loaded once for all of them.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import Indices, index_type, narrowed
from fastconv.backends.cpu.pool.reduction import if_any
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def route_block(
    typingctx, kernel, stride, index, lanes, format,
    y, yh, yw, indices, jh, jw, rows, columns, row, column, x, xh, xw, height, width, above, before, channels,
):  # fmt: skip
    """Compute a block of ``stride`` by ``stride`` elements of the gradient, in all channels.

    Literal integers: kernel and stride (of rows and columns, the kernel at least as large), index (bytes of one),
    lanes, format (of an element).

    Values, addresses and strides in bytes: y and indices (of the image's first window) with the strides of rows and
    columns, rows and columns (how many windows there are), row and column (of the block: of the last windows that
    read it), x (the image's gradient) with its strides, height and width (of it), above and before (padding),
    channels.
    """
    given = (kernel, stride, index, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nkernel, nstride, size, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _Block(Emitter(builder, element, nlanes), nkernel, nstride, size, args[len(known) :]).emit()
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 18), codegen


class _Block:
    """Emits `route_block`."""

    def __init__(self, e: Emitter, kernel: int, stride: int, size: int, args: Any) -> None:
        self.e, self.b, self.kernel, self.stride = e, e.builder, kernel, stride
        self.stored = Indices(e, size)
        self.reach = range(-(-kernel // stride))  # how many windows back an element is read
        y, yh, yw, indices, jh, jw, rows, columns, row, column, x, xh, xw, height, width, above, before, channels = args
        self.channels, b = channels, self.b
        self.windows, self.codes = {}, {}
        for m in self.reach:
            for q in self.reach:
                h, w = b.sub(row, I64(m)), b.sub(column, I64(q))
                real = b.and_(b.icmp_unsigned("<", h, rows), b.icmp_unsigned("<", w, columns))
                h, w = b.select(real, h, I64(0)), b.select(real, w, I64(0))
                self.windows[m, q] = (
                    e.at(y, b.mul(h, yh), b.mul(w, yw)), e.at(indices, b.mul(h, jh), b.mul(w, jw))
                )  # fmt: skip
                # The index of the window's first element; of a window that there is none of, one that none has.
                first = e.at(b.mul(b.sub(e.times(h, stride), above), width), b.sub(e.times(w, stride), before))
                first = b.select(real, first, I64(-(2 ** (index_type(e).width - 1))))
                for r in range(m * stride, min((m + 1) * stride, kernel)):
                    for c in range(q * stride, min((q + 1) * stride, kernel)):
                        self.codes[r, c] = e.splat(narrowed(e, e.at(first, e.times(width, r), c)))
        self.elements = []
        for r in range(stride):
            for c in range(stride):
                h, w = b.sub(e.at(e.times(row, stride), r), above), b.sub(e.at(e.times(column, stride), c), before)
                inside = b.and_(b.icmp_unsigned("<", h, height), b.icmp_unsigned("<", w, width))
                self.elements.append((r, c, inside, e.at(x, b.mul(h, xh), b.mul(w, xw))))

    def emit(self) -> None:
        e, b = self.e, self.b
        whole = b.sdiv(self.channels, I64(e.lanes))

        def vector(index: Any, _: list[Any]) -> list[Any]:
            self._vector(index, None)
            return []

        if_any(e, whole, [], vector)
        left = b.sub(self.channels, e.times(whole, e.lanes))
        with b.if_then(b.icmp_signed(">", left, I64(0))):
            self._vector(whole, e.first(left))

    def _vector(self, index: Any, mask: Any) -> None:
        """Do a vector of channels, or what the mask leaves of it."""
        e, b, stride = self.e, self.b, self.stride
        step = e.times(index, e.lanes * e.bytes)
        loaded = {}
        for place, (y, indices) in self.windows.items():
            chosen = self.stored.load(e.at(indices, e.times(index, e.lanes * self.stored.bytes)), mask)
            loaded[place] = e.load_masked(e.at(y, step), mask), chosen
        for r, c, inside, x in self.elements:
            total = None
            for (m, q), (value, chosen) in loaded.items():
                tap = r + m * stride, c + q * stride
                if max(tap) >= self.kernel:
                    continue
                here = b.icmp_signed("==", chosen, self.codes[tap])
                # Added where it is the one, and not elsewhere: it may be infinite.
                new = value if total is None else b.fadd(total, value)
                total = b.select(here, new, e.zero if total is None else total)
            with b.if_then(inside, likely=True):
                e.store_masked(total, e.at(x, step), mask)
