"""Measure whole networks against PyTorch and ONNX Runtime: inference and training steps; or train on the digits."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.networks.entrants import EAGER, ENTRANTS, FASTCONV, Job
from benchmarks.networks.measuring import Row, measure
from benchmarks.places import OUT, RESULTS
from benchmarks.report import Report
from fastconv import files, networks, progress
from fastconv.machine import available_cores

FORMAT = "fastconv networks benchmark"
SCHEMA = 1

# The share of a run below which a part of it has no line of its own.
_SMALL = 1e-3

# What is aimed at, as geometric means over the networks on two threads: how many times the best of these.
TARGETS = (("inference", EAGER, 1.6), ("inference", ("onnxruntime",), 1.0), ("training", EAGER, 1.4))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a result was wrong, or 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        if args.networks == ["train"]:
            return _train()
        return _measure(args)
    except ValueError as error:
        print(f"benchmarks.networks: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    names = f"all by default: {', '.join(networks.NETWORKS)}; or train, to train on scikit-learn's digits"
    parser.add_argument("networks", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--inference", type=int, nargs="*", default=[1, 16], metavar="BATCH", help="(default: 1 16)")
    parser.add_argument("--training", type=int, nargs="*", default=[16], metavar="BATCH", help="(default: 16)")
    parser.add_argument("--threads", type=int, nargs="+", default=[min(2, available_cores())], help="(default: 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each job's rounds go on (default: 2)")
    known = [entrant.name for entrant in ENTRANTS]
    parser.add_argument("--entrants", nargs="+", choices=known, default=known, help="(default: all)")
    parser.add_argument("--layers", action="store_true", help="show where fastconv's time goes, layer by layer")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, which takes more processes")
    parser.add_argument("--save", metavar="NAME", help="keep the numbers as benchmarks/results/NAME.json")
    return parser


def _measure(args: argparse.Namespace) -> int:
    names = args.networks or list(networks.NETWORKS)
    for name in names:
        networks.described(name)
    if not all(1 <= n <= available_cores() for n in args.threads):
        raise ValueError(f"threads: expected 1 to {available_cores()}, the cores there are, got {args.threads}")
    kinds = [(False, batch) for batch in args.inference] + [(True, batch) for batch in args.training]
    jobs = [
        Job(name, batch, training, threads) for threads in args.threads for training, batch in kinds for name in names
    ]
    rows: list[Row] = []
    for job, detail in progress.track(jobs, "networks", _title):
        rows += measure(
            job, args.entrants, args.seconds, memory=not args.no_memory, layers=args.layers, progress=detail
        )
        if args.save:  # after every job: hours may be lost otherwise
            _save(rows, args.save)
    if args.save:
        print(f"numbers: {RESULTS / args.save}.json", file=sys.stderr)
    show(rows)
    return 1 if any(row.failure for row in rows) else 0


def _title(job: Job | Row) -> str:
    kind = "training step" if job.training else "inference"
    return f"{job.network}, {kind} of {job.batch}, {job.threads} thread{'s' * (job.threads > 1)}"


def _save(rows: list[Row], name: str) -> None:
    report = Report("python -m benchmarks.networks")
    about = {key: getattr(report, key) for key in ("recorded", "machine", "versions")}
    data = {"format": FORMAT, "schema": SCHEMA, **about, "rows": [asdict(row) for row in rows]}
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, json.dumps(data, indent=1) + "\n")


def show(rows: list[Row]) -> None:
    """Print every job's times, where they go, and what is aimed at."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for title, group in groupby(rows, _title):
        found = list(group)
        own = next((row.seconds for row in found if row.entrant == FASTCONV), None)
        table = Table(title=title, title_justify="left")
        for column in ("", "ms", "images a second", "peak MiB", "times fastconv's"):
            table.add_column(column, justify="left" if not column else "right")
        for row in found:
            table.add_row(row.entrant, *_cells(row, own))
        console.print(table)
        for row in found:
            _show_layers(console, row)
    for line in means(rows):
        console.print(line)


def _cells(row: Row, own: float | None) -> list[str]:
    if row.seconds is None:
        return [row.refusal or "", "", "", ""]
    memory = "" if row.memory is None else f"{row.memory / 2**20:.{1 if row.memory < 10 << 20 else 0}f}"
    times = "" if own is None else f"{row.seconds / own:.2f}"
    wrong = f"  WRONG: {row.failure}" if row.failure else ""
    return [f"{1e3 * row.seconds:.4g}", f"{row.images:.4g}", memory, times + wrong]


def _show_layers(console: Console, row: Row) -> None:
    total = sum(seconds for _, _, seconds in row.layers)
    small = [seconds for _, _, seconds in row.layers if seconds < _SMALL * total]
    for path, what, seconds in row.layers:
        if seconds >= _SMALL * total:
            console.print(f"  {1e6 * seconds:9.0f} us {seconds / total:6.1%}  {path}  {what}", markup=False)
    if small:
        console.print(f"  {1e6 * sum(small):9.0f} us {sum(small) / total:6.1%}  in {len(small)} smaller parts")


def means(rows: list[Row]) -> list[str]:
    """Return, for each kind of job, the geometric mean over the networks of how many times faster fastconv is."""
    lines = []
    kinds = dict.fromkeys((row.training, row.batch, row.threads) for row in rows)
    for training, batch, threads in kinds:
        alike = [row for row in rows if (row.training, row.batch, row.threads) == (training, batch, threads)]
        for kind, rivals, wanted in TARGETS:
            if (kind == "training") != training:
                continue
            ratios = _ratios(alike, rivals)
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                lines.append(
                    f"{kind} of {batch}, threads: {threads}: {mean:.2f} times as fast as {' or '.join(rivals)}, "
                    f"whichever is faster, over {len(ratios)} networks; asked: {wanted}"
                )
    return lines


def _ratios(rows: list[Row], rivals: Sequence[str]) -> list[float]:
    ratios = []
    for name in dict.fromkeys(row.network for row in rows):
        seconds: dict[str, Any] = {row.entrant: row.seconds for row in rows if row.network == name}
        others = [seconds[rival] for rival in rivals if seconds.get(rival)]
        if others and seconds.get(FASTCONV):
            ratios.append(min(others) / seconds[FASTCONV])
    return ratios


def _train() -> int:
    from benchmarks.networks import digits, pictures

    trained = {}
    for name, _ in progress.track(list(digits.TASKS), "training"):
        start = time.perf_counter()
        trained[name] = digits.train(name)
        seconds = time.perf_counter() - start
        print(f"{name}: {trained[name].scores[-1]:.1%} of the held-out digits, after {seconds:.1f} s")
    for path in pictures.draw(trained, OUT):
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
