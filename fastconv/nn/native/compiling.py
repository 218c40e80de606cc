"""Compiling kernels, and running them on several threads.

A kernel is ``kernel(start, stop, *arguments)`` and does the units of work from start to stop. What a unit is does
not depend on the number of threads, and no two units write to the same place, so results do not depend on it either.

The threads are those of the CPU backend, which know no arguments but an address: what a kernel is given is written
down as integers, and compiled code that depends on the kinds of arguments alone calls the kernel with them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from numbers import Integral
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastconv.backends.cpu import threads
from fastconv.backends.cpu.compiling import callback, fingerprint
from fastconv.backends.cpu.scratch import address
from fastconv.code_files import named_files
from fastconv.machine import machine

# Elements below which handing work to another thread takes longer than the work.
_WORTH_A_THREAD = 1 << 15

# Kinds of arguments: arrays by their element, in how many dimensions, and whether in C order (else A, any); numbers.
_ELEMENTS = {"f": types.float32, "d": types.float64, "l": types.int64, "q": types.int64}
_NUMBERS = {"I": types.int64, "U": types.uint64, "B": types.boolean, "R": types.float64}
_LETTERS = {bool: "B", np.bool_: "B", int: "I", np.int64: "I", np.uint64: "U", float: "R", np.float64: "R"}
_REAL, _BITS = struct.Struct("d"), struct.Struct("Q")


def kernel(*, sums: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a kernel; with ``sums``, loops that add up are vectorised too.

    A compiled kernel is kept on disk where there is a directory for that.
    """
    # NaN and infinity stay what they are: no flag that assumes them away.
    fast = {"reassoc", "contract"} if sums else False

    def decorate(body: Callable[..., Any]) -> Any:
        try:
            with named_files():
                return njit(nogil=True, cache=True, error_model="numpy", fastmath=fast)(body)
        except RuntimeError:  # there is no directory to keep anything in
            return njit(nogil=True, error_model="numpy", fastmath=fast)(body)

    return decorate


def run(kernel: Callable[..., Any], units: int, elements: int, *arguments: Any) -> None:
    """Do all units of a kernel, on as many threads as the options allow if that many elements are worth it.

    Arguments are arrays, integers, truth values and real numbers.
    """
    workers = min(machine().threads(), units, 1 + elements // _WORTH_A_THREAD)
    kinds, words = _written(arguments)
    task, words[0] = _compiled(kernel, kinds)
    job = np.array(words, np.uint64)
    threads.run(task, address(job), units, workers)


def _written(arguments: tuple[Any, ...]) -> tuple[str, list[int]]:
    """Return the kinds of arguments, and the words that they are: the first is left to the kernel's address."""
    kinds, words = "", [0]
    for value in arguments:
        if isinstance(value, np.ndarray):
            order = "C" if value.flags.c_contiguous else "A"
            kinds += f"{value.dtype.char}{value.ndim}{order}"
            words += address(value), *value.shape
            if order == "A":
                words += (stride % 2**64 for stride in value.strides)
        else:
            letter = _LETTERS.get(type(value)) or ("I" if isinstance(value, Integral) else "R")
            kinds += letter
            words.append(_BITS.unpack(_REAL.pack(value))[0] if letter == "R" else int(value) % 2**64)
    return kinds, words


def _types_of(kinds: str) -> list[Any]:
    """Return the types of arguments."""
    found, letters = [], iter(kinds)
    for letter in letters:
        if letter in _NUMBERS:
            found.append(_NUMBERS[letter])
        else:
            found.append(types.Array(_ELEMENTS[letter], int(next(letters)), next(letters)))
    return found


@cache
def _compiled(kernel: Any, kinds: str) -> tuple[int, int]:
    """Return the addresses of the task that calls kernels with arguments of these kinds, and of the kernel for them."""
    signature = (types.int64, types.int64, *_types_of(kinds))
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    # Numba makes a function that other compiled code may call by its address: what its function types are.
    where = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name)
    return _task(kinds).address, where


@cache
def _task(kinds: str) -> Any:
    """Return the ``task(job, start, stop, worker)`` of `threads.run` for kernels with arguments of these kinds."""
    sources = fingerprint()

    @callback(types.void(types.CPointer(types.int64), *(types.int64,) * 3))
    def task(job, start, stop, worker):
        if sources == 0:
            return
        _call(kinds, job, start, stop)

    return task


@intrinsic(prefer_literal=True)
def _call(typingctx: Any, kinds: Any, job: Any, start: Any, stop: Any) -> Any:
    """Call the kernel that a job names with the arguments that stand in it."""
    if not isinstance(kinds, types.StringLiteral):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, job, start, stop = args
        i64, taken = ir.IntType(64), iter(range(1 << 10))

        def word() -> Any:
            return builder.load(builder.gep(job, [i64(next(taken))]))

        def argument(kind: Any) -> Any:
            if isinstance(kind, types.Array):
                count = 1 + kind.ndim * (1 if kind.layout == "C" else 2)
                return _array(context, builder, kind, [word() for _ in range(count)])
            value = word()
            if kind == types.float64:
                return builder.bitcast(value, ir.DoubleType())
            return builder.trunc(value, ir.IntType(1)) if kind == types.boolean else value

        where, kinds_ = word(), _types_of(kinds.literal_value)
        values = [start, stop, *map(argument, kinds_)]
        called = ir.FunctionType(context.get_value_type(types.none), [value.type for value in values])
        builder.call(builder.inttoptr(where, called.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(kinds, job, start, stop), codegen


def _array(context: Any, builder: Any, kind: Any, words: list[Any]) -> Any:
    """Return an array of an address and a shape, and of strides unless it is in C order."""
    where, *sizes = words
    shape, given = sizes[: kind.ndim], sizes[kind.ndim :]
    element = context.get_data_type(kind.dtype)
    item = context.get_abi_sizeof(element)
    strides = [ir.IntType(64)(item)]
    for size in shape[:0:-1]:
        strides.append(builder.mul(strides[-1], size))
    array = context.make_array(kind)(context, builder)
    populate_array(
        array, builder.inttoptr(where, element.as_pointer()), cgutils.pack_array(builder, shape),
        cgutils.pack_array(builder, given or strides[::-1]), ir.IntType(64)(item), None,
    )  # fmt: skip
    return array._getvalue()
