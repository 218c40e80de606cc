"""Measured choices: `tune`, `autotune`, and what is remembered of them."""

from __future__ import annotations

import json
import logging
import textwrap
from functools import partial
from importlib import metadata

import numpy as np
import pytest
from fakes import Fake, registered
from fresh import python
from subject import FORMS, PROBLEM, TEXT, W, X, Y, candidate, conv

import fastconv as fc
from fastconv import dispatch, testing, tuning
from fastconv.machine import machine

pytestmark = pytest.mark.usefixtures("cache_dir")


@pytest.fixture
def quick(monkeypatch):
    """Measure for a few milliseconds."""
    monkeypatch.setattr(tuning, "measure", partial(tuning.measure, seconds=0.01))


def test_tune_changes_the_choice(quick):
    """One promises more than it keeps: it is chosen until it is measured."""
    liar, honest = Fake("liar", predicted=1e-9, seconds=0.005), Fake("honest", predicted=2e-9, seconds=0.001)
    with registered(liar, honest), fc.options(backend="fake"):
        assert fc.explain(PROBLEM).winner == "fake/liar"
        conv()
        tuned = fc.tune(fc.conv2d, X, W, padding=1)
        assert tuned == fc.explain(PROBLEM)
        assert tuned.winner == "fake/honest"
        assert candidate("fake/liar", tuned).measured >= 0.005
        assert 0.001 <= candidate("fake/honest", tuned).measured < candidate("fake/liar", tuned).measured
        assert tuned.reason.startswith("measured ")
        assert tuned.reason.endswith("times faster than fake/liar")
        runs = liar.runs
        assert np.array_equal(conv(), Y)
        assert liar.runs == runs
        assert fc.explain(PROBLEM.replace(n=7)).winner == "fake/liar"


def test_tune_measures_once_unless_forced(quick):
    a, b = Fake("a", seconds=0.001), Fake("b", predicted=2e-9, seconds=0.002)
    with registered(a, b), fc.options(backend="fake"):
        fc.tune(PROBLEM)
        runs = a.runs, b.runs
        assert min(runs) > 1
        fc.tune(PROBLEM)
        assert (a.runs, b.runs) == runs
        a.seconds = 0.006
        assert fc.tune(PROBLEM, force=True).winner == "fake/b"
        assert min(a.runs - runs[0], b.runs - runs[1]) > 0


def test_wrong_algorithm_wins_until_it_is_tuned_and_never_after(quick, caplog):
    def spoil(problem, outputs):
        outputs[0][0, 0, 0, 0] += 1

    with registered(Fake("wrong", spoil=spoil)):
        assert fc.explain(PROBLEM).winner == "fake/wrong"
        with caplog.at_level(logging.WARNING, "fastconv"):
            tuned = fc.tune(PROBLEM)
        assert "fake/wrong failed on conv2d:fprop" in caplog.text
        assert "1 of 512 elements are off; the first at (0, 0, 0, 0)" in caplog.text
        assert tuned.winner not in (None, "fake/wrong")
        assert candidate("fake/wrong", tuned).refusal == "its result differed from the reference when it was tuned"
        with fc.options(strict=True):
            assert np.array_equal(conv(), Y)
        assert fc.tune(PROBLEM, force=True).winner != "fake/wrong"


def test_failing_algorithm_is_out_when_tuned(quick, caplog):
    """Out for this process, that is: what was raised may be due to the moment."""

    def fail(problem, outputs):
        raise MemoryError("too large")

    failing = Fake("failing", spoil=fail)
    with registered(failing):
        with pytest.raises(MemoryError):
            conv()
        tuned = fc.tune(PROBLEM)
        assert tuned.winner != "fake/failing"
        assert "MemoryError: too large" in caplog.text
        assert candidate("fake/failing", tuned).refusal == "failed when it was tuned: MemoryError: too large"
        conv()
        assert all("fake/failing" not in tuning.database().lookup(text, dispatch.measured_on()) for text in FORMS)
        failing.spoil = None
        assert candidate("fake/failing", fc.tune(PROBLEM, force=True)).measured is not None
    assert not dispatch._failures


def test_force_gives_the_wrong_another_try(quick):
    def spoil(problem, outputs):
        outputs[0][0, 0, 0, 0] += 1

    mended = Fake("mended", spoil=spoil)
    with registered(mended), fc.options(backend="fake"), registered(Fake("slow", seconds=0.005)):
        assert candidate("fake/mended", fc.tune(PROBLEM)).refusal is not None
        mended.spoil = None
        assert fc.tune(PROBLEM).winner == "fake/slow"
        assert fc.tune(PROBLEM, force=True).winner == "fake/mended"


def test_wrong_in_one_form_is_out_in_both(quick):
    def spoil(problem, outputs):
        outputs[0][0, 0, 0, 0] += problem.prepacked

    with registered(Fake("wrong", spoil=spoil)):
        fc.tune(PROBLEM)
        for prepacked in (False, True):
            choice = fc.explain(PROBLEM.replace(prepacked=prepacked))
            assert "differed from the reference" in candidate("fake/wrong", choice).refusal


def test_what_solves_everything_is_never_out(quick, caplog):
    def fail(problem, outputs):
        raise RuntimeError("a bad day")

    a, b = Fake("a", spoil=fail), Fake("b", spoil=fail)
    a.fallback = True
    with registered(a, b, Fake("c")), fc.options(backend="fake"):
        tuned = fc.tune(PROBLEM)
        assert "fake/a failed on" in caplog.text
        assert (candidate("fake/a", tuned).refusal, candidate("fake/a", tuned).measured) == (None, None)
        assert candidate("fake/b", tuned).refusal is not None


def test_if_all_fail_nothing_is_remembered(quick):
    def spoil(problem, outputs):
        outputs[0][...] = np.nan

    with registered(Fake("a", spoil=spoil), Fake("b", spoil=spoil)), fc.options(backend="fake"):
        assert [c.refusal for c in fc.tune(PROBLEM).candidates if c.algorithm.startswith("fake")] == [None, None]
    assert len(tuning.database()) == 0


def test_results_of_nothing_but_zeros_are_no_failure(quick, monkeypatch):
    """Here every draw of inputs gives zeros; the first alone does for the one-element problem with its ReLU."""
    one = np.ones((1, 1, 1, 1), np.float32)
    with fc.autotune():
        assert fc.conv2d(one, -one, activation="relu") == 0
        assert fc.conv2d(one, one, activation="relu") == 1
    draw = testing.random_inputs
    monkeypatch.setattr(testing, "random_inputs", lambda *args: tuple(0 * array for array in draw(*args)))
    tuned = fc.tune(PROBLEM)
    assert candidate(tuned.winner, tuned).measured is not None


def test_plan_goes_by_what_tune_measured(quick):
    liar, honest = Fake("liar", predicted=1e-9, seconds=0.004), Fake("honest", predicted=2e-9)
    with registered(liar, honest), fc.options(backend="fake"):
        assert fc.plan(fc.conv2d, X, W, padding=1).algorithm == "fake/liar"
        fc.tune(fc.conv2d, X, W, padding=1)
        assert fc.plan(fc.conv2d, X, W, padding=1).algorithm == "fake/honest"


def test_measurements_hold_for_one_max_workspace(quick):
    with registered(Fake("a"), Fake("b")), fc.options(backend="fake"):
        fc.tune(PROBLEM)
        with fc.options(max_workspace=1 << 20):
            assert candidate("fake/a").measured is None
        assert candidate("fake/a").measured is not None


def test_measurements_hold_for_one_version_of_the_libraries():
    for name in ("numpy", "numba"):
        assert f"{name} {metadata.version(name)}" in dispatch.measured_on().split(", ")


@pytest.mark.parametrize("call", [fc.tune, fc.warmup])
def test_too_large_a_problem_is_told_apart(call, monkeypatch):
    monkeypatch.setattr(testing, "free_bytes", lambda: PROBLEM.bytes)
    with pytest.raises(ValueError, match=rf"^problem: {TEXT} takes \d+ bytes .* {PROBLEM.bytes} are"):
        call(PROBLEM)
    with fc.autotune():  # the arrays are there, after all
        assert np.array_equal(conv(), Y)


def test_free_memory_is_known():
    assert testing.free_bytes() > PROBLEM.bytes


def test_a_limit_of_a_cgroup_counts(monkeypatch, tmp_path):
    monkeypatch.setattr("fastconv.machine._CGROUPS", ((tmp_path, "limit", "used", "total_"),))
    (tmp_path / "used").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("total_active_file 300\ntotal_inactive_file 50\nactive_file 7\n")
    assert testing.free_bytes() > 10000  # no limit is known
    (tmp_path / "limit").write_text("max\n")
    assert testing.free_bytes() > 10000
    for most, free in (("3500\n", 2850), ("1000\n", 350), ("500\n", 0)):  # what is kept of files makes room
        (tmp_path / "limit").write_text(most)
        assert testing.free_bytes() == free


def test_what_cannot_be_tested_is_computed_all_the_same(quick):
    """Unpooled into fewer places, elements meet, and algorithms may differ in which stays."""
    x, indices = np.ones((1, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.int64)
    expected = fc.max_unpool2d(x, indices, 2, stride=1, padding=1)
    with fc.autotune():
        assert np.array_equal(fc.max_unpool2d(x, indices, 2, stride=1, padding=1), expected)
    with pytest.raises(ValueError, match="puts 16 elements in 9 places"):
        fc.warmup(fc.max_unpool2d, x, indices, 2, stride=1, padding=1)


def test_memory_that_runs_out_while_tuning_stops_no_call(quick, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(testing, "exact", fail)
    with fc.autotune():
        assert np.array_equal(conv(), Y)


def test_measurements_of_narrower_vectors_are_not_those_of_the_machines(monkeypatch):
    own = dispatch.measured_on()
    monkeypatch.setenv("FASTCONV_SIMD", "none")
    assert dispatch.measured_on() == f"{own}, as none"
    monkeypatch.setenv("FASTCONV_SIMD", machine().simd)
    assert dispatch.measured_on() == own


def test_hopeless_candidates_are_not_measured(quick):
    hopeless = Fake("hopeless", predicted=1e6)
    with registered(hopeless):
        tuned = fc.tune(PROBLEM)
    assert hopeless.runs == 0
    assert candidate("fake/hopeless", tuned).measured is None
    assert candidate(tuned.winner, tuned).measured is not None


def test_measurements_are_found_by_other_processes(quick):
    # On one thread: how much work others are worth is another thing here than there.
    with fc.options(threads=1):
        tuned = fc.tune(PROBLEM)
    code = f"""
        import fastconv, json
        with fastconv.options(threads=1):
            print(json.dumps(fastconv.explain({TEXT!r}).to_dict()))
    """
    assert json.loads(python(textwrap.dedent(code)).stdout) == tuned.to_dict()


def test_tuned_choice_is_within_the_options(quick):
    with registered(Fake("fast")), fc.options(backend="naive"):
        assert fc.tune(PROBLEM).winner == "naive/loops"


def test_autotune_measures_what_is_first_met(quick):
    liar, honest = Fake("liar", predicted=1e-9, seconds=0.004), Fake("honest", predicted=2e-9)
    with registered(liar, honest):
        with fc.options(backend="fake"), fc.autotune():
            assert np.array_equal(conv(), Y)
            runs = liar.runs
            assert runs > 1
            assert np.array_equal(conv(), Y)
            assert liar.runs == runs
        with fc.options(backend="fake"):
            assert fc.explain(PROBLEM).winner == "fake/honest"
            fc.conv2d(X, W)
            assert liar.runs == runs + 1
