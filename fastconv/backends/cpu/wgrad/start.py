"""Starting a weight gradient: chunk by chunk, packing x and dy and then summing, all in one native call."""

from __future__ import annotations

from typing import Any

from numba import types

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import fingerprint, function, inlined
from fastconv.backends.cpu.job import MOST_WORDS, on_stack
from fastconv.backends.cpu.memory import copy, put, word
from fastconv.backends.cpu.wgrad.loops import FIELDS

# The addresses that every run fills in stand first.
_ADDRESSES = ("x", "slab", "dy", "dw", "panel", "sums")
assert FIELDS[: len(_ADDRESSES)] == _ADDRESSES

_STEPS = tuple(
    (FIELDS.index(loops), FIELDS.index(units))
    for loops, units in (("pack_x", "units_x"), ("pack_dy", "units_dy"), ("sum", "units"), ("merge", "merges"))
)


@inlined
def _move(job, index, address):
    """Let a record's place in an array begin where the array does."""
    put(job + 8 * index, word(job, index) + address)


def _doing() -> Any:
    # The disk cache does not see what other files make of this: see `fastconv.backends.cpu.job`.
    sources = fingerprint()

    @function(types.void(*(types.int64,) * 11))
    def do(board, helpers, records, words, chunks, x, slab, dy, dw, panel, sums):
        if sources == 0:
            return
        job = on_stack(MOST_WORDS)
        for chunk in range(chunks):
            copy(job, records + 8 * words * chunk, 8 * words)
            for index, address in enumerate((x, slab, dy, dw, panel, sums)):
                _move(job, index, address)
            for loops, count in _STEPS:
                units = word(job, count)
                threads.launch(board, word(job, loops), job, units, min(helpers, max(0, units - 1)))

    return do


_do = _doing()


def start(jobs: Any, where: int, workers: int, x: int, slab: int, dy: int, dw: int, panel: int, sums: int) -> None:
    """Do the jobs of all chunks, one after the other.

    Parameters
    ----------
    jobs : array
        The records of the chunks, which say where in each array they begin.
    where : int
        The address of the first.
    workers : int
        As `threads.run` takes them.
    x, slab, dy, dw, panel, sums : int
        Addresses.
    """
    chunks, words = jobs.shape
    board = threads.acquire() if workers > 1 else None
    if board is None:
        _do(0, 0, where, words, chunks, x, slab, dy, dw, panel, sums)
        return
    try:
        _do(board.address, min(workers - 1, board.size), where, words, chunks, x, slab, dy, dw, panel, sums)
    finally:
        board.lock.release()
