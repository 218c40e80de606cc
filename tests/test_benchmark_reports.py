"""What is said of measurements: rates, tables, targets, problems drawn at random, plots."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import photographs, pictures, plots, report, sweep, table, targets
from benchmarks.__main__ import main
from benchmarks.peak import Peak
from benchmarks.peers import PEERS
from benchmarks.report import Figure, Report, Row
from fastconv.machine import available_cores
from fastconv.notation import format_problem, parse_problem


@pytest.fixture
def made():
    """A report with a row of each kind."""
    text = format_problem(parse_problem("conv2d c4 i8 oc4 k3 p1"))
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


def test_channels_last_problems_are_drawn_where_pytorch_has_them():
    drawn = sweep.cases(2, seed=5, layouts=("channels_last",))
    assert {case.problem.layout for case in drawn} == {"channels_last"}
    assert {case.problem.ndim for case in drawn} == {2, 3}
    assert all(case.name.startswith("random channels-last ") for case in drawn)
    both = sweep.cases(2, seed=5, layouts=("channels_first", "channels_last"))
    assert sorted(case.name for case in both) == sorted(case.name for case in drawn + sweep.cases(2, seed=5))


@pytest.mark.parametrize(("name", "layout"), [("torch", "channels_first"), ("torch channels-last", "channels_last")])
def test_pytorch_takes_what_is_drawn_at_random(name, layout):
    (torch,) = (peer for peer in PEERS if peer.name == name)
    drawn = sweep.cases(20, seed=1, layouts=(layout,))
    refused = [reason for case in drawn if (reason := torch.refuses(case.problem))]
    assert all("corrupts its memory" in reason for reason in refused)
    assert len(refused) < len(drawn) / 50


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


def test_plots_and_pictures_are_drawn(made, tmp_path):
    piece = np.tile(photographs.load("china.jpg")[:, :, 100:148, 200:264], (1, 1, 5, 4))
    drawn = plots.draw(made, tmp_path) + pictures.draw({"piece": piece}, tmp_path)
    assert [path.name for path in drawn] == ["speed_1.png", "roofline_1.png", "photographs.png", "alexnet_conv1.png"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.draw(Report("nothing was timed"), tmp_path) == []


def test_a_saved_run_is_shown_again(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.__main__.OUT", tmp_path)
    made.save(tmp_path / "saved.json")
    assert main(["plot", str(tmp_path / "saved.json")]) == 0
    assert "im2col/gemm" in capsys.readouterr().out
    assert (tmp_path / "roofline_1.png").exists()
