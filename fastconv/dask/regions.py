"""Along one axis: which outputs a block computes, which inputs it reads for that, and in what blocks these lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution or pool, as in `fastconv.problem.ConvProblem`; ``size`` is x's, ``out`` is y's."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    mode: str

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1


class Piece(NamedTuple):
    """A part of a region: elements ``start`` to ``stop`` of a block, turned round or not, put at ``at``.

    A single element may fill more places than one: ``length`` of them.
    """

    at: int
    length: int
    block: int
    start: int
    stop: int
    turned: bool


class Region(NamedTuple):
    """What one block of outputs reads.

    Attributes
    ----------
    start, stop : int
        The outputs.
    first, size : int
        The index of the first input in the region, which has ``size`` of them; padding of zeros is not among them.
    pieces : tuple of Piece
    before, after, extra : int
        Padding of zeros on this region, and output padding.
    """

    start: int
    stop: int
    first: int
    size: int
    pieces: tuple[Piece, ...]
    before: int
    after: int
    extra: int = 0


def conv_regions(axis: Axis, chunks: Sequence[int]) -> list[Region]:
    """Return the regions of a convolution or pool on an axis in chunks.

    A block computes the outputs whose windows have their middle in a chunk, so that blocks stay where they are.
    """
    shift = axis.padding[0] - axis.span // 2
    edges = _edges((-(-(end + shift) // axis.stride) for end in accumulate(chunks)), axis.out)
    return [_conv_region(axis, chunks, start, stop) for start, stop in pairwise(edges)]


def _edges(found: Iterator[int], out: int) -> list[int]:
    """Return where blocks of outputs begin, and where the last ends."""
    inside = {edge for edge in found if 0 < edge < out}
    return [0, *sorted(inside), out]


def _conv_region(axis: Axis, chunks: Sequence[int], start: int, stop: int) -> Region:
    first = start * axis.stride - axis.padding[0]
    end = (stop - 1) * axis.stride - axis.padding[0] + axis.span
    if axis.mode != "zeros":
        found = [_inside(axis.size, first, end), *_PADDED[axis.mode](axis.size, first, end)]
        pieces = [piece for source in found for piece in _split(chunks, *source)]
        return Region(start, stop, first, end - first, tuple(pieces), 0, 0)
    at, _, lo, hi, _ = source = _inside(axis.size, first, end)
    if lo >= hi:  # these windows lie in the padding
        return Region(start, stop, 0, end - first, (), 0, 0)
    # With ``ceil_mode`` the last window hangs over the padding, too: that is not made wider.
    after = min(max(end - axis.size, 0), axis.padding[1])
    return Region(start, stop, lo, hi - lo, tuple(_split(chunks, 0, *source[1:])), at, after)


class _Source(NamedTuple):
    """Elements ``start`` to ``stop`` of the input, for ``length`` places from ``at`` on."""

    at: int
    length: int
    start: int
    stop: int
    turned: bool


def _inside(size: int, first: int, end: int) -> _Source:
    start, stop = max(first, 0), min(end, size)
    return _Source(start - first, stop - start, start, stop, False)


def _padded(
    before: Callable[[int, int, int], tuple[int, int]],
    after: Callable[[int, int, int], tuple[int, int]],
    turned: bool,
    size: int,
    first: int,
    end: int,
) -> list[_Source]:
    """Return what stands in the padding, from the inputs for positions below 0 and for those from ``size`` on."""
    below, above = (first, min(end, 0)), (max(first, size), end)
    return [
        _Source(lo - first, hi - lo, *source(size, lo, hi), turned)
        for source, (lo, hi) in ((before, below), (after, above))
        if lo < hi
    ]


# Which inputs stand at the positions ``lo`` to ``hi`` of the padding.
_PADDED: dict[str, Callable[[int, int, int], list[_Source]]] = {
    "replicate": partial(_padded, lambda size, lo, hi: (0, 1), lambda size, lo, hi: (size - 1, size), False),
    "circular": partial(
        _padded, lambda size, lo, hi: (lo + size, hi + size), lambda size, lo, hi: (lo - size, hi - size), False
    ),
    "reflect": partial(
        _padded,
        lambda size, lo, hi: (1 - hi, 1 - lo),
        lambda size, lo, hi: (2 * size - 1 - hi, 2 * size - 1 - lo),
        True,
    ),
}


def _split(chunks: Sequence[int], at: int, length: int, start: int, stop: int, turned: bool) -> Iterator[Piece]:
    """Cut a source where blocks end."""
    edges = [0, *accumulate(chunks)]
    for block in range(bisect_right(edges, start) - 1, len(chunks)):
        offset = edges[block]
        if offset >= stop:
            break
        lo, hi = max(start, offset), min(stop, edges[block + 1])
        if lo < hi:
            room = length if stop - start == 1 else hi - lo
            yield Piece(at + (stop - hi if turned else lo - start), room, block, lo - offset, hi - offset, turned)


def transposed_regions(axis: Axis, chunks: Sequence[int]) -> list[Region]:
    """Return the regions of a transposed convolution: of dx, which has ``axis.size``, from dy in chunks."""
    shift = (axis.span - axis.stride) // 2 - axis.padding[0]
    edges = _edges((end * axis.stride + shift for end in accumulate(chunks)), axis.size)
    return [_transposed_region(axis, chunks, start, stop) for start, stop in pairwise(edges)]


def _transposed_region(axis: Axis, chunks: Sequence[int], start: int, stop: int) -> Region:
    """Return the dy whose windows reach the elements ``start`` to ``stop`` of dx, and where the rest is cut off."""
    before, reach = axis.padding[0], axis.span - 1
    lo = min(max((start + before - reach) // axis.stride, 0), axis.out - 1)
    hi = max(min((stop - 1 + before) // axis.stride + 1, axis.out), lo + 1)
    end = (hi - 1) * axis.stride - before + axis.span
    cut = start + before - lo * axis.stride
    pieces = tuple(_split(chunks, 0, hi - lo, lo, hi, False))
    return Region(start, stop, lo, hi - lo, pieces, cut, max(end - stop, 0), max(stop - end, 0))
