"""The timer, and the performance database that remembers what it measured: JSON, never code.

The database is a list of records in one file of the user's cache directory. A record holds for one problem, on one
machine and with one version of fastconv (how fast an older version's algorithm was says nothing of today's), and
gives the seconds of each algorithm, or null for one whose result was wrong. Records of other versions stay, since
versions side by side may share the file; `fastconv tune --clear` removes them with all others.

Nothing here ever stops a computation: a file that cannot be read is ignored, a directory that cannot be written
leaves the measurements in memory, and each is warned of once. The commands a person gives (`export`, `merge`,
`clear`) raise instead.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
import timeit
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from fastconv import environment, files
from fastconv._version import __version__

Results: TypeAlias = dict[str, float | None]

FORMAT = "fastconv performance database"
SCHEMA = 1

_LEAST_ROUNDS = 3
# Runs shorter than this are repeated until they fill it: far above the resolution of any timer.
_LEAST_SECONDS = 1e-3
# OpenBLAS's threads spin for 2**28 cycles, other libraries' for less.
_LONGEST_SPINNING = 0.3
# For so long the process is watched, of which it may compute so much and still counts as idle.
_GLANCE, _IDLE = 5e-3, 0.2

_timing = threading.RLock()


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the process-wide right to time things: two threads that did so at once would time each other."""
    with _timing:
        yield


def measure(
    runs: Mapping[str, Callable[[], object]],
    seconds: float = 1.0,
    rest: bool = False,
    *,
    warm: bool = False,
    turn: float = _LEAST_SECONDS,
) -> dict[str, float]:
    """Time several runs against each other.

    Each is called once to warm up; then they take turns in rounds, so that a processor that slows down for a
    while slows all of them. What counts is each one's share of its round (see `_typical`).

    Parameters
    ----------
    runs : mapping of str to callable
        What to time, by name.
    seconds : float
        When to begin no further round. There are three rounds at least, but for runs that take longer than this:
        those run once more after the warm-up.
    rest : bool
        Whether each turn begins when no other thread of this process computes any more, as those of other libraries do
        for a while when they have nothing to do, and with a run that is not timed: one's own threads wake up, and
        memory is again as one's own runs leave it. For runs on several threads.
    warm : bool
        Whether all have been called before: then none is called to warm up.
    turn : float
        Seconds that each turn goes on at least, run after run.

    Returns
    -------
    dict of str to float
        Seconds a call.
    """
    timers = {name: timeit.Timer(run) for name, run in runs.items()}
    slow: dict[str, float] = {}
    repeats: dict[str, int] = {}
    for name, timer in timers.items():
        if not warm:
            timer.timeit(1)
        once = timer.timeit(1)
        if once > seconds:
            slow[name] = once
        else:
            repeats[name] = max(1, math.ceil(turn / max(once, 1e-9)))
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while repeats and (len(rounds) < _LEAST_ROUNDS or time.perf_counter() - start < seconds):
        rounds.append({})
        for name, number in repeats.items():
            if rest:
                _await_idle()
                timers[name].timeit(1)
            rounds[-1][name] = timers[name].timeit(number) / number
    taken = slow | _typical(rounds)
    return {name: taken[name] for name in runs}


def _await_idle() -> None:
    """Wait until this process computes nothing, or for as long as no library's threads go on spinning."""
    start = time.perf_counter()
    while time.perf_counter() - start < _LONGEST_SPINNING:
        before = time.process_time()
        time.sleep(_GLANCE)
        if time.process_time() - before < _IDLE * _GLANCE:
            return


def _typical(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what each run typically took, given the seconds of all in every round.

    The medians of two runs may come from rounds at different clocks, or of another load beside them. So what counts is
    the median of a run's share of its round's pace, the geometric mean over all runs, times the median pace.
    """
    if not rounds:
        return {}
    paces = [statistics.geometric_mean(taken.values()) for taken in rounds]
    pace = statistics.median(paces)
    return {
        name: pace * statistics.median(r[name] / p for r, p in zip(rounds, paces, strict=True)) for name in rounds[0]
    }


def installed(package: str) -> str | None:
    """Return the version of a package without importing it; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Key(NamedTuple):
    """What a record holds for: a problem's text, a machine with its threads and libraries, a version of fastconv."""

    problem: str
    measured_on: str
    version: str


class Record(NamedTuple):
    """What was measured, and when (seconds since 1970)."""

    recorded: float
    seconds: Results


Records: TypeAlias = dict[Key, Record]


def _merge(into: Records, other: Records) -> int:
    """Add records, and return how many changed something: what is in the later of two records of a key holds."""
    changed = 0
    for key, record in other.items():
        known = into.get(key, Record(0.0, {}))
        older, newer = sorted((known, record), key=lambda r: r.recorded)
        merged = Record(newer.recorded, {**older.seconds, **newer.seconds})
        changed += merged.seconds != known.seconds
        into[key] = merged
    return changed


def _encode(records: Records) -> str:
    rows = [{**key._asdict(), **record._asdict()} for key, record in sorted(records.items())]
    return json.dumps({"format": FORMAT, "schema": SCHEMA, "records": rows}, indent=1) + "\n"


def _decode(text: str) -> Records:
    """Return the records of a file's text; a `ValueError` says what is wrong with it."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("it is not a performance database of fastconv")
        if content["schema"] != SCHEMA:
            raise ValueError(f"it has schema {content['schema']!r}, this version reads schema {SCHEMA}")
        return dict(_decode_row(row) for row in content["records"])
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from None


def _decode_row(row: dict[str, Any]) -> tuple[Key, Record]:
    key, recorded, seconds = Key(*(row[name] for name in Key._fields)), row["recorded"], row["seconds"]
    if not all(isinstance(word, str) for word in (*key, *seconds)):
        raise ValueError("it is damaged (a name is no text)")
    for value in (recorded, *(v for v in seconds.values() if v is not None)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"it is damaged ({value!r} is no time)")
    # A clock that was ahead must not win for ever: of a time that has not come yet nobody knows when it was.
    return key, Record(recorded if recorded <= time.time() else 0.0, seconds)


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """The measurements in one file. Threads and processes may use it at once.

    Parameters
    ----------
    path : path
        The file. It and its directory are made when there is something to write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        _databases.add(self)
        self._records: Records = {}
        self._unsaved: Records = {}
        self._seen: tuple[int, ...] | None = None
        self._warned: set[str] = set()

    def __len__(self) -> int:
        """How many records there are, those of other machines and versions included."""
        with self._lock:
            self._refresh()
            return len(self._records)

    def lookup(self, problem: str, measured_on: str) -> Results:
        """Return what this version of fastconv measured for a problem on a machine.

        Parameters
        ----------
        problem : str
            The problem's canonical text.
        measured_on : str
            The machine, and all else that the times depend on.

        Returns
        -------
        dict of str to float or None
            Seconds by algorithm key, None for an algorithm whose result was wrong; empty if nothing is known.
        """
        with self._lock:
            self._refresh()
            record = self._records.get(Key(problem, measured_on, __version__))
        return dict(record.seconds) if record else {}

    def record(self, problem: str, measured_on: str, results: Mapping[str, float | None]) -> None:
        """Remember measurements, beside those of other algorithms and in place of earlier ones.

        If they cannot be written they are kept in memory, with a warning, and written at the next occasion.
        """
        with self._lock:
            _merge(self._unsaved, {Key(problem, measured_on, __version__): Record(time.time(), dict(results))})
            _merge(self._records, self._unsaved)
            try:
                self._save()
            except OSError as error:
                self._warn(f"{self.path}: measurements cannot be written and are kept in memory ({error})")

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write all records to another file.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        with self._lock:
            self._refresh()
            files.replace(Path(path), _encode(self._records))

    def merge(self, path: str | os.PathLike[str]) -> int:
        """Take over the records of another database file.

        Where both have measured an algorithm, for the same problem, machine and version, what the later record says
        holds; a record's time is that of its latest measurement.

        Returns
        -------
        int
            How many records were added or changed.

        Raises
        ------
        ValueError
            If the file is no database, or one of another schema.
        OSError
            If it cannot be read, or this database cannot be written.
        """
        try:
            other = _decode(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        with self._lock:
            self._refresh()
            changed = _merge(self._records, other)
            _merge(self._unsaved, other)
            self._save()
        return changed

    def clear(self) -> None:
        """Forget everything.

        Raises
        ------
        OSError
            If the file cannot be removed.
        """
        with self._lock:
            self._records, self._unsaved = {}, {}
            if self.path.exists():
                with files.locked(self.path):
                    self.path.unlink(missing_ok=True)

    def _refresh(self) -> None:
        """Read the file if it is not the one last seen; one `stat` otherwise."""
        seen = files.signature(self.path)
        if seen != self._seen:
            self._records, self._seen = self._read() or {}, seen
            _merge(self._records, self._unsaved)

    def _read(self) -> Records | None:
        """Return what the file holds; None if it is unusable, which is warned of."""
        try:
            return self._load()
        except (OSError, ValueError) as error:
            self._warn(f"{self.path}: this performance database is ignored: {error}")
            return None

    def _load(self) -> Records:
        try:
            return _decode(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def _save(self) -> None:
        """Add what is unsaved to the file, as it is by now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(self.path):
            try:
                records = self._load()
            except ValueError as error:
                self._warn(f"{self.path}: this performance database is ignored: {error}")
                os.replace(self.path, f"{self.path}.damaged")
                records = {}
            _merge(records, self._unsaved)
            files.replace(self.path, _encode(records))
            self._records, self._unsaved, self._seen = records, {}, files.signature(self.path)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=4)


def database() -> Database:
    """Return the database in ``FASTCONV_CACHE_DIR``, or else in the user's cache directory."""
    chosen = environment.read("FASTCONV_CACHE_DIR")
    directory = Path(chosen).expanduser() if chosen else files.user_cache() / "fastconv"
    # The schema is part of the name, so that versions of fastconv side by side do not fight over one file.
    return _open(directory / f"performance-{SCHEMA}.json")


_open = cache(Database)


def _after_fork() -> None:
    """In a child, where only the thread that forked lives on: nobody is left to release a lock."""
    global _timing
    _timing = threading.RLock()
    for one in list(_databases):
        one._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
