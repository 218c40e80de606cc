"""Options: how they nest, what they refuse, what the dispatcher makes of them, and the environment behind them."""

from __future__ import annotations

import pickle
import threading
from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
from fakes import Fake, general_backends, registered
from fresh import python

import fastconv as fc
from fastconv import environment, testing
from fastconv.notation import parse_problem
from fastconv.options import Options, current

PROBLEM = parse_problem("conv2d n1 c8 i32 oc8 k3 p1")
X, W = testing.integer_inputs(PROBLEM)
Y = fc.conv2d(X, W, padding=1, backend="reference")


def candidate(key: str, problem=PROBLEM):
    (found,) = (c for c in fc.explain(problem).candidates if c.algorithm == key)
    return found


# --------------------------------------------------------------------------------------------------- contexts


def test_defaults():
    assert current() == Options()
    assert current().max_workspace == 64 << 20


def test_options_nest_and_end():
    with fc.options(backend="naive", threads=2) as outer:
        assert outer == current() == Options(backend="naive", threads=2)
        with fc.options(backend="im2col", strict=True):
            assert current() == Options(backend="im2col", threads=2, strict=True)
            with fc.options(backend=None):
                assert current().backend is None
        assert current() is outer
    assert current() == Options()


def test_options_end_with_an_error():
    with pytest.raises(ZeroDivisionError), fc.options(threads=1):
        _ = 1 / 0
    assert current() == Options()


def test_options_are_a_threads_own():
    inside, outside, seen = threading.Event(), threading.Event(), []

    def other():
        seen.append(current())
        with fc.options(backend="reference"):
            inside.set()
            outside.wait(10)
        seen.append(current())

    with fc.options(backend="naive"):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        assert current().backend == "naive"
        outside.set()
        thread.join()
    assert seen == [Options(), Options()]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"treads": 1}, TypeError, r"options: unknown option 'treads'; expected one of backend, algorithm"),
        ({"backend": 3}, TypeError, r"backend: expected str, got 3"),
        ({"algorithm": b"gemm"}, TypeError, r"algorithm: expected str, got b'gemm'"),
        ({"max_workspace": "64M"}, TypeError, r"max_workspace: expected int, got '64M'"),
        ({"max_workspace": None}, TypeError, r"max_workspace: expected int, got None"),
        ({"max_workspace": True}, TypeError, r"max_workspace: expected int, got True"),
        ({"max_workspace": -1}, ValueError, r"max_workspace: must be at least 0, got -1"),
        ({"threads": 0}, ValueError, r"threads: must be at least 1, got 0"),
        ({"threads": 1.5}, TypeError, r"threads: expected int, got 1.5"),
        ({"strict": 1}, TypeError, r"strict: expected bool, got 1"),
        ({"deterministic": "yes"}, TypeError, r"deterministic: expected bool, got 'yes'"),
        ({"autotune": None}, TypeError, r"autotune: expected bool, got None"),
    ],
)
def test_options_are_checked(changes, error, message):
    with pytest.raises(error, match=f"^{message}"), fc.options(**changes):
        pytest.fail("the block must not be entered")
    assert current() == Options()


def test_options_pickle_across_processes():
    """Hashes of strings differ from process to process: unpickled options must hash as those made there."""
    made = Options(backend="naive", threads=2)
    assert pickle.loads(pickle.dumps(made)) == made
    code = f"""
import pickle
from fastconv.options import Options
print({{Options(backend="naive", threads=2): "found"}}.get(pickle.loads({pickle.dumps(made)!r})))
"""
    assert python(code, PYTHONHASHSEED="12345").stdout.strip() == "found"


# ---------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("backend", general_backends())
def test_backend(backend):
    with fc.options(backend=backend):
        assert fc.explain(PROBLEM).winner.startswith(f"{backend}/")
        assert np.array_equal(fc.conv2d(X, W, padding=1), Y)
    assert fc.plan(fc.conv2d, X, W, padding=1, backend=backend).algorithm.startswith(f"{backend}/")


@pytest.mark.parametrize("algorithm", ["gemm", "im2col/gemm"])
def test_algorithm_by_name_or_key(algorithm):
    with fc.options(algorithm=algorithm):
        choice = fc.explain(PROBLEM)
        assert choice.winner == "im2col/gemm"
        assert candidate("naive/loops").refusal == f"options ask for algorithm {algorithm!r}"
    assert fc.plan(fc.conv2d, X, W, algorithm=algorithm).algorithm == "im2col/gemm"


def test_arguments_go_before_options():
    with fc.options(backend="naive"):
        assert fc.plan(fc.conv2d, X, W, backend="im2col").algorithm == "im2col/gemm"
    with pytest.raises(fc.NoAlgorithmError, match="options ask for"):
        fc.conv2d(X, W, backend="naive", algorithm="gemm")


@pytest.mark.parametrize("option", ["strict", "deterministic"])
def test_strict_and_deterministic_exclude_what_is_not(option):
    with registered(Fake("loose", **{option: False})):
        assert fc.explain(PROBLEM).winner == "fake/loose"
        with fc.options(**{option: True}):
            assert candidate("fake/loose").refusal == f"options ask for {option} algorithms"
            assert fc.explain(PROBLEM).winner != "fake/loose"
        with fc.options(**{option: True, "strict": True}):  # integers come out exactly of plain sums
            assert np.array_equal(fc.conv2d(X, W, padding=1), Y)


def test_deterministic_and_strict_leave_an_algorithm_for_every_problem():
    with fc.options(deterministic=True, strict=True, max_workspace=0):
        for problem in testing.problems():
            assert fc.explain(problem).winner is not None


def test_max_workspace_is_obeyed():
    """im2col asks for less where less is allowed, and its result stays the same."""
    problem = parse_problem("conv2d n1 c32 i128 oc32 k3 p1")
    x, w = testing.integer_inputs(problem)
    whole = 32 * 9 * 128 * 128 * 4
    expected = fc.conv2d(x, w, padding=1, backend="naive")
    asked = []
    for limit in (256 << 20, 1 << 20, 1 << 18):
        with fc.options(max_workspace=limit, backend="im2col"):
            asked.append(candidate("im2col/gemm", problem).workspace)
            assert asked[-1] <= limit
            assert np.array_equal(fc.conv2d(x, w, padding=1), expected)
    assert whole > asked[0] > asked[1] > asked[2] > 0


def test_too_little_workspace_is_refused_with_numbers():
    with fc.options(max_workspace=100, backend="im2col"):
        with pytest.raises(fc.NoAlgorithmError, match=r"im2col/gemm: .* needs .*, max_workspace allows") as caught:
            fc.conv2d(X, W, padding=1)
        assert candidate("im2col/gemm").refusal in str(caught.value)
    with fc.options(max_workspace=100):
        assert np.array_equal(fc.conv2d(X, W, padding=1), Y)


def test_workspace_of_any_algorithm_is_compared():
    with registered(Fake("modest", workspace=1000)):
        with fc.options(max_workspace=1000):
            assert fc.explain(PROBLEM).winner == "fake/modest"
        with fc.options(max_workspace=999):
            assert candidate("fake/modest").refusal == "needs 1000 B of workspace, max_workspace allows 999 B"


def test_gradients_are_computed_under_the_options_of_the_forward_pass():
    fake = Fake("recorded")
    with registered(fake):
        with fc.options(backend="naive"):
            y, pullback = fc.vjp(fc.conv2d, X, W, padding=1)
        pullback(y)
        assert fake.runs == 0


# ------------------------------------------------------------------------------------------------ environment

GOOD = {
    "FASTCONV_BACKEND": ("im2col", "im2col"),
    "FASTCONV_ALGORITHM": ("im2col/gemm", "im2col/gemm"),
    "FASTCONV_MAX_WORKSPACE": ("3M", 3 << 20),
    "FASTCONV_DETERMINISTIC": ("yes", True),
    "FASTCONV_STRICT": ("TRUE", True),
    "FASTCONV_TF32": ("1", True),
    "FASTCONV_THREADS": ("3", 3),
    "FASTCONV_AUTOTUNE": ("on", True),
    "FASTCONV_VERBOSE": ("1", True),
    "FASTCONV_SIMD": ("avx2", "avx2"),
    "FASTCONV_CACHE_DIR": ("/somewhere", "/somewhere"),
}


@pytest.mark.parametrize("name", environment.VARIABLES)
def test_variable(name, monkeypatch):
    text, value = GOOD[name]
    monkeypatch.setenv(name, text)
    assert environment.read(name) == value
    for unset in ("", None):
        monkeypatch.delenv(name) if unset is None else monkeypatch.setenv(name, unset)
        assert environment.read(name) == environment.VARIABLES[name].default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("FASTCONV_MAX_WORKSPACE", "0", 0),
        ("FASTCONV_MAX_WORKSPACE", "123", 123),
        ("FASTCONV_MAX_WORKSPACE", "2k", 2 << 10),
        ("FASTCONV_MAX_WORKSPACE", "1G", 1 << 30),
        ("FASTCONV_STRICT", "0", False),
        ("FASTCONV_STRICT", "Off", False),
    ],
)
def test_values_of_variables(name, text, value, monkeypatch):
    monkeypatch.setenv(name, text)
    assert environment.read(name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("FASTCONV_MAX_WORKSPACE", "lots"),
        ("FASTCONV_MAX_WORKSPACE", "-1"),
        ("FASTCONV_MAX_WORKSPACE", "1T"),
        ("FASTCONV_THREADS", "0"),
        ("FASTCONV_THREADS", "two"),
        ("FASTCONV_DETERMINISTIC", "maybe"),
        ("FASTCONV_STRICT", "2"),
        ("FASTCONV_AUTOTUNE", "-"),
        ("FASTCONV_VERBOSE", "loud"),
        ("FASTCONV_SIMD", "mmx"),
    ],
)
def test_bad_values_name_the_variable(name, text, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=rf"^{name}='{text}': "):
        environment.read(name)


def test_every_option_has_a_variable_with_its_default():
    for option in fields(Options):
        assert environment.VARIABLES[f"FASTCONV_{option.name.upper()}"].default == option.default


def test_variables_are_the_options_of_a_process():
    code = """
import dataclasses
from fastconv import options
from fastconv.options import current
print(dataclasses.astuple(current()))
with options(threads=1, backend=None):
    print(dataclasses.astuple(current()))
"""
    lines = python(
        code,
        FASTCONV_BACKEND="im2col",
        FASTCONV_ALGORITHM="gemm",
        FASTCONV_MAX_WORKSPACE="3M",
        FASTCONV_DETERMINISTIC="1",
        FASTCONV_STRICT="1",
        FASTCONV_TF32="1",
        FASTCONV_THREADS="2",
        FASTCONV_AUTOTUNE="1",
    ).stdout.splitlines()
    assert lines == [
        str(("im2col", "gemm", 3 << 20, True, True, True, 2, True)),
        str((None, "gemm", 3 << 20, True, True, True, 1, True)),
    ]


CONVOLVE = """
import numpy, fastconv
x, w = numpy.ones((1, 1, 4, 4), numpy.float32), numpy.ones((1, 1, 3, 3), numpy.float32)
print(fastconv.conv2d(x, w).sum())
fastconv.conv2d(x, w)
"""


def test_verbose_logs_every_choice_to_standard_error():
    done = python(CONVOLVE, FASTCONV_VERBOSE="1", FASTCONV_BACKEND="naive")
    assert done.stdout.strip() == "36.0"
    assert done.stderr.splitlines() == [
        "conv2d:fprop n1 ic1 ih4 iw4 oc1 kh3 kw3 f32 -> naive/loops: the only one that was not refused"
    ]
    assert python(CONVOLVE).stderr == ""


@pytest.mark.parametrize(
    ("name", "text"), [("FASTCONV_THREADS", "none"), ("FASTCONV_VERBOSE", "very"), ("FASTCONV_BACKEND", "cudnn")]
)
def test_bad_environment_stops_the_process_with_a_clear_error(name, text):
    error = python(CONVOLVE, fails=True, **{name: text}).stderr.splitlines()[-1]
    assert "ValueError" in error or "NoAlgorithmError" in error
    assert (name in error) or ("backend: no 'cudnn'" in error)


def test_equal_options_are_equal_however_many_came_in_between(monkeypatch):
    numbering = import_module("fastconv.options")
    monkeypatch.setattr(numbering, "_MOST_NUMBERS", 8)
    first = Options(threads=3)
    numbers = {Options(max_workspace=size).number for size in range(1, 100)}
    assert len(numbers) == 99
    assert len(numbering._numbers) <= 8
    assert Options(threads=3) == first
    assert hash(Options(threads=3)) == hash(first)
