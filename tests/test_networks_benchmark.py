"""The benchmark of whole networks: entrants agree, rows are filled, means are taken, modules run within a context."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")

from benchmarks.networks import __main__ as command
from benchmarks.networks import entrants, measuring, results, table
from fastconv import nn


@pytest.mark.parametrize("training", [False, True])
def test_entrants_agree_and_are_timed(training):
    job = entrants.Job("lenet5", 2, training, 1)
    names = ["fastconv", "torch", "torch channels-last", "torch within use()", "torch, compile_model"]
    names += ["onnxruntime"] * (find_spec("onnxruntime") is not None)
    rows = {row.entrant: row for row in measuring.measure(job, names, 0.01, ["time", "layers"])}
    assert list(rows) == names
    trains = names[:4]
    for name in trains if training else names:
        assert rows[name].failure is rows[name].refusal is None
        assert rows[name].seconds > 0
        assert rows[name].images == job.batch / rows[name].seconds
    if training:
        assert all(rows[name].refusal == "does not train" for name in names if name not in trains)
    parts = rows["fastconv"].layers
    assert any(path.startswith("c3") for path, _, _ in parts)
    assert all(seconds >= 0 for _, _, seconds in parts)  # 0 for an activation that the layer before it applies
    assert any("step" in what for _, what, _ in parts) == training


def test_every_part_of_a_training_step_is_timed():
    """Blocks call some layers' `backward_onto`, not their `backward`: they count all the same."""
    parts = measuring.time_layers(entrants.Job("resnet50", 1, True, 1), repeat=1)
    convolutions = [(path, seconds) for path, what, seconds in parts if what == "Conv2d backward"]
    assert len(convolutions) == 53
    assert all(seconds > 0 for _, seconds in convolutions)


def test_a_wrong_result_is_told(monkeypatch):
    wrong = entrants.Entrant("torch", (), True, lambda *given: lambda: 2 * entrants.torch_run(*given)())
    monkeypatch.setattr(measuring, "ENTRANTS", (entrants.ENTRANTS[0], wrong))
    job = entrants.Job("lenet5", 1, False, 1)
    _, row = measuring.measure(job, ["fastconv", "torch"], 0.01, ["time"])
    assert "differs from fastconv's" in row.failure


def test_modules_run_within_a_context():
    entered = []

    @contextmanager
    def within():
        entered.append(True)
        yield

    run = entrants.torch_run(entrants.Job("lenet5", 1, True, 1), True, within=within)
    assert run() > run()
    assert len(entered) == 2


def test_memory_of_a_process_alone():
    job = entrants.Job("alexnet", 1, False, 1)
    weights = 4 * nn.build("alexnet").count()
    for name in ("fastconv", "torch"):
        # Its own weights, and what it makes of them, but nobody else's.
        assert weights < measuring._memory(job, name) < 2.5 * weights


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    given = ["lenet5", "--inference", "1", "--training", "--threads", "1", "--seconds", "0.01"]
    given += ["--parts", "time"]
    assert command.main([*given, "--entrants", "fastconv", "torch", "--save", "here"]) == 0
    shown = capsys.readouterr().out
    assert "lenet5, inference of 1, 1 thread" in shown
    assert "times as fast as torch" in shown
    saved = json.loads((tmp_path / "here.json").read_text())
    assert [row["entrant"] for row in saved["rows"]] == ["fastconv", "torch"]
    first = saved["rows"][0]["seconds"]
    assert command.main([*given, "--entrants", "torch", "--save", "here"]) == 0
    again = json.loads((tmp_path / "here.json").read_text())["rows"]
    assert sorted(row["entrant"] for row in again) == ["fastconv", "torch"]
    assert next(row["seconds"] for row in again if row["entrant"] == "fastconv") == first  # kept
    command.main([*given[:-1], "memory", "--entrants", "fastconv", "--save", "here"])
    fastconv = json.loads((tmp_path / "here.json").read_text())["rows"][0]
    assert (fastconv["seconds"], fastconv["memory"] is not None) == (first, True)
    capsys.readouterr()
    assert command.main(["--show", "here"]) == 0
    assert "| lenet5 | " in capsys.readouterr().out
    (tmp_path / "other.json").write_text("{}")
    for name in ("nowhere", "other"):
        assert command.main(["--show", name]) == 2
        assert name in capsys.readouterr().err
    assert command.main(["lenet6"]) == 2
    assert "unknown network 'lenet6'" in capsys.readouterr().err


def test_means_are_geometric_and_of_the_best_rival():
    seconds = {"fastconv": 1.0, "torch": 4.0, "torch channels-last": 2.0, "onnxruntime": 1.0}
    rows = [
        measuring.Row(network, 1, False, 2, entrant, value * factor)
        for network, factor in (("a", 1), ("b", 1))
        for entrant, value in {**seconds, "torch channels-last": 2.0 if network == "a" else 8.0}.items()
    ]
    eager, onnx = table.means(rows)
    assert "2.83 times as fast as torch or torch channels-last" in eager  # the root of 2 * 4
    assert "1.00 times as fast as onnxruntime" in onnx


def test_networks_beside_each_other():
    def row(network, entrant, seconds, memory=None, failure=None, training=False):
        return measuring.Row(network, 1, training, 2, entrant, seconds, 1 / seconds, memory, failure=failure)

    rows = [
        row("a", "fastconv", 1.0, 3 << 20),
        row("a", "torch", 4.0, 8 << 20),
        row("a", "torch channels-last", 2.0, 9 << 20),
        row("b", "fastconv", 1.0, 4 << 20),
        row("b", "torch", 8.0),
        row("b", "torch channels-last", 0.1, failure="wrong"),
        row("a", "fastconv", 1.0, training=True),
    ]
    assert table.times(rows) == [
        "| network | inference of 1, ms | PyTorch | training of 1, ms |",
        "| --- | --- | --- | --- |",
        "| a | 1000 | 2.00 | 1000 |",
        "| b | 1000 | 8.00 |  |",
        "| geometric mean |  | 4.00 |  |",
    ]
    assert table.memory(rows) == [
        "| network | inference of 1, MiB | PyTorch |",
        "| --- | --- | --- |",
        "| a | 3 | 8 |",
        "| b | 4 |  |",
    ]
