"""Micro-kernels of pools on other shapes: channels in the lanes, and windows of any shape on a line."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.indices import narrowed
from fastconv.backends.cpu.pool.reduction import Reduction, either, if_any
from fastconv.backends.cpu.simd import I32, I64, Emitter, literals


@intrinsic(prefer_literal=True)
def pool_pixel(
    typingctx, op, vectors, columns, indexed, exact, lanes, format,
    x, nd, xd, nh, xh, nw, xw, flat, flat_d, flat_h, flat_w, y, indices, channels, scale, scales, powers,
):  # fmt: skip
    """Compute one output position in all channels; return what `pool_row` does.

    Literal integers: op, vectors (of channels, done together), columns (of a window; 0 if ``nw``), indexed
    (bytes of an index, 0 for none), exact, lanes, format (of an element).

    Values, addresses and strides in bytes: x (of the window's first element), how many depths, rows and columns it
    has and how far apart they are, flat (index of its first element) and what a step adds to it, y, indices,
    channels, scale and scales (addresses of two factors of the sums, the second may be 0), powers (as `Reduction`
    takes it).
    """
    given = (op, vectors, columns, indexed, exact, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nvectors, ncolumns, is_indexed, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        reduction = Reduction(Emitter(builder, element, nlanes), nop, is_indexed, bool(is_exact), args[-1])
        return _Pixel(reduction, nvectors, ncolumns, args[len(known) : -1]).emit()

    return types.int64(*given, *(types.int64,) * 17), codegen


class _Pixel:
    """Emits `pool_pixel`."""

    def __init__(self, reduction: Reduction, vectors: int, columns: int, args: Any) -> None:
        self.reduction, self.e, self.b = reduction, reduction.e, reduction.e.builder
        self.vectors, self.columns = vectors, columns
        self.x, self.nd, self.xd, self.nh, self.xh, self.nw, self.xw = args[:7]
        self.flat, self.flat_d, self.flat_h, self.flat_w = args[7:11]
        self.y, self.indices, self.channels, self.scale, self.scales = args[11:]

    def emit(self) -> Any:
        e, b, wide = self.e, self.b, self.reduction.wide
        self.factor = None
        if self.reduction.op:
            first = [wide.load_splat(self.scale)]
            self.factor = e.unless_zero(self.scales, first, lambda v: [b.fmul(v[0], wide.load_splat(self.scales))])[0]
        step = self.vectors * e.lanes
        blocks = b.sdiv(self.channels, I64(step))
        left = b.sub(self.channels, e.times(blocks, step))

        def block(_: Any, carried: list[Any]) -> list[Any]:
            x, y, indices, nan = carried
            seen = self._block(x, y, indices, [None] * self.vectors)
            return [
                e.at(x, step * e.bytes),
                e.at(y, step * e.bytes),
                e.at(indices, step * self.reduction.indexed),
                b.or_(nan, seen),
            ]

        x, y, indices, nan = if_any(e, blocks, [self.x, self.y, self.indices, I64(0)], block)

        def rest() -> list[Any]:
            return [self._block(x, y, indices, [e.first(e.at(left, -v * e.lanes)) for v in range(self.vectors)])]

        return b.or_(nan, either(e, b.icmp_signed(">", left, I64(0)), rest, lambda: [I64(0)])[0])

    def _block(self, x: Any, y: Any, indices: Any, masks: list[Any]) -> Any:
        """Compute some vectors of channels, as far as the masks let; return whether a NaN may have been lost."""
        e, reduction = self.e, self.reduction
        width, step = len(reduction.border), e.lanes * e.bytes
        *terms, nan = self._reduced(x, masks)
        for v, mask in enumerate(masks):
            term = terms[v * width : (v + 1) * width]
            term[0] = reduction.finish(term[0], self.factor, None, None)
            reduction.store(term, e.at(y, v * step), e.at(indices, v * e.lanes * reduction.indexed), mask)
        return nan

    def _reduced(self, x: Any, masks: list[Any]) -> list[Any]:
        """Return the terms of vectors of channels, laid flat, and whether one is NaN."""
        e, b, reduction = self.e, self.b, self.reduction
        width, step = len(reduction.border), e.lanes * e.bytes

        def tap(address: Any, index: Any, carried: list[Any]) -> list[Any]:
            *old, nan = carried
            values = [reduction.load(e.at(address, v * step), mask) for v, mask in enumerate(masks)]
            here = [reduction.index(index)] if reduction.indexed else []
            result = []
            for v, value in enumerate(values):
                result += reduction.combine(old[v * width : (v + 1) * width], [value, *here], False)
            return [*result, b.or_(nan, reduction.has_nan(values))]

        def line(address: Any, index: Any, carried: list[Any]) -> list[Any]:
            if not self.columns:
                return if_any(
                    e, self.nw, carried,
                    lambda w, c: tap(e.at(address, b.mul(w, self.xw)), e.at(index, b.mul(w, self.flat_w)), c),
                )  # fmt: skip
            for w in range(self.columns):
                carried = tap(e.at(address, e.times(self.xw, w)), e.at(index, e.times(self.flat_w, w)), carried)
            return carried

        def plane(d: Any, carried: list[Any]) -> list[Any]:
            address, index = e.at(x, b.mul(d, self.xd)), e.at(self.flat, b.mul(d, self.flat_d))
            return if_any(
                e, self.nh, carried,
                lambda h, c: line(e.at(address, b.mul(h, self.xh)), e.at(index, b.mul(h, self.flat_h)), c),
            )  # fmt: skip

        return if_any(e, self.nd, [*reduction.border * len(masks), I64(0)], plane)


def _gather(e: Emitter, addresses: Any, mask: Any, otherwise: Any) -> Any:
    """Return the elements at a vector of addresses, of the type of ``otherwise``, which stands outside the mask."""
    b, kind = e.builder, otherwise.type
    element = kind.element
    pointers = ir.VectorType(element.as_pointer(), e.lanes)
    suffix = f"v{e.lanes}{'i64' if element == I64 else f'f{8 * e.bytes}'}"
    signature = ir.FunctionType(kind, [pointers, I32, mask.type, kind])
    function = cgutils.get_or_insert_function(b.module, signature, f"llvm.masked.gather.{suffix}.v{e.lanes}p0")
    return b.call(function, [b.inttoptr(addresses, pointers), I32(e.bytes), mask, otherwise])


@intrinsic(prefer_literal=True)
def pool_line(
    typingctx, op, indexed, exact, lanes, format,
    line, places, starts, counts, kernel, step, y, indices, count, scale, scales, powers,
):  # fmt: skip
    """Compute ``count`` outputs, at most ``lanes``, from a line of reduced columns; return what `pool_row` does.

    Literal integers: op, indexed (bytes of an index, 0 for none), exact, lanes, format (of the outputs; the
    line is as computed).

    Values, addresses and strides in bytes: line, places (the index of each of its elements), starts and counts (of
    the windows: 64-bit integers, in elements, for all lanes), kernel (the largest count), step (from element to
    element of a window), y, indices, count, scale, scales and powers (as in `pool_row`).
    """
    given = (op, indexed, exact, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, is_indexed, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, places, starts, counts, kernel, step, y, indices, count, scale, scales, powers = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        # Powers are in the line already; the root is still to be taken.
        reduction = Reduction(e, nop, is_indexed, bool(is_exact), powers)
        wide = ir.VectorType(I64, nlanes)
        element_bytes = ir.Constant(wide, [e.wide.bytes] * nlanes)

        def integers(address: Any) -> Any:
            loaded = b.load(b.inttoptr(address, wide.as_pointer()))
            loaded.align = 8
            return loaded

        first, reads = integers(starts), integers(counts)

        def tap(k: Any, carried: list[Any]) -> list[Any]:
            *old, nan = carried
            element_of = b.add(first, e.splat(b.mul(k, step)))
            mask = b.icmp_signed("<", e.splat(k), reads)
            byte = b.add(e.splat(line), b.mul(element_of, element_bytes))
            new = [_gather(e.wide, byte, mask, reduction.border[0])]
            if is_indexed:
                byte = b.add(e.splat(places), b.mul(element_of, ir.Constant(wide, [8] * nlanes)))
                index = _gather(e, byte, mask, ir.Constant(wide, [0] * nlanes))
                new.append(b.select(mask, narrowed(e, index), reduction.border[1]))
            return [*reduction.combine(old, new, False), b.or_(nan, reduction.has_nan(new[:1]))]

        *total, nan = e.loop(kernel, [*reduction.border, I64(0)], tap)
        mask = e.first(count)
        total[0] = reduction.finish(total[0], e.wide.load_splat(scale) if nop else None, scales, mask)
        reduction.store(total, y, indices, mask)
        return nan

    return types.int64(*given, *(types.int64,) * 12), codegen
