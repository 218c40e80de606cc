"""The timer, and the performance database under everything that can happen to a file."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import threading
import time
import warnings
from pathlib import Path

import pytest

from fastconv import files, tuning
from fastconv.tuning import FORMAT, SCHEMA, Database

MACHINE = "a processor, 2 threads"
OTHER = "another processor, 2 threads"


pytestmark = pytest.mark.usefixtures("cache_dir")


@pytest.fixture
def path(cache_dir) -> Path:
    return cache_dir / "performance.json"


@pytest.fixture
def locked_out(path, monkeypatch):
    """A file that can be read, in a directory that cannot be written (which chmod cannot show to root)."""

    def refuse(*args, **kwargs):
        raise PermissionError("no writing here")

    monkeypatch.setattr(files, "locked", refuse)
    return path


# --------------------------------------------------------------------------------------------------- timer


def test_measure_ranks_by_time():
    seconds = tuning.measure(
        {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002), "instant": lambda: None}, seconds=0.05
    )
    assert list(seconds) == ["slow", "fast", "instant"]
    assert seconds["slow"] >= 0.02 > seconds["fast"] >= 0.002 > seconds["instant"] > 0


def test_measure_takes_turns():
    calls: list[str] = []

    def run(name: str):
        def call():
            calls.append(name)
            time.sleep(0.002)  # long enough not to be repeated within a round

        return call

    tuning.measure({"a": run("a"), "b": run("b")}, seconds=0.05)
    warm_up, rounds = calls[:4], calls[4:]
    assert warm_up == ["a", "a", "b", "b"]
    assert rounds == ["a", "b"] * (len(rounds) // 2)
    assert len(rounds) >= 6


def test_measure_repeats_what_is_short():
    count = 0

    def run():
        nonlocal count
        count += 1

    tuning.measure({"short": run}, seconds=0.0)  # one run is over this budget: the warm-up and one more
    assert count == 2
    tuning.measure({"short": run}, seconds=0.01)
    assert count > 300


def test_measure_gives_what_is_over_the_budget_no_rounds():
    calls = {"long": 0, "short": 0}

    def long():
        calls["long"] += 1
        time.sleep(0.03)

    def short():
        calls["short"] += 1
        time.sleep(0.002)

    tuning.measure({"long": long, "short": short}, seconds=0.02)
    assert calls["long"] == 2
    assert calls["short"] >= 5


def test_measure_of_nothing():
    assert tuning.measure({}) == {}


def test_exclusive_keeps_other_threads_out_and_lets_its_own_in_again():
    entered = threading.Event()

    def enter():
        with tuning.exclusive():
            entered.set()

    with tuning.exclusive(), tuning.exclusive():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
    thread.join()
    assert entered.is_set()


# ------------------------------------------------------------------------------------------------ database


def test_absent_database_knows_nothing_and_makes_no_file(path):
    assert Database(path).lookup("conv2d", MACHINE) == {}
    assert len(Database(path)) == 0
    assert list(path.parent.iterdir()) == []


def test_what_is_recorded_is_found_by_problem_and_machine(path):
    Database(path).record("conv2d", MACHINE, {"a/b": 0.5, "c/d": None})
    found = Database(path)
    assert found.lookup("conv2d", MACHINE) == {"a/b": 0.5, "c/d": None}
    assert found.lookup("conv2d", OTHER) == {}
    assert found.lookup("conv1d", MACHINE) == {}
    assert len(found) == 1


def test_lookup_returns_a_copy(path):
    database = Database(path)
    database.record("conv2d", MACHINE, {"a/b": 0.5})
    database.lookup("conv2d", MACHINE).clear()
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}


def test_later_measurements_replace_earlier_ones_and_keep_the_others(path):
    database = Database(path)
    database.record("conv2d", MACHINE, {"a/b": 0.5, "c/d": 0.7})
    database.record("conv2d", MACHINE, {"a/b": 0.6})
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.6, "c/d": 0.7}


def test_another_version_starts_afresh(path, monkeypatch):
    Database(path).record("conv2d", MACHINE, {"a/b": 0.5})
    monkeypatch.setattr("fastconv.tuning.__version__", "999.0")
    database = Database(path)
    assert database.lookup("conv2d", MACHINE) == {}
    database.record("conv2d", MACHINE, {"a/b": 0.1})
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.1}
    monkeypatch.undo()
    assert Database(path).lookup("conv2d", MACHINE) == {"a/b": 0.5}


def test_a_change_by_another_process_is_seen(path):
    reader, writer = Database(path), Database(path)
    assert reader.lookup("conv2d", MACHINE) == {}
    writer.record("conv2d", MACHINE, {"a/b": 0.5})
    assert reader.lookup("conv2d", MACHINE) == {"a/b": 0.5}
    path.unlink()
    assert reader.lookup("conv2d", MACHINE) == {}


def test_an_unchanged_file_is_read_once(path, monkeypatch):
    Database(path).record("conv2d", MACHINE, {"a/b": 0.5})
    database = Database(path)
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: pytest.fail("the file was read again"))
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}


def _record_many(path: str, name: str, start) -> None:
    database = Database(path)
    start.wait()
    for i in range(20):
        database.record(f"problem {i}", MACHINE, {f"{name}/{i}": 1.0 + i})


def test_two_processes_lose_nothing(path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [context.Process(target=_record_many, args=(str(path), name, start)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    database = Database(path)
    for i in range(20):
        assert database.lookup(f"problem {i}", MACHINE) == {f"a/{i}": 1.0 + i, f"b/{i}": 1.0 + i}


def test_two_threads_lose_nothing(path):
    database = Database(path)
    threads = [
        threading.Thread(target=database.record, args=(f"problem {i}", MACHINE, {"a/b": float(i)})) for i in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Database(path).lookup(f"problem {i}", MACHINE) for i in range(16)] == [{"a/b": float(i)} for i in range(16)]


def test_a_failed_write_leaves_the_file_as_it_was(path, monkeypatch):
    Database(path).record("conv2d", MACHINE, {"a/b": 0.5})
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(RuntimeWarning, match="the disk is full"):
        Database(path).record("conv1d", MACHINE, {"a/b": 0.1})
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["performance.json", "performance.json.lock"]


ROW = {"problem": "conv2d", "measured_on": MACHINE, "version": "1", "recorded": 1.0, "seconds": {"a/b": 0.5}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("\x80\x02}q\x00.", "Expecting value"),
        ("[" * 100_000, "damaged"),
        ("[]", "not a performance database"),
        ('{"wisdom": 3}', "not a performance database"),
        (json.dumps({"format": FORMAT}), "schema"),
        (json.dumps({"format": FORMAT, "schema": SCHEMA + 1, "records": []}), f"schema {SCHEMA + 1}"),
        (json.dumps({"format": FORMAT, "schema": SCHEMA}), "records"),
        (json.dumps({"format": FORMAT, "schema": SCHEMA, "records": 3}), "damaged"),
        *(
            (json.dumps({"format": FORMAT, "schema": SCHEMA, "records": [row]}), "damaged")
            for row in (
                "text",
                {},
                {**ROW, "version": 3},
                {**ROW, "seconds": []},
                {**ROW, "seconds": {"a/b": -1.0}},
                {**ROW, "seconds": {"a/b": float("nan")}},
                {**ROW, "seconds": {"a/b": True}},
                {**ROW, "recorded": "yesterday"},
            )
        ),
    ],
)
def test_an_unusable_file_is_ignored_then_moved_aside(path, text, reason):
    path.write_text(text, encoding="utf-8")
    database = Database(path)
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        found = database.lookup("conv2d", MACHINE)
    assert found == {}
    assert [str(path) in str(w.message) for w in caught] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert database.lookup("conv1d", MACHINE) == {}
        database.record("conv2d", MACHINE, {"a/b": 0.5})
    assert Path(f"{path}.damaged").read_text(encoding="utf-8") == text
    assert Database(path).lookup("conv2d", MACHINE) == {"a/b": 0.5}


def test_the_valid_row_of_the_test_above_is_valid(path):
    path.write_text(json.dumps({"format": FORMAT, "schema": SCHEMA, "records": [ROW]}), encoding="utf-8")
    assert len(Database(path)) == 1


def test_an_unwritable_directory_leaves_measurements_in_memory(locked_out):
    database = Database(locked_out)
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        database.record("conv2d", MACHINE, {"a/b": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        database.record("conv1d", MACHINE, {"a/b": 0.1})
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}
    assert database.lookup("conv1d", MACHINE) == {"a/b": 0.1}


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    database = Database(tmp_path / "file" / "performance.json")
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        database.record("conv2d", MACHINE, {"a/b": 0.5})
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}


def test_what_was_kept_in_memory_is_written_when_that_is_possible_again(locked_out, monkeypatch):
    database = Database(locked_out)
    with pytest.warns(RuntimeWarning, match="kept in memory"):
        database.record("conv2d", MACHINE, {"a/b": 0.5})
    monkeypatch.undo()
    Database(locked_out).record("conv3d", MACHINE, {"a/b": 0.3})
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}
    assert database.lookup("conv3d", MACHINE) == {"a/b": 0.3}
    database.record("conv1d", MACHINE, {"a/b": 0.1})
    assert Database(locked_out).lookup("conv2d", MACHINE) == {"a/b": 0.5}


def test_a_lock_that_is_not_let_go_of(path, monkeypatch):
    monkeypatch.setattr(files, "_LOCK_TIMEOUT", 0.02)
    database = Database(path)
    with files.locked(path), pytest.warns(RuntimeWarning, match="held by another process"):
        database.record("conv2d", MACHINE, {"a/b": 0.5})
    assert database.lookup("conv2d", MACHINE) == {"a/b": 0.5}
    assert not path.exists()


def test_export_and_merge(path, tmp_path):
    first, second = Database(path), Database(tmp_path / "second.json")
    first.record("conv2d", MACHINE, {"a/b": 0.5, "c/d": 0.7})
    first.record("conv1d", OTHER, {"a/b": 0.2})
    second.record("conv2d", MACHINE, {"a/b": 0.4, "e/f": None})
    first.export(tmp_path / "exported.json")
    # What `second` measured is later, so it stands; what it did not measure it takes over.
    assert second.merge(tmp_path / "exported.json") == 2
    assert second.lookup("conv2d", MACHINE) == {"a/b": 0.4, "c/d": 0.7, "e/f": None}
    assert second.lookup("conv1d", OTHER) == {"a/b": 0.2}
    assert second.merge(tmp_path / "exported.json") == 0
    # And the other way round the later one wins as well.
    assert first.merge(second.path) == 1
    assert Database(path).lookup("conv2d", MACHINE) == {"a/b": 0.4, "c/d": 0.7, "e/f": None}


def test_a_clock_that_was_ahead_does_not_win_for_ever(path, tmp_path, monkeypatch):
    ahead = Database(tmp_path / "ahead.json")
    with monkeypatch.context() as patch:
        later = time.time() + 1e6
        patch.setattr(time, "time", lambda: later)
        ahead.record("conv2d", MACHINE, {"a/b": 0.1, "c/d": 0.7})
    here = Database(path)
    here.record("conv2d", MACHINE, {"a/b": 0.5})
    here.merge(ahead.path)
    assert here.lookup("conv2d", MACHINE) == {"a/b": 0.5, "c/d": 0.7}
    again = Database(ahead.path)
    again.record("conv2d", MACHINE, {"a/b": 0.5})
    assert Database(ahead.path).lookup("conv2d", MACHINE) == {"a/b": 0.5, "c/d": 0.7}


def test_merge_of_no_database_is_an_error(path, tmp_path):
    other = tmp_path / "other.json"
    with pytest.raises(OSError, match=r"other\.json"):
        Database(path).merge(other)
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.json: it is not a performance database"):
        Database(path).merge(other)


def test_clear_forgets_everything(path):
    database = Database(path)
    database.clear()
    database.record("conv2d", MACHINE, {"a/b": 0.5})
    database.clear()
    assert database.lookup("conv2d", MACHINE) == {}
    assert not path.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        database.record("conv2d", MACHINE, {"a/b": 0.6})
    assert Database(path).lookup("conv2d", MACHINE) == {"a/b": 0.6}


def test_the_database_is_where_the_environment_says(cache_dir, monkeypatch):
    assert tuning.database().path.parent == cache_dir
    assert tuning.database() is tuning.database()
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(cache_dir / "elsewhere"))
    assert tuning.database().path.parent == cache_dir / "elsewhere"
    monkeypatch.delenv("FASTCONV_CACHE_DIR")
    assert tuning.database().path.parent == files.user_cache() / "fastconv"


@pytest.mark.parametrize(
    ("platform", "variable", "without"),
    [
        ("linux", "XDG_CACHE_HOME", (".cache",)),
        ("win32", "LOCALAPPDATA", ("AppData", "Local")),
        ("darwin", None, ("Library", "Caches")),
    ],
)
def test_user_cache_follows_the_platform(monkeypatch, tmp_path, platform, variable, without):
    monkeypatch.setattr("sys.platform", platform)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path))
        assert files.user_cache() == tmp_path
        monkeypatch.delenv(variable)
    assert files.user_cache() == Path.home().joinpath(*without)


def test_user_cache_of_a_user_without_a_home(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    assert files.user_cache().is_dir()


def test_runs_are_compared_within_rounds_and_not_across_clocks(monkeypatch):
    """At half the clock from some round on, medians of each run alone would come from either half."""
    now, rounds = 0.0, 0

    def taking(seconds, ends_round=False):
        def run():
            nonlocal now, rounds
            now += seconds * (2 if rounds > 5 else 1) * (1.5 if rounds == 3 and not ends_round else 1)
            rounds += ends_round

        return run

    class Timer:
        def __init__(self, run):
            self.run = run

        def timeit(self, number):
            start = now
            for _ in range(number):
                self.run()
            return now - start

    monkeypatch.setattr(tuning.timeit, "Timer", Timer)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now)
    taken = tuning.measure({"slow": taking(0.3), "fast": taking(0.2, ends_round=True)}, seconds=6.0)
    assert list(taken) == ["slow", "fast"]
    assert taken["slow"] / taken["fast"] == pytest.approx(1.5)


def test_a_run_waits_until_nobody_else_in_the_process_computes(monkeypatch):
    busy = iter([0.0, 0.004, 0.004, 0.008, 0.008, 0.0081])  # two glances at a thread that spins, one at none
    glances = []
    monkeypatch.setattr(tuning.time, "process_time", lambda: next(busy))
    monkeypatch.setattr(tuning.time, "sleep", glances.append)
    tuning._await_idle()
    assert len(glances) == 3
    assert next(busy, None) is None


def test_nobody_is_waited_for_without_end(monkeypatch):
    now = itertools.count(step=0.01)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(tuning.time, "process_time", lambda: next(now))
    monkeypatch.setattr(tuning.time, "sleep", lambda seconds: None)
    tuning._await_idle()
