"""The GPU benchmark from its first line to its last: CuPy and PyTorch in the CPU's memory, and nothing takes time."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import cupy
import numpy as np
import pytest
import torch
from cuda_emulation.host_cupy import copied, cupy_on_host

from benchmarks.cases import Case
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import entrants, timing, use
from benchmarks.gpu.worker import LostError, Worker
from fastconv.notation import parse_problem

CASES = [
    Case("first conv float32", parse_problem("conv2d n2 c3 i8 oc8 k3 p1 cuda")),
    Case("second dgrad float16", parse_problem("conv2d:dgrad n2 c8 i6 oc8 k3 p1 cuda").replace(dtype="float16")),
    Case("third wgrad tf32", parse_problem("conv2d:wgrad n2 c8 i6 oc8 k3 p1 cuda")),
    Case("a pool float32", parse_problem("max_pool2d n2 c8 i6 k2 cuda")),
    Case("its gradient float32", parse_problem("max_pool2d:dgrad n2 c8 i6 k2 cuda")),
    Case("fully connected float32", parse_problem("linear n2 c8 oc5 cuda")),
]


@pytest.fixture
def _on_host(monkeypatch):
    """Let PyTorch compute on the CPU what it is told to compute on the GPU, and let that take no time."""
    randn, generator = torch.randn, torch.Generator
    monkeypatch.setattr(torch, "randn", lambda *shape, device="cpu", **other: randn(*shape, **other))
    monkeypatch.setattr(torch, "Generator", lambda device: generator("cpu"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: None)
    monkeypatch.setattr(entrants, "_as_cupy", lambda tensor: _laid_out(tensor.numpy()))
    monkeypatch.setattr(entrants, "_as_numpy", lambda array: array.get().astype(np.float32))
    for name in ("_cupy_graph", "_torch_graph"):
        monkeypatch.setattr(entrants, name, lambda work: work)
    monkeypatch.setattr(timing, "_seconds", lambda work: work() or 1.0)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: SimpleNamespace(free_all_blocks=lambda: None))
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "lost", lambda: False)
    with cupy_on_host():
        yield


def _laid_out(array):
    """Return a copy on the GPU that is played, in the memory order of the array."""
    if array.ndim == 4 and not array.flags.c_contiguous:
        return np.moveaxis(copied(np.moveaxis(array, 1, -1)), -1, 1)
    return copied(array)


@pytest.mark.usefixtures("_on_host")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_entrant_has_a_row_and_agrees_with_pytorch(case):
    rows, lost = timing.rows_of(case)
    assert not lost
    assert [row["failure"] for row in rows] == [None] * len(rows)
    names = {row["entrant"] for row in rows}
    assert "cudnn" in names and len(names) > 1
    assert {row["layout"] for row in rows if row["chosen"]} == {row["layout"] for row in rows}
    assert all(row["deviation"] is not None for row in rows if row["entrant"] != "cudnn")
    assert timing.summary(rows)


@pytest.mark.usefixtures("_on_host")
def test_wrong_results_are_told(monkeypatch):
    right = entrants._as_numpy
    monkeypatch.setattr(entrants, "_as_numpy", lambda array: right(array) + 1)
    rows, _ = timing.rows_of(CASES[0])
    assert all("differs from cuDNN" in row["failure"] for row in rows if row["entrant"] != "cudnn")


def test_pytorch_has_its_settings_back(monkeypatch):
    # PyTorch's own tests, once imported, let nobody set these in any other way.
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    for tf32 in (True, False):
        with timing._settings_of_pytorch(tf32):
            inside = cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        assert inside == (True, tf32, tf32)
    assert before == (cudnn.benchmark, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


class Here:
    """A worker in this process."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def run(self, job, *args, deadline):
        return job(*args)

    def end(self):
        pass


def test_whole_run(monkeypatch, tmp_path, capsys):
    def rows_of(case):
        if case is CASES[1]:
            raise LostError("its process died")
        about = {"case": case.name, "problem": "conv2d n2 f32", "layout": "channels_first", "bytes": 1, "chosen": True}
        made = [{**about, "entrant": name, "seconds": 1e-3, "failure": None} for name in ("cudnn", "cuda/direct")]
        return made, case is CASES[2]

    changes = {
        (command, "missing"): list,
        (command, "Worker"): Here,
        (command, "OUT"): tmp_path,
        (command.correctness, "check"): lambda *_: {"cuda/direct": {"checked": 9, "skipped": 0, "failures": []}},
        (command.correctness, "unsolved"): lambda dtypes: [],
        (use, "check"): lambda name: (None, False),
        (timing, "latency"): lambda: {"fastconv": 1e-5, "torch": 1e-5},
        (timing, "copy_bandwidth"): lambda: 1e12,
        (timing, "cases"): lambda batches, dtypes: iter(CASES),
        (timing, "rows_of"): rows_of,
    }
    for (place, name), value in changes.items():
        monkeypatch.setattr(place, name, value)
    assert command.main([]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["use"] == dict.fromkeys(use.CHECKS)
    assert [row["case"] for row in result["rows"] if row["failure"]] == [CASES[1].name]
    assert result["summary"]["dense fprop f32"]["cases"] == len(CASES) - 1
    assert "its process died" in capsys.readouterr().out
    monkeypatch.setattr(timing, "cases", lambda batches, dtypes: iter(CASES[2:]))
    assert command.main(["--minutes", "1"]) == 0


def answer(value):
    return value + 1


def raise_error():
    raise ValueError("no")


def test_worker_outlives_its_jobs():
    later = time.monotonic() + 600
    with Worker() as worker:
        assert worker.run(answer, 1, deadline=later) == 2
        with pytest.raises(RuntimeError, match="ValueError: no"):
            worker.run(raise_error, deadline=later)
        with pytest.raises(LostError, match="exit status 7"):
            worker.run(os._exit, 7, deadline=later)
        with pytest.raises(LostError, match="did not end in time"):
            worker.run(time.sleep, 600, deadline=time.monotonic() + 1)
        assert worker.run(answer, 2, deadline=later) == 3
