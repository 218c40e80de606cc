"""The micro-kernel of pools with long windows, whole maps among them: lanes are neighbouring elements of a window.

Each window is reduced to a vector, and as many vectors as there are lanes are then halved, step by step, to one.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.pool.reduction import Reduction, if_any, pick
from fastconv.backends.cpu.simd import I64, Emitter, literals


@intrinsic(prefer_literal=True)
def pool_window(typingctx, op, vectors, exact, lanes, format, x, apart, many, nd, xd, nh, xh, nw, target, powers):
    """Reduce windows to a vector each, and store these as they are computed; return what `pool_row` does.

    Literal integers: op, vectors (reduced side by side), exact, lanes, format (of an element).

    Values, addresses and strides in bytes: x (the first window's first element), apart (to the next window), many (how
    many windows, at least one), nd and xd, nh and xh (how many depths and rows of each, how far apart), nw (columns,
    which are neighbours, at least one), target, powers (as `Reduction` takes it).
    """
    given = (op, vectors, exact, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nvectors, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, apart, many, nd, xd, nh, xh, nw, target, powers = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        reduction = Reduction(e, nop, False, bool(is_exact), powers)
        span = nvectors * nlanes
        # The last vector is one of those that may not be whole.
        blocks, singles = b.sdiv(b.sub(nw, I64(1)), I64(span)), b.sdiv(b.sub(nw, I64(1)), I64(nlanes))
        singles = b.sub(singles, e.times(blocks, nvectors))
        rest = e.first(b.sub(nw, e.times(e.at(e.times(blocks, nvectors), singles), nlanes)))

        def reduced(count: int, mask: Any, carried: list[Any]) -> list[Any]:
            at, nan, *sums = carried
            values = [reduction.load(e.at(at, v * nlanes * e.bytes), mask) for v in range(count)]
            sums[:count] = [reduction.combine([a], [c])[0] for a, c in zip(sums, values, strict=False)]
            return [e.at(at, count * nlanes * e.bytes), b.or_(nan, reduction.has_nan(values)), *sums]

        def row(at: Any, carried: list[Any]) -> list[Any]:
            state = if_any(e, blocks, [at, *carried], lambda _, c: reduced(nvectors, None, c))
            if nvectors > 1:
                state = if_any(e, singles, state, lambda _, c: reduced(1, None, c))
            return reduced(1, rest, state)[1:]

        def window(_: Any, carried: list[Any]) -> list[Any]:
            first, target, nan = carried

            def plane(d: Any, carried: list[Any]) -> list[Any]:
                at = e.at(first, b.mul(d, xd))
                return if_any(e, nh, carried, lambda h, c: row(e.at(at, b.mul(h, xh)), c))

            nan, *sums = if_any(e, nd, [nan, *reduction.border * nvectors], plane)
            while len(sums) > 1:
                sums = [reduction.combine([a], [c])[0] for a, c in zip(sums[::2], sums[1::2], strict=True)]
            e.wide.store(sums[0], target)
            return [b.add(first, apart), e.at(target, nlanes * e.wide.bytes), nan]

        return e.loop(many, [x, target, I64(0)], window)[2]

    return types.int64(*given, *(types.int64,) * 10), codegen


@intrinsic(prefer_literal=True)
def pool_halves(typingctx, op, exact, lanes, format, lines, factors, y, count, powers):
    """Reduce as many vectors as have lanes to one element each, and store these side by side.

    Literal integers: op, exact, lanes, format (of what is stored).

    Values and addresses: lines (the vectors), factors (of the sums, a vector), y, count (of what is stored), powers (as
    `Reduction` takes it).
    """
    given = (op, exact, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, is_exact, nlanes, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lines, factors, y, count, powers = args[len(known) :]
        e = Emitter(builder, element, nlanes)
        wide, reduction = e.wide, Reduction(e, nop, False, bool(is_exact), powers)
        rows, width = [wide.load(e.at(lines, i * nlanes * wide.bytes)) for i in range(nlanes)], nlanes
        while len(rows) > 1:  # what is left of each row, two rows into one vector
            half = width // 2
            low = [first + i for first in range(0, 2 * nlanes, width) for i in range(half)]
            high = [place + half for place in low]
            pairs = list(zip(rows[::2], rows[1::2], strict=True))
            rows = [reduction.combine([pick(e, pair, low)], [pick(e, pair, high)])[0] for pair in pairs]
            width = half
        result = reduction.finish(rows[0], wide.load(factors) if nop else None, None, None)
        e.store_masked(result, y, e.first(count))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 5), codegen
