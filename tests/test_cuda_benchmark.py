"""The GPU benchmark where there is no GPU: it says what is missing, and what needs none of it works."""

from __future__ import annotations

import itertools
import time

import pytest
from cuda_emulation import emulated

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, timing
from fastconv.notation import parse_problem


def test_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(command.device, "state", lambda: {"missing": ["no NVIDIA driver was found"]})
    assert command.main([]) == command.NOTHING_TO_RUN_ON != 0
    assert "benchmarks.gpu cannot run here:\n  no NVIDIA driver was found\n" in capsys.readouterr().err


def test_suite_counts_and_keeps_failures():
    problems = [parse_problem(f"conv2d{d} n2 c3 i7 oc4 k3 cuda") for d in ("", ":dgrad")]

    def spoiled(algorithm):
        class Spoiled(correctness.OnDevice):
            def plan(self, problem):
                if problem.direction == "dgrad":
                    raise RuntimeError("out of order")
                return algorithm.plan(problem)

        return Spoiled(algorithm)

    with emulated():
        found = correctness.check(problems, time.monotonic() + 600, spoiled)
        late = correctness.check(problems, time.monotonic() - 1, spoiled)
    entry = found["cuda/direct"]
    assert (entry["checked"], entry["skipped"]) == (2, 0)
    assert [failure.partition(": ")[2] for failure in entry["failures"]] == ["RuntimeError: out of order"]
    assert late["cuda/direct"] == {"checked": 0, "skipped": 2, "failures": []}


def test_problems_cover_every_direction_and_are_on_the_gpu():
    found = list(correctness.problems("float16"))
    assert {p.direction for p in found} == {"fprop", "dgrad", "wgrad", "bgrad"}
    assert {(p.device, p.dtype) for p in found} == {("cuda", "float16")}


def test_every_convolution_is_solved():
    with emulated():
        left = correctness.unsolved(["float32"])
    assert not [text for text in left if text.startswith(("conv", "linear", "locally"))]


def test_beginning_of_the_cases_is_a_sample():
    cases = list(itertools.islice(timing.cases([1, 16], ["float32", "float16"]), 60))
    assert {c.problem.direction for c in cases} == {"fprop", "dgrad", "wgrad"}
    assert {c.problem.dtype for c in cases} == {"float32", "float16"}
    assert len({c.name for c in cases}) == 60
    assert len({c.name.partition("/")[0] for c in cases}) > 5


def test_summary_compares_the_better_layouts():
    def row(entrant, seconds, *, chosen=False, text="conv2d:fprop n1 ic3 f32"):
        return {"case": text, "problem": text, "entrant": entrant, "seconds": seconds, "chosen": chosen}

    rows = [row("cudnn", 4.0), row("cudnn", 3.0), row("cuda/a", 2.0), row("cuda/b", 6.0, chosen=True), row("x", None)]
    found = timing.summary([*rows, row("cudnn", 1.0, text="max_pool2d:fprop n1 f32")])
    assert found == {
        "dense fprop f32": {"cases": 1, "best": pytest.approx(1.5), "chosen": pytest.approx(0.5), "faster": 1}
    }
