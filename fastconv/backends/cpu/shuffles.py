"""Vectors interleaved, and dealt: of neighbouring elements each goes to another vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastconv.backends.cpu.simd import Emitter


def interleaved(e: Emitter, vectors: Sequence[Any]) -> list[Any]:
    """Return as many vectors with the first lane of each, then the second of each, and so on."""
    count, lanes = len(vectors), e.lanes
    if count == 1:
        return list(vectors)
    if count % 2 == 0:
        pairs = zip(interleaved(e, vectors[::2]), interleaved(e, vectors[1::2]), strict=True)
        halves = [[lane // 2 + lane % 2 * lanes for lane in range(first, first + lanes)] for first in (0, lanes)]
        return [e.shuffle(a, b, half) for a, b in pairs for half in halves]
    return [
        _gathered(e, vectors, [divmod(place, count)[::-1] for place in range(first, first + lanes)])
        for first in range(0, count * lanes, lanes)
    ]


def dealt(e: Emitter, vectors: Sequence[Any]) -> list[Any]:
    """Undo `interleaved`."""
    count, lanes = len(vectors), e.lanes
    if count == 1:
        return list(vectors)
    if count % 2 == 0:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        even, odd = (dealt(e, [e.shuffle(a, b, range(parity, 2 * lanes, 2)) for a, b in pairs]) for parity in (0, 1))
        return [vector for pair in zip(even, odd, strict=True) for vector in pair]
    return [
        _gathered(e, vectors, [divmod(place, lanes) for place in range(first, count * lanes, count)])
        for first in range(count)
    ]


def _gathered(e: Emitter, vectors: Sequence[Any], places: Sequence[tuple[int, int]]) -> Any:
    """Return a vector whose lanes are at these places of at least two vectors: which vector, which lane of it."""
    value = vectors[0]
    for i, other in enumerate(vectors[1:], 1):
        # The first shuffle takes from two vectors, the later ones keep what is where it belongs.
        kept = [lane if i == 1 else at for at, (_, lane) in enumerate(places)]
        value = e.shuffle(
            value, other, [e.lanes + lane if which == i else k for (which, lane), k in zip(places, kept, strict=True)]
        )
    return value
