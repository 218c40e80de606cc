"""Every command, as text and as JSON, and what bad input is answered with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

import fastconv
from fastconv import environment, networks, progress, registry
from fastconv.cli import main
from fastconv.notation import format_problem, parse_problem

TEXT = "conv2d:fprop n1 c3 i8 oc4 k3 p1 f32"
CANONICAL = format_problem(parse_problem(TEXT))


pytestmark = pytest.mark.usefixtures("cache_dir")


@pytest.fixture
def run(capsys):
    """Run a command that must succeed and return what it prints."""

    def run(*argv: str) -> str:
        status = main(argv)
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return run


@pytest.fixture
def fail(capsys):
    """Run a command that must fail as bad input does, and return its message."""

    def fail(*argv: str) -> str:
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        _, start, message = err.partition("fastconv: error: ")
        assert start
        return message

    return fail


def usable(text: str) -> set[str]:
    return {a.key for a in registry.algorithms() if a.device == "cpu" and a.refuses(parse_problem(text)) is None}


# ---------------------------------------------------------------------------------------------------- info


def test_info_says_what_is_here(run, cache_dir):
    out = run("info")
    for word in (fastconv.__version__, str(cache_dir), *environment.VARIABLES, *fastconv.available_backends()):
        assert word in out


def test_info_json(run, monkeypatch):
    monkeypatch.setenv("FASTCONV_VERBOSE", "perhaps")
    data = json.loads(run("info", "--json"))
    assert data["versions"]["fastconv"] == fastconv.__version__
    assert data["machine"]["cores"] >= 1
    assert data["database"]["records"] == 0
    assert {f"{b}/{a}" for b, entry in data["backends"].items() for a in entry["algorithms"]} == {
        a.key for a in registry.algorithms()
    }
    assert data["environment"]["FASTCONV_MAX_WORKSPACE"]["value"] == 64 << 20
    assert data["environment"]["FASTCONV_CACHE_DIR"]["is_set"]
    assert data["environment"]["FASTCONV_VERBOSE"]["value"].startswith("unreadable")


def test_info_tells_how_to_get_cuda(run, monkeypatch):
    monkeypatch.setattr("fastconv.info.find_spec", lambda name: None)
    monkeypatch.setattr("fastconv.backends.cuda.device.find_spec", lambda name: None)
    monkeypatch.setattr("fastconv.backends.cuda.device._driver", lambda: None)
    assert "pip install 'fastconv[cuda12]' or 'fastconv[cuda13]'" in run("info")
    monkeypatch.setattr("fastconv.backends.cuda.device._driver", lambda: (13, 1))
    out = run("info")
    assert "pip install 'fastconv[cuda13]'" in out
    assert "for CUDA 13.1" in out


# ------------------------------------------------------------------------------------------------- explain


def test_explain_takes_a_text_quoted_or_not(run):
    quoted, unquoted = run("explain", TEXT), run("explain", *TEXT.split())
    assert quoted == unquoted
    assert CANONICAL in quoted
    for algorithm in registry.algorithms():
        assert algorithm.key in quoted


def test_explain_takes_several_problems_of_every_form(run):
    data = json.loads(run("explain", "--json", *TEXT.split(), "lenet5/c3", "max_pool2d", "c3", "i8", "k2", "lenet5/s2"))
    assert [entry["name"] for entry in data] == [TEXT, "lenet5/c3", "max_pool2d c3 i8 k2", "lenet5/s2"]
    assert [entry["problem"].split(":")[0] for entry in data] == ["conv2d", "conv2d", "max_pool2d", "avg_pool2d"]
    assert all(entry["winner"] in {c["algorithm"] for c in entry["candidates"]} for entry in data)


def test_explain_takes_a_network(run):
    data = json.loads(run("explain", "--json", "resnet50", "--batch", "2", "--dtype", "float64"))
    distinct = networks.distinct(networks.layers("resnet50", 2, "float64"))
    assert [entry["problem"] for entry in data] == [format_problem(layer.problem) for layer in distinct]


@pytest.mark.parametrize(
    ("direction", "layers"),
    [("fprop", {"c1", "s2", "output"}), ("dgrad", {"c1", "s2"}), ("wgrad", {"c1"}), ("bgrad", {"c1"})],
)
def test_direction_of_network_layers(run, direction, layers):
    data = json.loads(run("explain", "--json", "lenet5", "--direction", direction))
    assert {f"lenet5/{layer}" for layer in layers} <= {entry["name"] for entry in data}
    assert {entry["problem"].split()[0].split(":")[1] for entry in data} == {direction}
    assert direction in ("fprop", "dgrad") or not any("pool" in entry["problem"] for entry in data)


@pytest.mark.parametrize("before", [True, False])
def test_options_stand_before_or_after_the_command(run, before):
    options = ["--backend", "reference", "--max-workspace", "2M", "--threads", "1", "--deterministic", "--json"]
    command = ["explain", TEXT]
    (entry,) = json.loads(run(*options, *command) if before else run(*command, *options))
    assert entry["options"]["backend"] == "reference"
    assert entry["options"]["max_workspace"] == 2 << 20
    assert entry["options"]["threads"] == 1
    assert entry["options"]["deterministic"] is True
    assert entry["options"]["strict"] is False
    assert entry["winner"].startswith("reference/")


# -------------------------------------------------------------------------------------------- bench, warmup


def test_bench_rates_every_algorithm(run, monkeypatch):
    monkeypatch.setattr("fastconv.contest.HOPELESS", float("inf"))
    (entry,) = json.loads(run("bench", "--json", TEXT))
    assert {result["algorithm"] for result in entry["results"]} == usable(TEXT)
    assert entry["left_out"] == []
    assert entry["chosen"] in usable(TEXT)
    assert [r["seconds"] for r in entry["results"]] == sorted(r["seconds"] for r in entry["results"])
    for result in entry["results"]:
        assert result["failure"] is None
        assert result["flops_rate"] == pytest.approx(entry["flops"] / result["seconds"])
        assert result["bytes_rate"] == pytest.approx(entry["bytes"] / result["seconds"])
        assert result["peak_share"] == pytest.approx(result["flops_rate"] / entry["assumed_peak"])
        assert 0 <= result["error"] <= 1


def test_bench_says_what_it_leaves_out(run, monkeypatch):
    monkeypatch.setattr("fastconv.contest.HOPELESS", 1e-9)
    out = run("bench", TEXT)
    chosen = next(line for line in out.splitlines() if line.startswith("->")).split()[1]
    left_out = next(line for line in out.splitlines() if "left out" in line)
    assert set(left_out.partition("slower: ")[2].split(", ")) == usable(TEXT) - {chosen}


def test_bench_shows_what_is_wrong(run, capsys):
    class Liar(type(registry.find("reference/einsum"))):
        name = "liar"
        fallback = False

        def predict(self, problem, machine):
            return 1e-9

        def error_bound(self, problem):
            return 0.0

        def plan(self, problem):
            def lie(inputs, outputs):
                outputs[0][...] = 1

            return fastconv.Plan(problem, self, lie)

    registry.register(Liar())
    try:
        assert main(["bench", "lenet5/s2", TEXT, "max_pool2d c3 i8 k2"]) == 1
        out = capsys.readouterr().out
        (entry,) = json.loads(run("tune", "--json", TEXT))
    finally:
        registry.unregister("reference/liar")
    assert "reference/liar is wrong: " in out
    assert "max_pool2d" in out
    assert next(c for c in entry["candidates"] if c["algorithm"] == "reference/liar")["refusal"]
    assert entry["winner"] != "reference/liar"


def test_warmup_names_what_it_warmed(run):
    (first, second) = json.loads(run("warmup", "--json", TEXT, "lenet5/s2"))
    assert first["winner"] in usable(TEXT)
    assert first["seconds"] > 0
    assert second["name"] == "lenet5/s2"
    assert CANONICAL in run("warmup", TEXT)


# ---------------------------------------------------------------------------------------------------- tune


def test_tune_measures_and_remembers(run, cache_dir):
    (entry,) = json.loads(run("tune", "--json", TEXT))
    measured = {c["algorithm"]: c["measured"] for c in entry["candidates"] if c["measured"] is not None}
    assert entry["winner"] == min(measured, key=measured.__getitem__)
    (again,) = json.loads(run("tune", "--json", TEXT))
    assert again["candidates"] == entry["candidates"]
    (forced,) = json.loads(run("tune", "--json", "--force", TEXT))
    assert forced["candidates"] != entry["candidates"]
    assert json.loads(run("info", "--json"))["database"]["records"] == 2  # packed beforehand and not


def test_database_goes_out_and_comes_back(run, fail, cache_dir):
    run("tune", TEXT)
    exported = str(cache_dir / "exported.json")
    assert json.loads(run("tune", "--export", exported, "--json"))["exported"] == 2
    assert json.loads(run("tune", "--clear", "--json"))["cleared"] == 2
    assert json.loads(run("info", "--json"))["database"]["records"] == 0
    assert json.loads(run("tune", "--merge", exported, "--json"))["merged"] == 2
    assert json.loads(run("info", "--json"))["database"]["records"] == 2  # packed beforehand and not
    assert "exported: 2" in run("tune", "--export", exported)
    assert "missing.json" in fail("tune", "--merge", str(cache_dir / "missing.json"))
    assert "--clear" in fail("tune", "--clear", TEXT)
    for action in ("--export", "--merge"):
        assert "--force: nothing is measured" in fail("tune", action, exported, "--force")


@pytest.mark.parametrize("target", ["nowhere/exported.json", "a file/exported.json", "a folder"])
def test_export_that_cannot_be_written_names_the_file(fail, cache_dir, target):
    (cache_dir / "a file").touch()
    (cache_dir / "a folder").mkdir()
    message = fail("tune", "--export", str(cache_dir / target))
    assert message.endswith(f"'{cache_dir / target}'\n")
    assert ".tmp" not in message
    assert not list(cache_dir.glob("*.tmp"))


def test_no_memory_is_an_error_message(fail, monkeypatch):
    def starve(*args):
        raise MemoryError

    monkeypatch.setattr("fastconv.contest.hold", starve)
    assert "MemoryError" in fail("bench", TEXT)


def test_no_problem_shows_examples_that_work(fail):
    first, second = re.findall(r"'(.*?)'", fail("tune"))
    assert parse_problem(first).op == "conv2d"
    assert parse_problem(second).op == "max_pool2d"


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "command"),
        (["fly"], "fly"),
        (["explain"], "problem"),
        (["tune"], "problem"),
        (["explain", "vgg17"], "vgg17"),
        (["explain", "conv4d n1 c3 i8 oc4 k3"], "conv4d"),
        (["explain", "conv2d:sideways", "n1", "c3", "i8", "oc4", "k3"], "sideways"),
        (["explain", *TEXT.split(), "kx3"], "kx3"),
        (["explain", "conv2d n1 c3 i8 oc4"], "kh"),
        (["explain", "conv2d n1 c3 i8 oc4 k9"], "weight"),
        (["explain", "lenet5/c9"], "c9"),
        (["explain", "lenet6/c1"], "lenet6"),
        (["explain", "lenet5/s2", "--direction", "wgrad"], "wgrad"),
        (["explain", "lenet5", "--batch", "-1"], "batch"),
        (["explain", "lenet5", "--batch", "0"], "batch"),
        (["explain", "conv2d n0 c3 i8 oc4 k3"], "n0"),
        (["explain", "lenet5", "--dtype", "int8"], "int8"),
        (["explain", TEXT, "--batch", "2"], "--batch"),
        (["explain", TEXT, "--max-workspace", "much"], "much"),
        (["explain", TEXT, "--threads", "0"], "--threads"),
        (["bench", TEXT, "--backend", "nothing"], "nothing"),
        (["tune", TEXT, "--algorithm", "nothing"], "nothing"),
        (["warmup", TEXT, "--backend", "nothing"], "nothing"),
        (["info", "--unknown"], "--unknown"),
    ],
)
def test_bad_input_is_named(fail, argv, named):
    assert named in fail(*argv)


def test_unreadable_environment_is_named(fail, monkeypatch):
    # The package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["fastconv.options"], "_default", None)
    monkeypatch.setenv("FASTCONV_THREADS", "many")
    assert "FASTCONV_THREADS='many'" in fail("explain", TEXT)


# ------------------------------------------------------------------------------------------------- process


def test_interruption(capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastconv.dispatch.survey", interrupt)
    assert main(["explain", TEXT]) == 130


def fastconv_process(*argv: str, **settings) -> subprocess.Popen:
    command = [sys.executable, "-m", "fastconv", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def test_module_runs_and_help_is_quick_and_light():
    code = "import sys; from fastconv.cli import main; main(sys.argv[1:])"
    probe = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); " + code
    done = subprocess.run([sys.executable, "-c", probe, "--help"], capture_output=True, text=True, check=True)
    assert "explain" in done.stdout
    loaded = set(done.stderr.split())
    assert "fastconv.cli" in loaded
    assert not loaded & {"numba", "llvmlite", "rich", "cupy", "torch"}


def test_broken_pipe_is_no_error():
    process = fastconv_process("explain", "resnet50")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_results_and_progress_are_kept_apart():
    out, err = fastconv_process("warmup", TEXT, env=os.environ).communicate()
    assert CANONICAL in out
    assert "warming up" not in out
    assert f"warming up 1/1: {TEXT}" in err


def test_progress_without_a_terminal_is_a_line_an_item(capsys):
    for item, detail in progress.track(["a", "b"], "trying", lambda item: item * 3):
        detail(f"part of {item}")
    assert capsys.readouterr() == ("", "trying 1/2: aaa\ntrying 2/2: bbb\n")


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for item, detail in progress.track(["a", "b"], "trying"):
        detail("a part")
        print("result", item)
    out, err = capsys.readouterr()
    assert out == "result a\nresult b\n"
    assert "trying b" in err
