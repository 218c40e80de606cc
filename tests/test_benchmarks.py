"""The pieces of the benchmarks, on problems small enough to take no time."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from fakes import Fake, registered

from benchmarks import cases, families, photographs, probes, report, steps
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.job import Job, Step
from benchmarks.measure import measure, timed
from benchmarks.peak import CHAINS, Peak, fma_kernel, measure_peak
from benchmarks.peers import PEERS, Peer, select
from benchmarks.report import Report
from fastconv import networks, registry, testing
from fastconv.machine import machine
from fastconv.notation import parse_problem
from fastconv.problem import ConvProblem

SHAPES = """
    conv2d n1 c4 ih9 iw11 oc6 kh3 kw5 sh2 sw1 ph1 pw2 bias
    conv2d n2 c8 i9 oc8 k3 p1 g4
    conv2d n1 c8 i9 oc16 k3 p1 g8 bias
    conv2d n1 c8 i13 oc16 k3 p2 d2 s2 bias
    conv2d n1 c8 i13 oc16 k3 p1:2
    conv2d n1 c16 i13 oc16 k1 bias
    conv2d n1 c16 i14 oc16 k3 p1
    conv2d n2 c3 i9 oc4 k5 p2 bias
    conv2d:dgrad n2 c8 i9 oc8 k3 p1 s2 g4
    conv2d:wgrad n2 c8 i9 oc8 k3 p1 s2 g4
    conv1d n2 c3 i19 oc5 k4 s2 p1 bias
    conv1d:wgrad n2 c3 i19 oc5 k4 d2
    conv3d n1 c2 id4 ih5 iw6 oc3 kd2 kh3 kw3 s2 p1 bias
    conv3d:dgrad n1 c2 id4 ih5 iw6 oc3 kd2 kh3 kw3 s2 p1
    linear n1 c64 oc10 bias
    linear n3 c64 oc10
    max_pool2d n1 c3 i8 k2
    max_pool2d n2 c5 ih9 iw10 k3 s2 p1 ceil
    max_pool2d n1 c5 ih9 iw10 k3 s2 p1
    max_pool1d n2 c3 i13 k3 s1 d2
    avg_pool2d n1 c4 ih9 iw10 k3 s2 p1 exclude_pad
    avg_pool2d n1 c4 ih9 iw10 k3 s2 p1
    avg_pool2d n1 c4 ih9 iw10 k3 s2 p1 ceil
    avg_pool2d n1 c4 ih9 iw10 k3 s2 ceil exclude_pad
    avg_pool2d n2 c3 i7 k3 s1 p1 div5
    avg_pool3d n1 c2 i6 k3 s2 p1
    adaptive_avg_pool2d n1 c32 i7 o1
    adaptive_avg_pool2d n1 c32 i7 oh2 ow3
    adaptive_max_pool2d n1 c3 i7 o2
    lp_pool2d n2 c3 i8 k2 norm2
    conv2d:dgrad n2 c6 ih10 iw9 oc8 kh4 kw3 s2 p1 g2 prepacked
    conv1d:dgrad n1 c3 i20 oc5 k4 s3 d2 prepacked
    unfold n2 c3 ih9 iw10 kh3 kw2 sh2 sw1 p1
    unfold:dgrad n2 c3 ih9 iw10 kh3 kw2 sh2 sw1 p1
""".strip().splitlines()

SMALL = Case("small", parse_problem("conv2d c4 i8 oc4 k3 p1"))


@pytest.fixture
def peer(request):
    missing = request.param.missing()
    if missing is not None:
        pytest.skip(f"{request.param.library} is not installed: {missing}")
    return request.param


# --------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name, indirect=True)
def test_a_peer_agrees_with_the_reference_on_all_it_accepts(peer):
    accepted = 0
    for text, layout in itertools.product(SHAPES, peer.layouts):
        problem = parse_problem(text).replace(layout=layout)
        if peer.refuses(problem) is None:
            inputs = testing.random_inputs(problem)
            output = np.asarray(peer.prepare(problem, inputs, 1)())
            testing.compare(problem, (output,), testing.exact(problem, inputs), peer.error_bound(problem))
            accepted += 1
    assert accepted >= 3


@pytest.mark.parametrize("peer", [p for p in PEERS if "float64" in p.dtypes], ids=lambda p: p.name, indirect=True)
def test_a_peer_that_takes_float64_computes_in_it(peer):
    problem = parse_problem("conv2d c2 i9 oc4 k3 g2 f64")
    inputs = testing.random_inputs(problem)
    output = np.asarray(peer.prepare(problem, inputs, 1)())
    testing.compare(problem, (output,), testing.exact(problem, inputs), peer.error_bound(problem))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("conv2d c2 i8 oc2 k3 f16", "is measured in"),
        ("conv2d c2 i8 oc2 k3 cuda", "on the CPU"),
        ("conv2d c2 i8 oc2 k3 p1 reflect", "zeros only"),
        ("conv2d c2 i8 oc2 k3 relu", "epilogue"),
        ("locally_connected2d c2 i8 oc2 k3", "has no locally_connected2d"),
        ("conv2d:bgrad c2 i8 oc2 k3 bias", "computes no bgrad"),
    ],
)
def test_every_peer_says_why_it_refuses(text, reason):
    for peer in PEERS:
        assert reason in peer.refuses(parse_problem(text)), peer.name


def test_peers_without_a_layout_of_their_own_say_so():
    problem = parse_problem("conv2d c2 i8 oc2 k3 channels_last")
    reasons = {peer.refuses(problem) for peer in PEERS if not peer.name.startswith("torch channels-last")}
    assert reasons == {"is handed channels_first arrays only"}


def test_peers_are_selected_by_row_or_by_library():
    assert select(["all"]) == list(PEERS)
    assert select(["none"]) == []
    assert [peer.name for peer in select(["torch channels-last", "scipy"])] == ["torch channels-last", "scipy"]
    assert {peer.library for peer in select(["onnxruntime"])} == {"onnxruntime"}
    with pytest.raises(ValueError, match=r"peers: no 'tensorflow'.*openvino"):
        select(["tensorflow"])


def test_an_absent_peer_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.peer.find_spec", lambda name: None)
    assert PEERS[3].missing() == "pip install onnxruntime onnx"
    made = Report("test")
    assert made.absent["openvino"] == "pip install openvino"
    assert "torch" not in made.versions
    assert Job(made, PEERS, [1], 0.0).peers == []


# --------------------------------------------------------------------------------------------- measurements


class Made(Peer):
    """A peer of which a test says what it returns."""

    library = "numpy"
    ops = frozenset({"conv2d"})

    def __init__(self, name, answer):
        self.name, self.answer = name, answer

    def prepare(self, problem, inputs, threads):
        self.threads = threads
        return lambda: self.answer(problem, inputs)


def right(problem, inputs):
    return testing.exact(problem, inputs).results[0].astype(np.float32)


def wrong(problem, inputs):
    return right(problem, inputs) + 1


def unable(problem, inputs):
    raise RuntimeError("out of order")


def test_every_algorithm_and_peer_is_checked_and_timed():
    made = Made("made", right)
    rows = {row.entrant: row for row in measure(SMALL, [made], threads=1, seconds=0)}
    assert made.threads == 1
    assert rows.keys() == {*(a.key for a in registry.algorithms()), "made"}
    assert [row.entrant for row in rows.values() if row.peer] == ["made"]
    assert sum(row.chosen for row in rows.values()) == 1
    for row in rows.values():
        assert row.failure is None
        assert (row.seconds is None) == (row.refusal is not None) == (row.error is None)
    assert rows["im2col/gemm"].seconds > 0
    assert 0 <= rows["im2col/gemm"].error <= 1
    assert "pools" in rows["im2col/columns"].refusal or "convolutions" in rows["im2col/columns"].refusal


def test_what_is_wrong_is_not_timed():
    def spoil(problem, outputs):
        outputs[0][...] += 1

    with registered(Fake("spoilt", spoil=spoil), Fake("slow", refusal="is tired")):
        rows = measure(SMALL, [Made("wrong", wrong), Made("unable", unable)], threads=1, seconds=0)
    found = {row.entrant: row for row in rows}
    for name in ("fake/spoilt", "wrong"):
        assert "elements are off" in found[name].failure
        assert found[name].seconds is None
    assert found["fake/slow"].refusal == "is tired"
    # Not to be able to is no mistake, for a peer.
    assert found["unable"].refusal == "RuntimeError: out of order"
    assert found["unable"].failure is None


def test_only_some_algorithms_are_measured():
    rows = measure(SMALL, threads=1, seconds=0, only=["im2col", "naive/loops"])
    assert {row.entrant for row in rows} == {"im2col/gemm", "im2col/columns", "naive/loops"}


def test_the_chosen_one_and_the_call_are_measured():
    for direction in ("fprop", "dgrad", "wgrad"):
        case = Case("small", SMALL.problem.replace(direction=direction))
        chosen, call = measure(case, threads=1, seconds=0, only=["chosen", "call"])
        assert chosen.chosen
        assert (call.entrant, call.chosen, call.peer, call.failure) == ("fastconv call", False, False, None)
        assert call.seconds > 0
        assert 0 < call.deviation < 1e-4


@pytest.mark.parametrize(
    "text",
    ["max_pool2d c2 i8 k2", "conv2d:bgrad c2 i8 oc2 k3 bias", "linear:dgrad c2 oc3", "conv2d c2 i8 oc2 k3 relu"],
)
def test_what_no_call_is_made_of_is_said(text):
    rows = measure(Case("other", parse_problem(text)), threads=1, seconds=0, only=["call"])
    assert [row.seconds for row in rows] == [None]
    assert rows[0].refusal


def test_others_are_left_to_settle_before_a_turn(monkeypatch):
    looks = []
    monkeypatch.setattr("fastconv.tuning.time.sleep", looks.append)
    monkeypatch.setattr("fastconv.tuning.time.process_time", lambda: min(5, len(looks)))
    runs = {"one": lambda: None, "other": lambda: None}
    timed(runs, 0.01, rest=True)
    assert len(looks) >= 5 + 6  # five glances at a busy process, then one before every turn
    looks.clear()
    timed(runs, 0.01)
    assert looks == []


def test_the_slow_run_once_and_the_fast_in_rounds():
    counts = {"fast": 0, "slow": 0}

    def run(name, seconds):
        counts[name] += 1
        if seconds:  # even to sleep for no time at all lets others run
            time.sleep(seconds)

    taken = timed({"fast": lambda: run("fast", 0), "slow": lambda: run("slow", 0.1)}, 0.02)
    assert taken["slow"] > taken["fast"] > 0
    assert counts["slow"] == 2  # to warm up, and to be timed
    assert counts["fast"] > 10
    assert timed({}, 1.0) == {}


def test_a_run_that_was_interrupted_is_not_slow():
    waits = iter([0, 0.005])

    def interrupted():
        wait = next(waits, 0)
        if wait:
            time.sleep(wait)

    taken = timed({"interrupted": interrupted, "other": lambda: None}, 0.01)
    assert taken["interrupted"] < 0.002


def test_the_kernel_for_the_peak_does_its_arithmetic():
    # Chain i starts at i + 2; a step x -> 0.999 x + 0.001 leaves 0.999 of the distance to 1. The result is their sum.
    chains = CHAINS[machine().vector_bytes]
    away = chains * (chains + 1) / 2
    for count in (1, 1000):
        assert fma_kernel(machine().vector_bytes)(count) == pytest.approx(chains + 0.999**count * away, rel=1e-4)


def test_the_kernel_for_the_peak_leaves_no_chain_out():
    width = machine().vector_bytes
    (code,) = fma_kernel(width).inspect_llvm().values()
    done = len(re.findall(r"= .*call .*@llvm\.fma", code))
    # However many times the loop is unrolled.
    assert done > 0
    assert done % CHAINS[width] == 0


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr("benchmarks.peak._buffer_bytes", lambda: 1 << 20)
    peak = measure_peak(1, seconds=0.01)
    assert peak.threads == 1
    # Whatever the machine: above what a scalar loop reaches, below what none has.
    assert 1e9 < peak.flops < 1e13
    assert 1e8 < peak.bandwidth < 1e13


# --------------------------------------------------------------------------------------------------- cases


def test_every_network_is_represented_by_a_convolution():
    found = cases.representatives()
    named = {case.name.partition("/")[0] for case in found if isinstance(case.problem, ConvProblem)}
    assert named == set(networks.NETWORKS)
    assert all(case.problem.prepacked for case in found if isinstance(case.problem, ConvProblem))


def test_cases_are_the_distinct_layers():
    found = cases.layers(["lenet5", "alexnet"], n=2)
    assert len({case.problem for case in found}) == len(found)
    assert {case.problem.n for case in found} == {2}
    assert [case.name for case in found][:2] == ["lenet5/c1 n2", "lenet5/s2 n2"]
    gradients = cases.layers(["alexnet"], direction="wgrad")
    assert {case.problem.direction for case in gradients} == {"wgrad"}
    assert all(isinstance(case.problem, ConvProblem) and case.problem.bias == "none" for case in gradients)
    assert all(case.problem.bias == "channel" for case in cases.layers(["lenet5"], direction="bgrad"))
    assert not any(isinstance(case.problem, ConvProblem) for case in cases.heaviest_pools())


def test_families_are_every_direction_of_their_layers():
    for name, family in families.FAMILIES.items():
        found = [case.problem for case in families.cases(name)]
        expected = {"fprop", "dgrad"} if name == "unfold" else {"fprop", "dgrad", "wgrad"}
        assert Counter(problem.direction for problem in found) == dict.fromkeys(expected, len(family.layers))
        packed = {problem.direction for problem in found if getattr(problem, "prepacked", False)}
        assert packed == {"unfold": set(), "transposed": {"dgrad"}}.get(name, {"fprop"})


class Mine(Fake):
    """What somebody registers by its name."""

    def __init__(self):
        super().__init__("mine")


def test_ones_own_algorithm_is_registered_and_measured():
    made = cases.register(f"{__name__}:Mine")
    try:
        rows = measure(SMALL, threads=1, seconds=0)
        assert next(row for row in rows if row.entrant == "fake/mine").seconds > 0
    finally:
        registry.unregister(made.key)
    for place in ("nowhere", f"{__name__}:Nobody", "no.such.module:Mine"):
        with pytest.raises(ValueError, match=r"register: expected module:Class"):
            cases.register(place)
    with pytest.raises(TypeError, match="algorithm"):
        cases.register("fractions:Fraction")


# --------------------------------------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def image():
    return np.ascontiguousarray(photographs.load("china.jpg")[:, :, 100:148, 200:264])


def test_photographs_are_real():
    for picture in photographs.images().values():
        assert picture.shape == (1, 3, 427, 640)
        assert picture.dtype == np.float32
        assert 0 <= picture.min() < 0.1 < 0.9 < picture.max() <= 1


@pytest.mark.parametrize("work", photographs.WORK)
def test_work_on_a_photograph_is_right_in_every_backend(image, work):
    if work == "AlexNet conv1":
        image = np.tile(image, (1, 1, 5, 4))  # its input is larger than the piece
    rows = measure(photographs.case("piece", work, image), threads=1, seconds=0)
    checked = [row.entrant for row in rows if row.error is not None]
    assert {"reference/einsum", "naive/loops", "im2col/gemm"} <= set(checked)
    assert not any(row.failure for row in rows)


def test_filters_find_what_they_are_made_for():
    step = np.zeros((1, 3, 5, 6), np.float32)
    step[..., 3:] = 100
    vertical = photographs.edges(step).run()[0, 0]
    np.testing.assert_allclose(vertical[1:-1, 1:-1], [[0, 300, 300, 0]] * 3, rtol=1e-6)
    even = np.full((1, 3, 30, 30), 0.5, np.float32)
    np.testing.assert_allclose(photographs.blur(even).run(), even, rtol=1e-6)
    filters = photographs.oriented_filters(64, 3, 11, 11)
    np.testing.assert_allclose(filters.sum((2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(filters.reshape(64, -1), axis=1), 1, rtol=1e-6)
    assert len({f.tobytes() for f in filters}) == 64


# -------------------------------------------------------------------------------------------------- probes


def test_random_shapes_are_the_same_each_time():
    first, again = (list(probes.random_problems("dgrad", 30)) for _ in range(2))
    assert first == again
    assert {problem.direction for problem in first} == {"dgrad"}
    assert len(set(first)) > 25
    assert any(problem.groups == problem.ic > 1 for problem in probes.random_problems("fprop", 100))


def test_probes_measure():
    assert all(0 < figure.measured < 1e4 for figure in [*probes.overhead(), *probes.predictions("fprop", 2, 0.0)])


def test_direct_convolution_is_beside_the_peak():
    figures = probes.direct_convolution(every=100, seconds=0)
    assert len(figures) == 1 + (machine().simd == "avx512")
    assert all(figure.measured > 0 for figure in figures)


def test_a_layer_is_timed_forward_and_backward_together():
    pytest.importorskip("torch")
    mean, least = steps.layer_steps(every=100, seconds=0)
    assert mean.higher
    assert 0 < least.measured <= mean.measured
    assert re.search(", mean of [345]$", mean.what)


@pytest.mark.slow
def test_a_cold_start_is_measured():
    assert all(0 < figure.measured < 100 for figure in probes.cold_start())


# ---------------------------------------------------------------------------------------------------- jobs


def test_a_job_measures_shows_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.job.measure_peak", lambda threads: Peak(threads, 100e9, 10e9))
    taken = []
    job = Job(Report("test"), [], [1], 0.0, out=tmp_path)
    status = job.run([SMALL], Step("more", lambda detail: taken.append(1)), save=tmp_path / "kept.json")
    assert status == 0
    assert taken == [1]
    saved = report.load(tmp_path / "latest.json")
    assert saved == report.load(tmp_path / "kept.json")
    assert {row.entrant for row in saved.timed} >= {"reference/einsum", "naive/loops", "im2col/gemm"}
    assert (tmp_path / "speed_1.png").exists()
    out, err = capsys.readouterr()
    assert "im2col/gemm" in out
    assert "small, threads: 1" in err


def test_a_job_fails_if_any_result_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.job.measure_peak", lambda threads: Peak(threads, 100e9, 10e9))
    job = Job(Report("test"), [Made("wrong", wrong)], [1], 0.0, out=tmp_path)
    assert job.run([SMALL]) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--threads", "0"], "threads: expected 1 to"),
        (["--peers", "tensorflow"], "peers: no 'tensorflow'"),
        (["--register", "nowhere"], "register: expected module:Class"),
        (["layers", "lenet"], "unknown network 'lenet'"),
        (["layers", "lenet5", "--algorithms", "im2cool"], "algorithms: no 'im2cool'"),
        (["layers", "lenet5", "--batch", "-1"], "n: must be at least 0, got -1"),
        (["random", "conv4d"], "ops: no 'conv4d'; expected some of conv2d"),
        (["random", "--count", "0"], "count: expected 1 or more, got 0"),
        (["plot", "no/such/file.json"], "no/such/file.json"),
    ],
)
def test_bad_input_is_named(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_the_suites_run_under_pytest(pytestconfig, tmp_path):
    """One small layer of each suite, with somebody's own algorithm among the others."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "--peers", "none"]
    command += ["--network", "lenet5", "-k", "c3 or s2", "--register", f"{__name__}:Mine"]
    command += ["--benchmark-max-time=0.01", "--benchmark-json", str(tmp_path / "suite.json")]
    path = os.pathsep.join([str(pytestconfig.rootpath), str(pytestconfig.rootpath / "tests")])
    done = subprocess.run(
        command,
        cwd=pytestconfig.rootpath,
        # Beside other test processes, pytest-benchmark measures nothing.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = {each["name"]: each for each in json.loads((tmp_path / "suite.json").read_text())["benchmarks"]}
    assert "test_conv[lenet5/c3-im2col/gemm]" in measured
    for name in ("test_conv[lenet5/c3-fake/mine]", "test_pool[lenet5/s2-fake/mine]"):
        assert measured[name]["stats"]["median"] > 0
        assert measured[name]["extra_info"]["flops"] > 0
