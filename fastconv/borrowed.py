"""Threads of another library that runs in the same process, to be worked on in place of our own.

A library's idle threads spin for milliseconds before they sleep. Beside them, threads of our own get half of a core
each, and a call waits for the slower half. One team for both does not have that.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Team(NamedTuple):
    """Threads that are started as GNU OpenMP's are.

    Attributes
    ----------
    parallel : int
        Address of ``void parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags)``, which
        calls the function once in each of so many threads, or of fewer, and returns when all have.
    number : int
        Address of ``int number(void)``: which of them the calling one is, from 0.
    most : int
        Address of ``int most(void)``: how many the library itself starts here. Ever the same number need not make and
        end threads.
    """

    parallel: int
    number: int
    most: int


_lent: tuple[int, Team] | None = None


def lend(team: Team | None) -> None:
    """Let everything in this process run on a team, or on threads of its own again. A forked child has its own."""
    global _lent
    _lent = None if team is None else (os.getpid(), team)


def team(process: int) -> Team | None:
    """Return the team that was lent to a process."""
    return _lent[1] if _lent is not None and _lent[0] == process else None
