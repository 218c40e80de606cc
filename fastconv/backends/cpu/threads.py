"""Threads of our own, which never hold the interpreter's lock: native workers that take units of work.

A worker is a compiled function on a POSIX thread. It spins for a moment after its last work, so that the
next layer of a network starts it in a microsecond, and then sleeps on a semaphore. Numba's own layers do not
serve: `workqueue` aborts the process when two Python threads use it at once, GNU OpenMP aborts a forked child.
Here a second Python thread that finds the workers busy computes alone, and a forked child gets new workers.

Where another library has lent its threads (`fastconv.borrowed`), these do the units instead.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastconv import borrowed
from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, function, inlined
from fastconv.machine import available_cores

_I64 = ir.IntType(64)
_LINE = 64  # bytes of a cache line: words that different threads write lie apart

# Rounds of spinning before a worker sleeps: some tens of microseconds.
_PATIENCE = 2000

# The board that caller and workers share: an array of lines, one word used in each.
_OPEN, _ACTIVE, _NEXT, _FUNCTION, _JOB, _UNITS, _CHUNK, _HELPERS, _WAIT, _WORKERS = (i * _LINE for i in range(10))
# From there on two lines a worker: whether it sleeps, and its semaphore.
_ASLEEP, _SEMAPHORE = 0, _LINE
# Or, with a borrowed team: the addresses of its functions.
_PARALLEL, _NUMBER, _MOST = (_WORKERS + i * _LINE for i in range(3))


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def _add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the word at an address, atomically; return what it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _get(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _set(typingctx: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _call_semaphore(typingctx: Any, function: Any, semaphore: Any) -> Any:
    """Call sem_wait or sem_post by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [_I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _call_integer(typingctx: Any, function: Any) -> Any:
    """Call omp_get_thread_num or omp_get_max_threads by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), _I64)

    return types.int64(types.int64), codegen


@intrinsic
def _call_parallel(typingctx: Any, parallel: Any, function: Any, argument: Any, threads: Any) -> Any:
    """Call GOMP_parallel by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I64, i32, i32])
        builder.call(
            builder.inttoptr(args[0], kind.as_pointer()), [args[1], args[2], builder.trunc(args[3], i32), i32(0)]
        )
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), codegen


@intrinsic
def _pause(typingctx: Any) -> Any:
    """Tell the processor that this is a spinning loop."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if builder.module.triple.startswith("x86"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inlined
def _take_units(board, worker):
    function, job = _get(board + _FUNCTION), _get(board + _JOB)
    units, chunk = _get(board + _UNITS), _get(board + _CHUNK)
    start = _add(board + _NEXT, chunk)
    while start < units:
        call(function, (job, start, min(start + chunk, units), worker))
        start = _add(board + _NEXT, chunk)


@callback(types.int64(types.CPointer(types.int64)))
def _work(argument):
    """The life of a worker. ``_OPEN`` holds the number of the job that is open to workers, 0 if none is."""
    board, index = argument[0], argument[1]
    mine = board + _WORKERS + (index - 1) * 2 * _LINE
    done = 0
    while index > 0:  # for ever
        job, spins = _get(board + _OPEN), 0
        while job == 0 or job == done or index > _get(board + _HELPERS):
            spins += 1
            _pause()
            if spins > _PATIENCE:
                _set(mine + _ASLEEP, 1)
                job = _get(board + _OPEN)
                if job == 0 or job == done or index > _get(board + _HELPERS):
                    _call_semaphore(_get(board + _WAIT), mine + _SEMAPHORE)
                _set(mine + _ASLEEP, 0)
                spins = 0
            job = _get(board + _OPEN)
        # Whoever counts as active before the job is seen open is waited for, and so may use it.
        _add(board + _ACTIVE, 1)
        if _get(board + _OPEN) == job:
            _take_units(board, index)
        _add(board + _ACTIVE, -1)
        done = job
    return 0


@function(types.void(*(types.int64,) * 8))
def _launch(board, post, number, function, job, units, chunk, helpers):
    _set(board + _FUNCTION, function)
    _set(board + _JOB, job)
    _set(board + _UNITS, units)
    _set(board + _CHUNK, chunk)
    _set(board + _HELPERS, helpers)
    _set(board + _NEXT, 0)
    _set(board + _OPEN, number)
    for index in range(helpers):
        mine = board + _WORKERS + index * 2 * _LINE
        if _get(mine + _ASLEEP):
            _call_semaphore(post, mine + _SEMAPHORE)
    _take_units(board, 0)
    _set(board + _OPEN, 0)
    while _get(board + _ACTIVE) > 0:
        _pause()


@function(types.void(*(types.int64,) * 3))
def _alone(function, job, units):
    call(function, (job, 0, units, 0))


@callback(types.void(types.int64))
def _share(board):
    """What each thread of a borrowed team does."""
    worker = _call_integer(_get(board + _NUMBER))
    if worker <= _get(board + _HELPERS):
        _take_units(board, worker)


@function(types.void(*(types.int64,) * 7))
def _launch_borrowed(board, share, function, job, units, chunk, helpers):
    _set(board + _FUNCTION, function)
    _set(board + _JOB, job)
    _set(board + _UNITS, units)
    _set(board + _CHUNK, chunk)
    _set(board + _HELPERS, helpers)
    _set(board + _NEXT, 0)
    threads = max(helpers + 1, _call_integer(_get(board + _MOST)))
    _call_parallel(_get(board + _PARALLEL), share, board, threads)


class _Board:
    """The memory that threads share, and who may use it now."""

    size: int  # how many threads help

    def __init__(self, lines: int) -> None:
        # Kept for ever: workers look at it until the process ends.
        self._memory = np.zeros((lines + 1) * _LINE // 8, np.int64)
        address = self._memory.ctypes.data
        self.address = address + -address % _LINE
        self.lock = threading.Lock()

    def write(self, at: int, value: int) -> None:
        """Set a word, before there are threads that look at it."""
        ctypes.c_int64.from_address(self.address + at).value = value


class _Team(_Board):
    """The workers of this process."""

    def __init__(self, workers: int) -> None:
        super().__init__(_WORKERS // _LINE + 2 * workers)
        self._arguments = np.array([[self.address, index + 1] for index in range(workers)], np.int64).reshape(-1, 2)
        library = ctypes.CDLL(None)
        self.post = _address(library, "sem_post")
        self.write(_WAIT, _address(library, "sem_wait"))
        self.size = sum(self._start(library, index) for index in range(workers))
        self.jobs = 0

    def _start(self, library: Any, index: int) -> bool:
        semaphore = self.address + _WORKERS + index * 2 * _LINE + _SEMAPHORE
        library.sem_init(ctypes.c_void_p(semaphore), 0, 0)
        thread = ctypes.c_void_p()
        argument = ctypes.c_void_p(self._arguments[index].ctypes.data)
        failed = library.pthread_create(ctypes.byref(thread), None, ctypes.c_void_p(_work.address), argument)
        if not failed:
            library.pthread_detach(thread)
        return not failed

    def launch(self, function: int, job: int, units: int, chunk: int, helpers: int) -> None:
        """Do all units of a job, with the lock held."""
        self.jobs += 1
        _launch(self.address, self.post, self.jobs, function, job, units, chunk, helpers)


class _Borrowed(_Board):
    """Another library's threads."""

    def __init__(self, team: borrowed.Team) -> None:
        super().__init__(_MOST // _LINE + 1)
        for at, where in zip((_PARALLEL, _NUMBER, _MOST), team, strict=True):
            self.write(at, where)
        self.size = available_cores() - 1

    def launch(self, function: int, job: int, units: int, chunk: int, helpers: int) -> None:
        """Do all units of a job, with the lock held."""
        _launch_borrowed(self.address, _share.address, function, job, units, chunk, helpers)


def _address(library: Any, name: str) -> int:
    value = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert value is not None
    return value


@cache
def _team(process: int, lent: borrowed.Team | None) -> _Team | _Borrowed | None:
    """Return the workers of a process: a forked child's are not its parent's. None where there are no POSIX threads."""
    if lent is not None:
        return _Borrowed(lent)
    if os.name != "posix":
        return None
    return _Team(available_cores() - 1)


def run(function: int, job: int, units: int, threads: int) -> None:
    """Do all units of a job, on as many threads as there are to be had.

    Parameters
    ----------
    function : int
        Address of a compiled ``task(job, start, stop, worker)``; worker is below ``threads``.
    job : int
        What the task is handed first.
    units : int
        Units are independent of one another and may be done in any order.
    threads : int
        The caller's own included. Fewer take part if the workers are busy with another thread's job.
    """
    helpers = min(threads, units) - 1
    team = None
    if helpers > 0:
        process = os.getpid()
        team = _team(process, borrowed.team(process))
    if team is None or not team.size or not team.lock.acquire(blocking=False):
        _alone(function, job, units)
        return
    try:
        helpers = min(helpers, team.size)
        team.launch(function, job, units, max(1, units // (8 * (helpers + 1))), helpers)
    finally:
        team.lock.release()
