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
from numba import types

from fastconv import borrowed
from fastconv.backends.cpu.calling import call
from fastconv.backends.cpu.compiling import callback, fingerprint, function, inlined
from fastconv.backends.cpu.registers import LINE, whole_lines
from fastconv.backends.cpu.shared_words import add, call_integer, get, pause, put, replace
from fastconv.backends.cpu.steering import BYTES, THREAD, addresses, settle, steer_away
from fastconv.machine import available_cores

# Rounds of spinning before a worker sleeps, a fraction of a millisecond: as long as Python takes between two layers.
_PATIENCE = 10000

# The board that caller and workers share, in lines, since words that different threads write lie apart: the number of
# the job that is open to workers, 0 if none is; what the job is, which the caller alone writes; how many workers are
# at it.
_OPEN, _ACTIVE = 0, 2 * LINE
_FUNCTION, _JOB, _UNITS, _CHUNK, _HELPERS, _NUMBER = (LINE + 8 * i for i in range(6))
# What never changes: addresses of functions. Those of a borrowed team are 0 if these are our own workers.
_WAIT, _POST, _PARALLEL, _SHARE, _THREAD, _MOST = (3 * LINE + 8 * i for i in range(6))
_STEERING = 4 * LINE
# From there on some lines for the caller and each worker: the next unit of its portion, whether it sleeps, its
# semaphore, and on which cores it may run.
_WORKERS, _LINES = 5 * LINE, 3 * LINE + whole_lines(BYTES)
_NEXT, _ASLEEP, _SEMAPHORE, _CORES = (LINE * i for i in range(4))
# A worker that sleeps is called once, by whoever finds it sleeping, and wakes up when it was called: so its cores are
# the caller's to change before it is called, and the worker's own after.
_AWAKE, _SLEEPS, _CALLED = range(3)


@inlined
def _take_units(board, worker):
    """Do one's own portion of the units, the same part of every job, and then what others have left of theirs.

    One layer's output is the next one's input: so it lies in the cache of the core that reads it.
    """
    function, job = get(board + _FUNCTION), get(board + _JOB)
    units, chunk, portions = get(board + _UNITS), get(board + _CHUNK), get(board + _HELPERS) + 1
    for turn in range(portions):
        owner = (worker + turn) % portions
        following = board + _WORKERS + owner * _LINES + _NEXT
        stop = units * (owner + 1) // portions
        start = add(following, chunk)
        while start < stop:
            call(function, (job, start, min(start + chunk, stop), worker))
            start = add(following, chunk)


@inlined
def launch(board, function, job, units, helpers):
    """Do all units of a job on a board that `acquire` gave, with so many of its threads or 0 to help."""
    if helpers == 0:
        call(function, (job, 0, units, 0))
        return
    put(board + _FUNCTION, function)
    put(board + _JOB, job)
    put(board + _UNITS, units)
    put(board + _CHUNK, max(1, units // (8 * (helpers + 1))))
    put(board + _HELPERS, helpers)
    for worker in range(helpers + 1):
        put(board + _WORKERS + worker * _LINES + _NEXT, units * worker // (helpers + 1))
    parallel = get(board + _PARALLEL)
    if parallel:
        threads = max(helpers + 1, call_integer(get(board + _MOST), ()))
        call(parallel, (get(board + _SHARE), board, threads, 0))
        return
    number = add(board + _NUMBER, 1) + 1
    put(board + _OPEN, number)
    for index in range(1, helpers + 1):
        mine = board + _WORKERS + index * _LINES
        if get(mine + _ASLEEP) == _SLEEPS and replace(mine + _ASLEEP, _SLEEPS, _CALLED):
            steer_away(board + _STEERING, mine + _CORES)
            call(get(board + _POST), (mine + _SEMAPHORE,))
    _take_units(board, types.int64(0))  # the literal would be a type of its own, and compiled again
    put(board + _OPEN, 0)
    while get(board + _ACTIVE) > 0:
        pause()


# Numba's disk cache looks at this file and at what is enclosed here, not at the other files that make the code: hence
# the fingerprint that each function encloses.


@cache
def _working() -> Any:
    """Return the compiled life of a worker."""
    sources = fingerprint()

    @callback(types.int64(types.CPointer(types.int64)))
    def work(argument):
        if sources == 0:
            return 0
        board, index = argument[0], argument[1]
        mine = board + _WORKERS + index * _LINES
        done = 0
        while index > 0:  # for ever
            job, spins = get(board + _OPEN), 0
            while job == 0 or job == done or index > get(board + _HELPERS):
                spins += 1
                pause()
                if spins > _PATIENCE:
                    put(mine + _ASLEEP, _SLEEPS)
                    job = get(board + _OPEN)
                    idle = job == 0 or job == done or index > get(board + _HELPERS)
                    if idle or not replace(mine + _ASLEEP, _SLEEPS, _AWAKE):
                        while call_integer(get(board + _WAIT), (mine + _SEMAPHORE,)) != 0:
                            pass  # a signal came, and no call
                        settle(board + _STEERING, mine + _CORES)
                        put(mine + _ASLEEP, _AWAKE)
                    spins = 0
                job = get(board + _OPEN)
            # Whoever counts as active before the job is seen open is waited for, and so may use it.
            add(board + _ACTIVE, 1)
            if get(board + _OPEN) == job:
                _take_units(board, index)
            add(board + _ACTIVE, -1)
            done = job
        return 0

    return work


@cache
def _sharing() -> Any:
    """Return what each thread of a borrowed team does, compiled."""
    sources = fingerprint()

    @callback(types.void(types.int64))
    def share(board):
        if sources == 0:
            return
        worker = call_integer(get(board + _THREAD), ())
        if worker <= get(board + _HELPERS):
            _take_units(board, worker)

    return share


def _running() -> Any:
    sources = fingerprint()

    @function(types.void(*(types.int64,) * 5))
    def run(board, function, job, units, helpers):
        if sources == 0:
            return
        launch(board, function, job, units, helpers)

    return run


_run = _running()


class Board:
    """The memory that threads share, and who may use it now.

    Attributes
    ----------
    address : int
    size : int
        How many threads help.
    lock : Lock
    """

    def __init__(self, workers: int) -> None:
        # Kept for ever: workers look at it until the process ends.
        self._memory = np.zeros((_WORKERS + (workers + 1) * _LINES + LINE) // 8, np.int64)
        address = self._memory.ctypes.data
        self.address = address + -address % LINE
        self.size = 0
        self.lock = threading.Lock()

    def _write(self, values: dict[int, int]) -> None:
        """Set words, by their place on the board, before there are threads that look at them."""
        for at, value in values.items():
            ctypes.c_int64.from_address(self.address + at).value = value


class _Own(Board):
    """The workers of this process."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._arguments = np.array([[self.address, index] for index in range(workers + 1)], np.int64)
        library = ctypes.CDLL(None)
        self._write({_WAIT: _address(library, "sem_wait"), _POST: _address(library, "sem_post")})
        self._write({_STEERING + 8 * i: address for i, address in enumerate(addresses(library))})
        self.size = sum(self._start(library, index) for index in range(1, workers + 1))

    def _start(self, library: Any, index: int) -> bool:
        mine = self.address + _WORKERS + index * _LINES
        library.sem_init(ctypes.c_void_p(mine + _SEMAPHORE), 0, 0)
        thread = ctypes.c_void_p()
        argument = ctypes.c_void_p(self._arguments[index].ctypes.data)
        failed = library.pthread_create(ctypes.byref(thread), None, ctypes.c_void_p(_working().address), argument)
        if not failed:
            self._write({mine + _CORES + THREAD - self.address: thread.value or 0})
            library.pthread_detach(thread)
        return not failed


class _Borrowed(Board):
    """Another library's threads."""

    def __init__(self, team: borrowed.Team) -> None:
        super().__init__(available_cores() - 1)
        self._write({_PARALLEL: team.parallel, _THREAD: team.number, _MOST: team.most, _SHARE: _sharing().address})
        self.size = available_cores() - 1


def _address(library: Any, name: str) -> int:
    value = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert value is not None
    return value


# None is ever let go: workers look at their board as long as the process lives.
_boards: dict[tuple[int, borrowed.Team | None], Board] = {}
_making = threading.Lock()


def _board(process: int, lent: borrowed.Team | None) -> Board:
    """Return the threads of a process: a forked child's are not its parent's. None help where there are no others."""
    try:
        return _boards[process, lent]
    except KeyError:
        pass
    with _making:  # two threads that began at once would each start workers
        if (process, lent) not in _boards:
            _boards[process, lent] = _made(lent)
        return _boards[process, lent]


def _made(lent: borrowed.Team | None) -> Board:
    if lent is not None:
        return _Borrowed(lent)
    return _Own(available_cores() - 1) if os.name == "posix" else Board(0)


def _after_fork() -> None:
    """In a child, where only the thread that forked lives on: nobody is left to release a lock."""
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def acquire() -> Board | None:
    """Return what `launch` needs, with its lock held; None if the threads are busy with another thread's job."""
    process = os.getpid()
    board = _board(process, borrowed.team(process))
    return board if board.lock.acquire(blocking=False) else None


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
    board = acquire() if helpers > 0 else None
    if board is None:
        _run(0, function, job, units, 0)
        return
    try:
        _run(board.address, function, job, units, min(helpers, board.size))
    finally:
        board.lock.release()
