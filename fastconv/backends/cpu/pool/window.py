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


@intrinsic(prefer_literal=True)
def pool_whole(typingctx, op, lanes, format, x, stride, planes, size, y, scale, powers, scratch):
    """Reduce up to ``lanes`` runs of neighbouring elements, each to one output; outputs are neighbours.

    Literal integers: op, lanes, format (of an element).

    Values, addresses and strides in bytes: x, stride (from run to run), planes (how many), size (elements of each), y,
    scale (of a factor of the sums), powers (as `Reduction` takes it), scratch (a square of vectors).
    """
    given = (op, lanes, format)
    known = literals(*given)
    if known is None:
        return None
    nop, nlanes, element = known
    chains = 4

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, stride, planes, size, y, scale, powers, scratch = args[len(known) :]
        b, e = builder, Emitter(builder, element, nlanes)
        reduction = Reduction(e, nop, False, True, powers)
        step, line = nlanes * e.bytes, nlanes * e.wide.bytes

        def combine(a: Any, c: Any) -> Any:
            return reduction.combine([a], [c])[0]

        blocks = b.sdiv(size, I64(chains * nlanes))
        left = b.sub(size, e.times(blocks, chains * nlanes))
        ragged = e.first(b.srem(left, I64(nlanes)))

        def block(i: Any, carried: list[Any]) -> list[Any]:
            at, *sums = carried
            sums = [combine(s, reduction.load(e.at(at, c * step))) for c, s in enumerate(sums)]
            return [e.at(at, chains * step), *sums]

        def vector(i: Any, carried: list[Any]) -> list[Any]:
            at, *sums = carried
            return [e.at(at, step), *sums[1:], combine(sums[0], reduction.load(at))]

        def plane(i: Any, carried: list[Any]) -> list[Any]:
            state = [b.add(x, b.mul(i, stride)), *reduction.border * chains]
            state = if_any(e, blocks, state, block)
            vectors = b.sdiv(left, I64(nlanes))
            state = if_any(e, vectors, state, vector)
            at, *sums = state
            sums[0] = combine(sums[0], reduction.load(at, ragged))
            total = combine(combine(sums[0], sums[1]), combine(sums[2], sums[3]))
            e.wide.store(total, e.at(scratch, e.times(i, line)))
            return []

        e.loop(planes, [], plane)
        rows = [e.wide.load(e.at(scratch, i * line)) for i in range(nlanes)]
        # Halve what is left of each row, two rows into one vector.
        width = nlanes
        while len(rows) > 1:
            half = width // 2
            joined = []
            for first, second in zip(rows[::2], rows[1::2], strict=True):
                starts = range(0, nlanes, width)
                low = [s + i for s in starts for i in range(half)]
                low, high = low + [nlanes + i for i in low], [i + half for i in low] + [nlanes + i + half for i in low]
                joined.append(combine(pick(e, (first, second), low), pick(e, (first, second), high)))
            rows, width = joined, half
        result = reduction.finish(rows[0], e.wide.load_splat(scale) if nop else None, None, None)
        e.store_masked(result, y, e.first(planes))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 8), codegen
