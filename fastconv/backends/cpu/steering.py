"""Which core a sleeping worker wakes up on: not the one that its caller computes on.

Linux wakes a thread on the waker's core if it knows of no idle one, and under a hypervisor it knows of none: a halted
core counts as one that was taken away. On the waker's core the worker waits until the scheduler's slice ends, some
milliseconds in which the caller does all the work alone, beside an idle core. So the caller's core is taken out of
the cores the worker may run on while it wakes up, and given back by the worker once it runs. Where the C library
has no such thing as a thread's cores, nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import Any

from fastconv.backends.cpu.compiling import inlined
from fastconv.backends.cpu.shared_words import call_integer, get, put

# What C functions are needed, in the order of their addresses in memory; 0 if there are none.
FUNCTIONS = ("sched_getcpu", "pthread_getaffinity_np", "pthread_setaffinity_np")
_CORE, _GET, _SET = (8 * i for i in range(len(FUNCTIONS)))

# What is kept of each worker: its thread, whether its cores were changed, the cores it may run on, a bit for each, and
# those without its caller's.
_CORES_BYTES = 128  # of the C libraries' cpu_set_t
THREAD, _CHANGED, _ALLOWED = 0, 8, 16
_ELSEWHERE = _ALLOWED + _CORES_BYTES
BYTES = _ELSEWHERE + _CORES_BYTES


def addresses(library: Any) -> list[int]:
    """Return the addresses of the functions, zeros where one is missing."""
    if not all(hasattr(library, name) for name in FUNCTIONS):
        return [0] * len(FUNCTIONS)
    return [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in FUNCTIONS]


@inlined
def steer_away(functions, worker):
    """Before a sleeping worker is woken: take the caller's core from it. Not again before it has settled."""
    if get(functions + _CORE) == 0:
        return
    if call_integer(get(functions + _GET), (get(worker + THREAD), _CORES_BYTES, worker + _ALLOWED)) != 0:
        return
    core = call_integer(get(functions + _CORE), ())
    if core < 0 or core >= 8 * _CORES_BYTES:
        return
    others = 0
    for word in range(_CORES_BYTES // 8):
        bits = get(worker + _ALLOWED + 8 * word)
        if word == core // 64:
            bits &= ~(1 << (core % 64))
        others |= bits
        put(worker + _ELSEWHERE + 8 * word, bits)
    if others != 0:
        call_integer(get(functions + _SET), (get(worker + THREAD), _CORES_BYTES, worker + _ELSEWHERE))
        put(worker + _CHANGED, 1)


@inlined
def settle(functions, worker):
    """By a worker that has woken up: may run on all its cores again."""
    if get(worker + _CHANGED) != 0:
        call_integer(get(functions + _SET), (get(worker + THREAD), _CORES_BYTES, worker + _ALLOWED))
        put(worker + _CHANGED, 0)
