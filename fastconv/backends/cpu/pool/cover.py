"""Micro-kernels of the gradients of averages and norms: rows of windows are summed to a line, then its columns.

A window sends the same to all that it reads, so the sum over the windows that read an element is one over their rows,
and then over their columns. What a norm sends is multiplied by a power of the norm first, and by one of the element
in the end.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.formats import FLOAT64
from fastconv.backends.cpu.pool.power import raised
from fastconv.backends.cpu.pool.reduction import either, if_any
from fastconv.backends.cpu.simd import I64, Emitter, literals

# Norms that gradients are of: none (an average), those of exponents 1 and 2, and any other.
NONE, FIRST, SECOND, ANY = range(4)
# Vectors of a line that are summed together.
_TOGETHER = 4


def _exponent(e: Emitter, powers: Any, which: int) -> Any:
    return Emitter(e.builder, FLOAT64, 1).load_scalar(e.at(powers, 8 * which))


def sent(e: Emitter, norm: int, value: Any, root: Any, powers: Any) -> Any:
    """Return what windows of these norms send: nothing where the root has no slope."""
    if norm == SECOND:
        value = e.builder.fdiv(value, root)
    if norm == ANY:
        value = e.builder.fmul(value, raised(e, root, _exponent(e, powers, 0)))
    return e.builder.select(e.builder.fcmp_ordered("==", root, e.zero), e.zero, value)


def received(e: Emitter, norm: int, total: Any, x: Any, powers: Any) -> Any:
    """Return the gradient of elements that are sent a total. What is sent nothing has none, unless it is not finite."""
    b = e.builder
    if norm == SECOND:
        return b.fmul(total, x)
    product = b.fmul(total, raised(e, x, _exponent(e, powers, 1)))
    infinity = ir.Constant(e.vector, [math.inf] * e.lanes)
    finite = b.and_(b.fcmp_ordered("<", x, infinity), b.fcmp_ordered(">", x, b.fsub(e.zero, infinity)))
    return b.select(b.and_(finite, b.fcmp_ordered("==", total, e.zero)), e.zero, product)


@intrinsic(prefer_literal=True)
def weigh_rows(
    typingctx, norm, fused, lanes, format,
    dy, nd, yd, nh, yh, count, scale, scale_d, scales, roots, powers, line,
):  # fmt: skip
    """Sum rows of windows, each times its factor, to a line of elements as they are computed.

    Literal integers: norm, fused (multiply-add exists), lanes, format (of an element).

    Values, addresses and strides in bytes: dy (of the first row), nd and yd, nh and yh (how many rows, how far apart),
    count (elements of a row), scale and scale_d (address of the first row's factor, step to the next depth; those of
    rows are neighbours), scales (of a factor for each column, 0 for none), roots (the norms, as far apart as dy),
    powers (two exponents, doubles: of what is sent, and of what receives it), line.
    """
    given = (norm, fused, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    which, has_fma, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dy, nd, yd, nh, yh, count, scale, scale_d, scales, roots, powers, line = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes, bool(has_fma))
        wide = e.wide

        def block(first: Any, masks: list[Any]) -> None:
            start = e.times(first, e.bytes)

            def row(d: Any, h: Any, sums: list[Any]) -> list[Any]:
                at = e.at(start, b.mul(d, yd), b.mul(h, yh))
                factor = wide.load_splat(e.at(scale, b.mul(d, scale_d), e.times(h, wide.bytes)))
                places = [e.at(at, v * nlanes * e.bytes) for v in range(len(masks))]
                values = [e.load_masked(e.at(dy, place), mask) for place, mask in zip(places, masks, strict=True)]
                if which:
                    norms = [e.load_masked(e.at(roots, place), mask) for place, mask in zip(places, masks, strict=True)]
                    values = [sent(e, which, *pair, powers) for pair in zip(values, norms, strict=True)]
                return [e.fma(value, factor, total) for value, total in zip(values, sums, strict=True)]

            sums = if_any(e, nd, [e.zero] * len(masks), lambda d, sums: if_any(e, nh, sums, lambda h, s: row(d, h, s)))
            columns = [e.at(scales, e.times(e.at(first, v * nlanes), wide.bytes)) for v in range(len(masks))]
            sums = e.unless_zero(
                scales, sums,
                lambda s: [
                    b.fmul(total, wide.load_masked(at, mask))
                    for total, at, mask in zip(s, columns, masks, strict=True)
                ],
            )  # fmt: skip
            for v, (total, mask) in enumerate(zip(sums, masks, strict=True)):
                wide.store_masked(total, e.at(line, e.times(e.at(first, v * nlanes), wide.bytes)), mask)

        def several(i: Any, _: list[Any]) -> list[Any]:
            block(e.times(i, _TOGETHER * nlanes), [None] * _TOGETHER)
            return []

        whole = b.sdiv(count, I64(_TOGETHER * nlanes))
        if_any(e, whole, [], several)
        done = e.times(whole, _TOGETHER * nlanes)

        def one(i: Any, _: list[Any]) -> list[Any]:
            first = e.at(done, e.times(i, nlanes))
            block(first, [e.first(b.sub(count, first))])
            return []

        if_any(e, b.sdiv(b.sub(e.at(count, nlanes - 1), done), I64(nlanes)), [], one)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 12), codegen


@intrinsic(prefer_literal=True)
def cover_columns(
    typingctx, norm, vectors, fused, lanes, format, line, nw, step, scales, channels, dx, x, powers
):  # fmt: skip
    """Compute one element of the gradient, in all channels, from a line of rows' sums.

    Literal integers: norm, vectors (of channels, done together), fused (multiply-add exists), lanes, format (of an
    element).

    Values, addresses and strides in bytes: line (at the first window that reads the element), nw (how many do), step
    (from one to the next), scales (of the first one's factor, 0 for none), channels, dx, x (the element), powers (as
    `weigh_rows` takes it).
    """
    given = (norm, vectors, fused, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    which, nvectors, has_fma, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line, nw, step, scales, channels, dx, x, powers = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes, bool(has_fma))
        wide = e.wide

        def block(first: Any, masks: list[Any]) -> None:
            start = e.at(line, e.times(first, wide.bytes))

            def sums(weights: bool) -> list[Any]:
                def column(w: Any, totals: list[Any]) -> list[Any]:
                    at = e.at(start, b.mul(w, step))
                    values = [wide.load_masked(e.at(at, v * nlanes * wide.bytes), mask) for v, mask in enumerate(masks)]
                    if not weights:
                        return [b.fadd(total, value) for total, value in zip(totals, values, strict=True)]
                    factor = wide.load_splat(e.at(scales, e.times(w, wide.bytes)))
                    return [e.fma(value, factor, total) for total, value in zip(totals, values, strict=True)]

                return if_any(e, nw, [e.zero] * len(masks), column)

            weighted = b.icmp_signed("!=", scales, I64(0))
            totals = either(e, weighted, lambda: sums(True), lambda: sums(False))
            for v, (total, mask) in enumerate(zip(totals, masks, strict=True)):
                place = e.times(e.at(first, v * nlanes), e.bytes)
                if which > FIRST:
                    total = received(e, which, total, e.load_masked(e.at(x, place), mask), powers)
                e.store_masked(total, e.at(dx, place), mask)

        def several(i: Any, _: list[Any]) -> list[Any]:
            block(e.times(i, nvectors * nlanes), [None] * nvectors)
            return []

        whole = b.sdiv(channels, I64(nvectors * nlanes))
        if_any(e, whole, [], several)
        done = e.times(whole, nvectors * nlanes)
        left = b.sub(channels, done)
        with b.if_then(b.icmp_signed(">", left, I64(0))):
            block(done, [e.first(e.at(left, -v * nlanes)) for v in range(nvectors)])
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 8), codegen
