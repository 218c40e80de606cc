"""Measure whole networks against PyTorch and ONNX Runtime: inference and training steps; or train on the digits."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.networks import results, table
from benchmarks.networks.entrants import ENTRANTS, Job
from benchmarks.networks.measuring import PARTS, Row, measure, title
from benchmarks.places import OUT, RESULTS
from fastconv import networks, progress
from fastconv.machine import available_cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if a result was wrong, or 2 for bad input."""
    args = _parser().parse_args(argv)
    try:
        if args.networks == ["train"]:
            return _train()
        if args.show:
            table.show(results.load(args.show))
            return 0
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
    known_parts = ", ".join(PARTS)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=["time", "memory"],
        metavar="PART",
        help=f"what to measure, of {known_parts} (default: time memory); layers tells where fastconv's time goes",
    )
    parser.add_argument(
        "--save",
        metavar="NAME",
        help="keep the numbers as benchmarks/results/NAME.json, beside those of other jobs there",
    )
    parser.add_argument("--show", metavar="NAME", help="measure nothing, show the numbers that are kept as NAME")
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
    for job, detail in progress.track(jobs, "networks", title):
        rows += measure(job, args.entrants, args.seconds, args.parts, progress=detail)
        if args.save:  # after every job: hours may be lost otherwise
            results.save(rows, args.save)
    if args.save:
        print(f"numbers: {RESULTS / args.save}.json", file=sys.stderr)
    table.show(rows)
    return 1 if any(row.failure for row in rows) else 0


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
