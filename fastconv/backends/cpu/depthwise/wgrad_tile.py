"""The micro-kernel of the depthwise weight gradient: sums of a column of kernel positions, a vector each."""

from __future__ import annotations

import itertools
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.depthwise.tile import Window, in_order
from fastconv.backends.cpu.simd import I64, Emitter, literals

# The values that `wgrad_tile` is given, in order.
_VALUES = "x xd xh xw depth row col depths heights widths spread down zeros dy dyh left rounds sums"


@intrinsic(prefer_literal=True)
def wgrad_tile(
    typingctx, rows, lanes, bits, fused, height, cols, stride, phases,
    x, xd, xh, xw, depth, row, col, depths, heights, widths, spread, down, zeros, dy, dyh, left, rounds, sums,
):  # fmt: skip
    """Add what ``rounds`` times ``rows`` output rows of one vector give to ``height`` times ``cols`` kernel positions.

    Literal integers: as those of `depthwise_tile`. Values: x to widths, down and zeros as there, for the first output
    row and this kernel column; dy and its row's stride; left (columns of dy that there are); rounds (at least one);
    sums (address of a vector for each kernel position, by column and row).
    """
    given = (rows, lanes, bits, fused, height, cols, stride, phases)
    known = literals(*given)
    if known is None:
        return None
    nrows, width, element, has_fma, nheight, ncols, step, nphases = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = dict(zip(_VALUES.split(), args[len(known) :], strict=True))
        e = Emitter(builder, element, width, bool(has_fma))
        window = Window(e, last=False, edge=True, vectors=1, phases=nphases, values=v)
        read, down = (nrows, v["down"]) if nheight == 1 else ((nrows - 1) * step + nheight, I64(1))
        # Beyond the last column nothing is multiplied: zero times infinity would be NaN.
        columns = [e.first(e.at(e.times(v["left"], nphases), -i * width)) for i in range(nphases)]
        masks = [[builder.and_(m, c) for m, c in zip(window.masks(I64(s)), columns, strict=True)] for s in range(ncols)]
        cells = ncols * nheight
        # Sums of a kernel position that are kept apart, so that a multiply-add need not wait for the one before.
        chains = 1 if cells > 4 else 2
        there = e.first(v["left"])

        def block(index: Any, values: list[Any]) -> list[Any]:
            row, dy, *totals = values
            found = window.rows(v["depth"], row, read, down)
            gradients = [e.load_masked(e.at(dy, e.times(v["dyh"], r)), there) for r in range(nrows)]
            for (i, address), s in itertools.product(enumerate(found), range(ncols)):
                loaded = window.load(address, e.times(v["spread"], s * e.bytes), 0, masks[s])
                changed = []
                for k in range(nheight):
                    r = (i - k) // step if nheight > 1 else i
                    if 0 <= r < nrows and (nheight == 1 or (i - k) % step == 0):
                        at = (s * nheight + k) * chains + r % chains
                        totals[at] = e.fma(loaded, gradients[r], totals[at])
                        changed.append(at)
                for at, value in zip(changed, in_order(e, [totals[at] for at in changed]), strict=True):
                    totals[at] = value
            return [e.at(row, e.times(v["down"], nrows)), e.at(dy, e.times(v["dyh"], nrows)), *totals]

        start = [e.load(e.at(v["sums"], c * width * e.bytes)) for c in range(cells)]
        totals = [start[c] if chain == 0 else e.zero for c in range(cells) for chain in range(chains)]
        totals = e.loop(v["rounds"], [v["row"], v["dy"], *totals], block)[2:]
        for c in range(cells):
            total = totals[c * chains]
            for chain in range(1, chains):
                total = builder.fadd(total, totals[c * chains + chain])
            e.store(total, e.at(v["sums"], c * width * e.bytes))
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * len(_VALUES.split())), codegen


@intrinsic(prefer_literal=True)
def add_lanes(typingctx, lanes, bits, source, target):
    """Store the sum of a vector's lanes, in pairs of halves."""
    known = literals(lanes, bits)
    if known is None:
        return None
    width, element = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = Emitter(builder, element, width)
        value, half = e.load(args[2]), width // 2
        while half:
            value = builder.fadd(value, e.shuffle(value, value, [(lane + half) % width for lane in range(width)]))
            half //= 2
        stored = builder.store(builder.extract_element(value, I64(0)), builder.inttoptr(args[3], e.scalar.as_pointer()))
        stored.align = e.bytes
        return context.get_dummy_value()

    return types.void(lanes, bits, types.int64, types.int64), codegen
