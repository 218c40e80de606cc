"""The GPU benchmark where there is no GPU: it says what is missing, and what needs none of it works."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from cuda_emulation import emulated

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, timing
from fastconv import registry
from fastconv.notation import parse_problem


def test_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(command.device, "state", lambda: {"missing": ["no NVIDIA driver was found"]})
    assert command.main([]) == command.NOTHING_TO_RUN_ON != 0
    assert "benchmarks.gpu cannot run here:\n  no NVIDIA driver was found\n" in capsys.readouterr().err


def test_suite_counts_and_keeps_failures():
    problems = [parse_problem(f"conv2d{d} n2 c3 i7 oc4 k3 cuda") for d in ("", ":dgrad", ":wgrad")]
    unit = correctness.Unit("cuda/direct", "float32")

    def spoiled(algorithm):
        class Spoiled(correctness.OnDevice):
            def plan(self, problem):
                if problem.direction == "dgrad":
                    raise RuntimeError("out of order")
                return algorithm.plan(problem)

        return Spoiled(algorithm)

    with emulated():
        found = correctness.check_unit(unit, time.monotonic() + 600, spoiled, problems)
        late = correctness.check_unit(unit, time.monotonic() - 1, spoiled, problems)
        gone = correctness.check_unit(unit, time.monotonic() + 600, spoiled, problems, lambda: True)
    assert (found["checked"], found["skipped"]) == (3, 0)
    assert [failure.partition(": ")[2] for failure in found["failures"]] == ["RuntimeError: out of order"]
    assert late == {"checked": 0, "skipped": 3, "failures": []}
    assert (gone["checked"], gone["skipped"], len(gone["failures"])) == (2, 1, 1)


def test_units_are_every_algorithm_on_every_type_and_tf32_apart():
    found = correctness.units(["float32", "float16"])
    keys = {a.key for a in registry.algorithms() if a.device == "cuda"}
    assert {(u.algorithm, u.dtype, u.tf32) for u in found} == {
        (key, *kind) for key in keys for kind in (("float32", False), ("float16", False), ("float32", True))
    }
    problem = parse_problem("conv2d n2 c16 i7 oc16 k3 cuda")
    with emulated():
        plain, rounded = (correctness.Unit("cuda/tensorcore", "float32", tf32) for tf32 in (False, True))
        assert rounded.accepts(problem) and not plain.accepts(problem)
        assert not correctness.Unit("cuda/direct", "float32", True).accepts(problem)


def dies_on_float16(unit, deadline):
    if unit.dtype == "float16":
        os._exit(1)
    return {"checked": 1, "skipped": 0, "failures": []}


def test_a_process_that_dies_costs_its_unit_only(monkeypatch):
    units = [correctness.Unit("cuda/direct", dtype) for dtype in ("float32", "float16", "float64")]
    monkeypatch.setattr(correctness, "units", lambda dtypes: units)
    monkeypatch.setattr(correctness, "_check_here", dies_on_float16)
    found = correctness.check([], time.monotonic() + 600, 2)["cuda/direct"]
    assert found["checked"] == 2
    (failure,) = found["failures"]
    assert "float16" in failure and "died with exit status 1" in failure


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
        about = {"case": text, "problem": text, "entrant": entrant, "seconds": seconds, "chosen": chosen}
        return {**about, "bytes": 12.0, "failure": None}

    rows = [row("cudnn", 4.0), row("cudnn", 3.0), row("cuda/a", 2.0), row("cuda/b", 6.0, chosen=True), row("x", None)]
    rows.append({**row("cuda/wrong", 0.1), "failure": "differs"})
    pool = "max_pool2d:fprop n1 f32"
    found = timing.summary([*rows, row("cudnn", 1.0, text=pool), row("cuda/pool", 2.0, text=pool)], bandwidth=8.0)
    assert found == {
        "dense fprop f32": {"cases": 1, "best": pytest.approx(1.5), "chosen": pytest.approx(0.5), "faster": 1},
        "pool fprop f32": {
            "cases": 1, "best": pytest.approx(0.5), "chosen": pytest.approx(0.5), "faster": 0,
            "of_bandwidth": pytest.approx(0.75),
        },
    }  # fmt: skip
