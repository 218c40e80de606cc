"""Lines of x woven, so that what a pixel has of its channels lies together: a fraction of a square's transposition."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.formats import computed, size_of
from fastconv.backends.cpu.shuffles import dealt, interleaved
from fastconv.backends.cpu.simd import Emitter, literals

#: Columns further apart are brought together one by one.
MOST_APART = 4


@intrinsic(prefer_literal=True)
def _weave(typingctx, ways, room, gap, lanes, bits, partial, source, step, there, count, target):
    """Weave ``count`` elements, at most ``lanes``, of the first ``there`` of as many lines as there are ways.

    Literal integers besides lanes and bits: ways, room (elements of a pixel, of which the ways are the first), gap
    (from one element of a line to the next), partial (there are fewer elements or lines). Addresses: source, with a
    step in bytes from line to line, and target.
    """
    given = (ways, room, gap, lanes, bits, partial)
    known = literals(*given)
    if known is None:
        return None
    nways, nroom, ngap, nlanes, element, is_partial = known

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, step, there, count, target = args[len(known) :]
        e = Emitter(builder, element, nlanes)
        wide = e.wide
        # Nothing is read behind the last element.
        reach = e.at(e.times(e.at(count, -1), ngap), 1)
        read = [e.first(e.at(reach, -v * nlanes)) if is_partial else None for v in range(ngap)]

        def line(way: int) -> Any:
            masks = read
            if is_partial:
                exists = e.splat(builder.icmp_signed("<", there.type(way), there))
                masks = [builder.and_(mask, exists) for mask in read]
            at = e.at(source, e.times(step, way))
            return dealt(e, [e.load_masked(e.at(at, v * nlanes * e.bytes), mask) for v, mask in enumerate(masks)])[0]

        lines = [line(way) for way in range(nways)] + [e.zero] * (nroom - nways)
        elements = e.times(count, nroom)
        for v, value in enumerate(interleaved(e, lines)):
            mask = wide.first(e.at(elements, -v * nlanes)) if is_partial else None
            wide.store_masked(value, e.at(target, v * nlanes * wide.bytes), mask)
        return context.get_dummy_value()

    return types.void(*given, *(types.int64,) * 5), codegen


@cache
def weaving(ways: int, room: int, gap: int, lanes: int, bits: int) -> Any:
    """Return what is compiled to weave lines of any length.

    Its arguments: source, bytes from line to line, lines that exist (those missing are zeros), elements to be taken of
    each, target.
    """
    size, wide = size_of(bits), size_of(computed(bits))
    sources = fingerprint()

    @callback(types.void(*(types.int64,) * 5))
    def run(source, step, there, count, target):
        if sources == 0:
            return
        # Vectors that are read whole reach beyond the last element that they are read for.
        whole = (count if gap == 1 else count - 1) // lanes if there == ways else 0
        for _ in range(whole):
            _weave(ways, room, gap, lanes, bits, 0, source, step, there, lanes, target)
            source, target = source + lanes * gap * size, target + lanes * room * wide
        for first in range(whole * lanes, count, lanes):
            _weave(ways, room, gap, lanes, bits, 1, source, step, there, min(lanes, count - first), target)
            source, target = source + lanes * gap * size, target + lanes * room * wide

    return run
