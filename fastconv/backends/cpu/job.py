"""Jobs: the records of integers that say to compiled loops what a problem is, and how one is started.

A record is made once for arrays of certain strides. What changes from call to call are the addresses at its head:
native code copies the record to its stack and fills them in, since every step in Python takes as long as a small
convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import fingerprint, function, inlined
from fastconv.backends.cpu.memory import copy, integer
from fastconv.backends.cpu.scratch import DATA

# What every run fills in: input, packed weight, output, bias, residual, the workers' scratch.
HEAD = ("x", "w", "y", "bias", "residual", "slab")

_MOST_WORDS = 128


def fields_of(table: str, head: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the fields that a table names, one line a kind, what they are behind a bar; those of ``head`` first."""
    names = [name for line in table.strip().splitlines() for name in line.split("|")[0].split()]
    assert len(names) <= _MOST_WORDS - len(HEAD)
    return (*head, *(name for name in names if name not in head))


def job_type(fields: tuple[str, ...]) -> np.dtype[Any]:
    """Return the type of a record with these fields, for compiled loops."""
    return np.dtype([(name, np.int64) for name in fields])


def record_of(fields: tuple[str, ...], values: Mapping[str, int]) -> NDArray[np.int64]:
    """Return a record as an array of integers, which NumPy copies and changes much faster; a field not given is 0.

    Raises
    ------
    KeyError
        If there is no such field as one that is given.
    """
    unknown = values.keys() - set(fields)
    if unknown:
        raise KeyError(f"values: no fields {sorted(unknown)}; there are {fields}")
    return np.array([values.get(name, 0) for name in fields], np.int64)


def task_type(job: np.dtype[Any]) -> Any:
    """Return the signature of compiled loops ``task(job, start, stop, worker)``, as `threads.run` calls them."""
    return types.void(types.CPointer(from_dtype(job)), types.int64, types.int64, types.int64)


@intrinsic
def on_stack(typingctx: Any) -> Any:
    """Return the address of as many words on the stack as a record has at most."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.IntType(64), ir.Constant(ir.IntType(64), _MOST_WORDS))
        return builder.ptrtoint(room, ir.IntType(64))

    return types.int64(), codegen


@intrinsic
def _put(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@inlined
def _data(array):
    """Return the address that an array object, of this address or none, holds."""
    return integer(array + DATA) if array else 0


@inlined
def _fill(job, x, w, y, bias, residual, slab):
    _put(job, 0, _data(x))
    _put(job, 1, w)
    _put(job, 2, _data(y))
    _put(job, 3, _data(bias))
    _put(job, 4, _data(residual))
    _put(job, 5, slab)


def _doing() -> Any:
    # Numba's disk cache looks at this file and at what is enclosed here, not at the other files that make the code: to
    # start a job by what the board looked like in another version of `threads` would hang.
    sources = fingerprint()

    @function(types.void(*(types.int64,) * 12))
    def do(board, helpers, loops, record, words, units, x, w, y, bias, residual, slab):
        if sources == 0:
            return
        job = on_stack()
        copy(job, record, 8 * words)
        _fill(job, x, w, y, bias, residual, slab)
        threads.launch(board, loops, job, units, helpers)

    return do


_do = _doing()


def start(
    loops: int, record: Any, where: int, units: int, workers: int,
    x: Any, w: int, y: Any, bias: Any, residual: Any, slab: int,
) -> None:  # fmt: skip
    """Do a job on arrays.

    Parameters
    ----------
    loops : int
        Address of the compiled ``task(job, start, stop, worker)``.
    record : array
        The job as integers, those of `HEAD` left open.
    where : int
        The record's address.
    units, workers : int
        As `threads.run` takes them.
    x, y : array
    w : int
        Address of the packed weight.
    bias, residual : array or None
    slab : int
        Address of the workers' scratch.
    """
    head = (
        id(x), w, id(y),
        0 if bias is None else id(bias), 0 if residual is None else id(residual), slab,
    )  # fmt: skip
    helpers = min(workers, units) - 1
    board = threads.acquire() if helpers > 0 else None
    if board is None:
        _do(0, 0, loops, where, record.size, units, *head)
        return
    try:
        _do(board.address, min(helpers, board.size), loops, where, record.size, units, *head)
    finally:
        board.lock.release()
