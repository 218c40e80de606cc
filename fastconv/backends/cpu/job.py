"""Jobs: the records of integers that say to compiled loops what a problem is, and how one is started.

A record is made once for arrays of certain strides. What changes from call to call are the addresses at its head:
native code sees to it that the arrays lie as they should, copies the record to its stack and fills the addresses in,
since every step in Python takes as long as a small convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import fingerprint, function, inlined
from fastconv.backends.cpu.memory import copy, integer, word
from fastconv.backends.cpu.objects import OBJECT, data_of, strides_of
from fastconv.backends.cpu.registers import LINE
from fastconv.backends.cpu.scratch import address

# What every run fills in: input, packed weight, output, bias, residual, the workers' scratch.
HEAD = ("x", "w", "y", "bias", "residual", "slab")

#: Words of a record, at most.
MOST_WORDS = 128
# Bytes of scratch that a start has room for itself; they begin with a line of the cache.
ROOM = 4096
_SLAB_WORDS = (ROOM + LINE) // 8

# The words of a start: what the job is; what is left of the address of an aligned element; and for x, w, y, bias and
# residual how many strides each must have, -1 if there is no such array, and which.
_LOOPS, _RECORD, _WORDS, _UNITS, _MISALIGNED, _ARRAYS = range(6)
_MOST_AXES = 7
_ARRAY = 1 + _MOST_AXES
# Any stride will do, since there is but one element.
_ANY = -(1 << 62)


def fields_of(table: str, head: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the fields that a table names, one line a kind, what they are behind a bar; those of ``head`` first."""
    names = [name for line in table.strip().splitlines() for name in line.split("|")[0].split()]
    assert len(names) <= MOST_WORDS - len(HEAD)
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


@intrinsic(prefer_literal=True)
def on_stack(typingctx: Any, words: Any) -> Any:
    """Return the address of so many words on the stack."""
    if not isinstance(words, types.IntegerLiteral):
        return None
    count = words.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.IntType(64), ir.Constant(ir.IntType(64), count))
        return builder.ptrtoint(room, ir.IntType(64))

    return types.int64(words), codegen


@intrinsic
def _put(typingctx: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@inlined
def _lies(start, which, array):
    """Whether an array lies as a start expects it to."""
    expected = start + 8 * (_ARRAYS + which * _ARRAY)
    count = integer(expected)
    if count < 0:
        return True
    strides = strides_of(array)
    for axis in range(count):
        wanted = word(expected, 1 + axis)
        if wanted != _ANY and word(strides, axis) != wanted:
            return False
    return data_of(array) & word(start, _MISALIGNED) == 0


@inlined
def _data(start, which, array):
    """Return the address of an array's elements, 0 if there is none."""
    return data_of(array) if word(start, _ARRAYS + which * _ARRAY) >= 0 else 0


@cache
def _doing() -> Any:
    """Return what does a job, compiled when the first one is started: not all algorithms start theirs here."""
    # Numba's disk cache looks at this file and at what is enclosed here, not at the other files that make the code: to
    # start a job by what the board looked like in another version of `threads` would hang.
    sources = fingerprint()

    @function(types.int64(*(types.int64,) * 3, *(OBJECT,) * 5, types.int64, types.int64))
    def do(board, helpers, start, x, w, y, bias, residual, packed, slab):
        if sources == 0 or not (
            _lies(start, 0, x) and (packed or _lies(start, 1, w)) and _lies(start, 2, y)
            and _lies(start, 3, bias) and _lies(start, 4, residual)
        ):  # fmt: skip
            return 0
        job = on_stack(MOST_WORDS)
        copy(job, word(start, _RECORD), 8 * word(start, _WORDS))
        _put(job, 0, _data(start, 0, x))
        _put(job, 1, packed or _data(start, 1, w))
        _put(job, 2, _data(start, 2, y))
        _put(job, 3, _data(start, 3, bias))
        _put(job, 4, _data(start, 4, residual))
        _put(job, 5, slab or on_stack(_SLAB_WORDS) + LINE & -LINE)
        threads.launch(board, word(start, _LOOPS), job, word(start, _UNITS), helpers)
        return 1

    return do


Start: TypeAlias = Callable[[Any, Any, Any, Any, Any, int, int], int]


def start_of(
    loops: int, record: NDArray[np.int64], units: int, workers: int, arrays: tuple[Any, ...], kept: Any = None
) -> Start:
    """Return what does a job on arrays that lie as these do.

    Parameters
    ----------
    loops : int
        Address of the compiled ``task(job, start, stop, worker)``.
    record : array
        The job as integers, those of `HEAD` left open.
    units, workers : int
        As `threads.run` takes them.
    arrays : tuple of array or None
        An input, a weight that is read where it is, an output, a bias and a residual, as far as the job has them.
    kept : any
        Arrays that the record points to.

    Returns
    -------
    callable
        ``start(x, w, y, bias, residual, packed, slab)`` takes such arrays, or any object where there is none;
        ``packed`` is the address of a packed weight, or 0, and ``slab`` that of the workers' scratch, or 0 for `ROOM`
        bytes of its own. It returns 0 without having done anything if the arrays lie otherwise.

    Raises
    ------
    ValueError
        If an array has more axes than native code compares.
    """
    item = next(array.itemsize for array in arrays if array is not None)
    words = [loops, address(record), record.size, units, item - 1]
    for array in arrays:
        expected = [-1]
        if array is not None:
            if array.ndim > _MOST_AXES:
                raise ValueError(f"arrays: have at most {_MOST_AXES} axes, got the shape {array.shape}")
            lengths = zip(array.shape, array.strides, strict=True)
            expected = [array.ndim, *(stride if size > 1 else _ANY for size, stride in lengths)]
        words += expected + [0] * (_ARRAY - len(expected))
    start = np.array(words, np.int64)
    helpers = min(workers, units) - 1
    where = address(start)
    do: partial[int] = partial(_doing(), 0, 0, where) if helpers < 1 else partial(_shared, helpers, where)
    do.keeps = start, record, kept  # type: ignore[attr-defined]
    return do


def _shared(helpers: int, *arguments: Any) -> int:
    """Do a job with the help of other threads, if they are free."""
    board = threads.acquire()
    if board is None:
        return int(_doing()(0, 0, *arguments))
    try:
        return int(_doing()(board.address, min(helpers, board.size), *arguments))
    finally:
        board.lock.release()


def never(*arguments: Any) -> int:
    """Do nothing: what a runner starts with, before it has seen arrays."""
    return 0
