"""The pieces of the benchmarks, on problems small enough to take no time."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from fakes import Fake, registered

from benchmarks import cases, families, photographs, pictures, plots, probes, report, steps, sweep, table, targets
from benchmarks.__main__ import main
from benchmarks.cases import Case
from benchmarks.job import Job, Step
from benchmarks.measure import measure, timed
from benchmarks.peak import CHAINS, Peak, fma_kernel, measure_peak
from benchmarks.peers import PEERS, Peer, select
from benchmarks.report import Figure, Report, Row
from fastconv import networks, registry, testing
from fastconv.machine import available_cores, machine
from fastconv.notation import format_problem, parse_problem
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
    for text in SHAPES:
        problem = parse_problem(text)
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
        ("conv2d c2 i8 oc2 k3 channels_last", "contiguous"),
        ("conv2d c2 i8 oc2 k3 p1 reflect", "zeros only"),
        ("conv2d c2 i8 oc2 k3 relu", "epilogue"),
        ("locally_connected2d c2 i8 oc2 k3", "has no locally_connected2d"),
        ("conv2d:bgrad c2 i8 oc2 k3 bias", "computes no bgrad"),
    ],
)
def test_every_peer_says_why_it_refuses(text, reason):
    for peer in PEERS:
        assert reason in peer.refuses(parse_problem(text)), peer.name


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


# -------------------------------------------------------------------------------------------------- report


@pytest.fixture
def made():
    """A report with a row of each kind."""
    text = format_problem(SMALL.problem)
    common = {"case": "small", "problem": text, "flops": 2_000_000, "bytes": 1_000_000, "threads": 1}
    return Report(
        "python -m benchmarks",
        peaks=[Peak(1, 100e9, 10e9)],
        rows=[
            Row(**common, entrant="im2col/gemm", peer=False, chosen=True, seconds=1e-3, error=0.25),
            Row(**common, entrant="naive/loops", peer=False, seconds=1e-2, error=0.5),
            Row(**common, entrant="torch", peer=True, seconds=2e-3, error=0.125),
            Row(**common, entrant="ncnn", peer=True, refusal="takes one image at a time"),
        ],
    )


def test_rates_are_per_second_and_shares_of_the_limits(made):
    rates = made.rates(made.rows[0])
    assert rates == pytest.approx((2.0, 1.0, 0.02, 0.1))


def test_a_report_is_written_and_read(made, tmp_path):
    path = tmp_path / "new" / "report.json"
    made.save(path)
    assert report.load(path) == made
    data = json.loads(path.read_text())
    assert data["rows"][0]["gflops"] == 2.0
    assert data["machine"]["cores"] == available_cores()
    assert data["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "fastconv benchmark", "schema": 0}'])
def test_what_is_no_report_is_refused(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: cannot be read as a report"):
        report.load(path)


def test_the_table_shows_every_row_and_every_reason(made, capsys):
    made.rows.append(Row("small", made.rows[0].problem, 1, 1, 1, "fake/spoilt", False, failure="3 elements are off"))
    made.absent["nothing"] = "pip install nothing"
    table.show(made)
    shown = capsys.readouterr().out
    lines = {line.split()[-7]: line for line in shown.splitlines() if line.count("%") == 2}
    assert list(lines) == ["im2col/gemm", "torch", "naive/loops"]  # the fastest first
    assert "-> im2col/gemm" in lines["im2col/gemm"]
    assert "->" not in lines["naive/loops"]
    for cell in ("2", "1", "2.0%", "10.0%", "0.2"):
        assert cell in lines["im2col/gemm"].split()
    assert "ncnn takes one image at a time: not measured on 1 case" in shown
    assert "nothing is not installed: pip install nothing" in shown
    assert "WRONG small, fake/spoilt: 3 elements are off" in shown


def test_targets_are_ratios_of_times(made):
    dense = format_problem(parse_problem("conv2d c64 i64 oc64 k3 p1"))
    common = {"case": "dense", "problem": dense, "flops": 200_000_000, "bytes": 1_000_000, "threads": 1}
    made.rows += [
        Row(**common, entrant="numba/direct", peer=False, chosen=True, seconds=4e-3, error=0.1, deviation=1e-7),
        Row(**common, entrant="fastconv call", peer=False, seconds=5e-3, error=0.1, deviation=1e-7),
        Row(**common, entrant="ncnn", peer=True, seconds=2e-3, error=0.1, deviation=3e-7),
        Row(**common, entrant="torch", peer=True, seconds=1e-2, error=0.1, deviation=1e-7),
    ]
    found = {row.target.what: row for row in targets.shown(made)}
    best = found["plan / best peer"]
    assert (best.cases, best.worst, best.threads) == (2, "dense", 1)
    assert best.least == pytest.approx(0.5)
    assert best.mean == pytest.approx((2 * 0.5) ** 0.5)
    assert not best.is_met
    assert found["call / torch.nn.functional"].mean == pytest.approx(2.0)
    assert found["3x3 stride 1 from 28x28 / ncnn"].mean == pytest.approx(0.5)
    error = found["the same: ncnn's error / ours"]
    assert error.mean == pytest.approx(3.0)
    assert error.is_met
    assert "depthwise 3x3 / best peer" not in found


def test_families_have_targets_of_their_own(made):
    made.rows = [replace(row, case="conv1d/small") for row in made.rows]
    (only,) = targets.shown(made)
    assert only.target.what == "conv1d, all directions / best of PyTorch"
    assert only.mean == pytest.approx(2.0)


def test_problems_drawn_at_random_are_the_same_for_a_seed():
    drawn = sweep.cases(2, seed=5)
    assert drawn == sweep.cases(2, seed=5)
    assert drawn != sweep.cases(2, seed=6)
    kinds = {(case.problem.op, case.problem.direction) for case in drawn}
    assert kinds == {(op, direction) for op, (_, _, directions) in sweep.OPS.items() for direction in directions}
    assert all(parse_problem(format_problem(case.problem)) == case.problem for case in drawn)


def test_pytorch_takes_what_is_drawn_at_random():
    (torch,) = (peer for peer in PEERS if peer.name == "torch")
    refused = [reason for case in sweep.cases(20, seed=1) if (reason := torch.refuses(case.problem))]
    assert refused == []


def test_random_problems_have_targets_of_their_own(made):
    made.rows = [replace(row, case=f"{sweep.name('unfold', 'dgrad')}/3") for row in made.rows]
    (only,) = targets.shown(made)
    assert only.target.what == "random unfold dgrad / best of PyTorch"
    assert only.mean == pytest.approx(2.0)


def test_the_slowest_problems_are_shown(made, capsys):
    slow = [replace(row, case="slow", seconds=4e-3 if row.chosen else row.seconds) for row in made.rows]
    table.show_slowest(replace(made, rows=made.rows + slow))
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"0.50  {made.rows[0].problem}: im2col/gemm 4000 us, torch 2000 us"
    assert last == "1 of 2 problems are slower than a peer's best"


def test_pools_beyond_the_caches_are_held_to_the_bandwidth(made):
    text = format_problem(parse_problem("max_pool2d n16 c64 i112 k3 s2 p1"))
    common = {"problem": text, "flops": 1, "threads": 1, "entrant": "numba/pool", "peer": False, "chosen": True}
    made.rows = [Row("large", bytes=100 << 20, seconds=0.02, **common), Row("small", bytes=1, seconds=1.0, **common)]
    (only,) = targets.shown(made)
    assert only.target.what == "pool beyond the caches: share of a copy's bandwidth"
    assert only.mean == pytest.approx(0.524288)


def test_targets_are_shown_with_the_table(made, capsys):
    made.figures = [Figure("calls", 5.0, 7.5, "us"), Figure("share", 0.5, 0.75, "", higher=True)]
    assert [figure.is_met for figure in made.figures] == [False, True]
    table.show(made, rows=False)
    text = capsys.readouterr().out
    assert "naive/loops" not in text
    for shown in ("plan / best peer", "2.00", "<= 5", "7.5", ">= 0.5", "0.75"):
        assert shown in text


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


def test_plots_and_pictures_are_drawn(made, image, tmp_path):
    piece = np.tile(image, (1, 1, 5, 4))
    drawn = plots.draw(made, tmp_path) + pictures.draw({"piece": piece}, tmp_path)
    assert [path.name for path in drawn] == ["speed_1.png", "roofline_1.png", "photographs.png", "alexnet_conv1.png"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.draw(Report("nothing was timed"), tmp_path) == []


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


def test_a_saved_run_is_shown_again(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.OUT", tmp_path)
    made.save(tmp_path / "saved.json")
    assert main(["plot", str(tmp_path / "saved.json")]) == 0
    assert "im2col/gemm" in capsys.readouterr().out
    assert (tmp_path / "roofline_1.png").exists()


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
