"""Measure fastconv: on photographs and one layer of every network, on whole networks, or show an earlier run."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import cases, families, photographs, pictures, plots, probes, report, sweep, table
from benchmarks.families import FAMILIES
from benchmarks.job import Job, Step
from benchmarks.measure import CALL, CHOSEN
from benchmarks.peers import select
from benchmarks.places import OUT, RESULTS
from benchmarks.report import Report
from fastconv import networks

_DIRECTIONS = ("fprop", "dgrad", "wgrad", "bgrad")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 if a result was wrong, 2 for bad input, 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace, str], int] = args.run
    try:
        return run(args, shlex.join(["python", "-m", "benchmarks", *argv]))
    except (ValueError, TypeError, OSError) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _common(seconds: float = 1.0, peers: Sequence[str] = ("all",)) -> argparse.ArgumentParser:
    """Return the options of all commands, with these defaults."""
    common = argparse.ArgumentParser(add_help=False)
    # The idle threads of one library spin for a while, and take cores from the next in the round.
    crowd = "one or several numbers (default: 1); above 1, libraries disturb each other: measure few --peers at once"
    common.add_argument("--threads", type=int, nargs="+", default=[1], help=crowd)
    rounds = "how long each case's rounds go on (default: %(default)g)"
    common.add_argument("--seconds", type=float, default=seconds, help=rounds)
    which = f"all, none, or names (default: {' '.join(peers)})"
    common.add_argument("--peers", nargs="+", default=list(peers), metavar="PEER", help=which)
    common.add_argument("--register", action="append", default=[], metavar="MODULE:CLASS", help="measure yours too")
    common.add_argument("--save", metavar="NAME", help="keep the numbers as benchmarks/results/NAME.json too")
    return common


def _parser() -> argparse.ArgumentParser:
    common = _common()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, parents=[common])
    parser.set_defaults(run=_main, algorithms=None)
    commands = parser.add_subparsers(metavar="command")

    added = commands.add_parser("main", help="photographs and one layer of every network (default)", parents=[common])
    added.set_defaults(run=_main)

    added = commands.add_parser("layers", help="the distinct layers of whole networks", parents=[common])
    added.add_argument("networks", nargs="+", metavar="NETWORK", help=f"all, or {', '.join(networks.NETWORKS)}")
    added.add_argument("--batch", type=int, nargs="+", default=[1], help="batch sizes (default: 1)")
    added.add_argument("--direction", choices=_DIRECTIONS, default="fprop")
    added.add_argument("--algorithms", nargs="+", help="only these: backends, or backend/name (default: all)")
    added.set_defaults(run=_layers)

    added = commands.add_parser("targets", help="what fastconv aims at, beside what is measured", parents=[common])
    added.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="batch sizes (default: 1 16)")
    added.add_argument("--direction", nargs="+", choices=_DIRECTIONS, default=["fprop"], help="(default: fprop)")
    added.add_argument("--every", type=int, default=1, metavar="K", help="only each K-th layer (default: 1, all)")
    added.add_argument(
        "--probes",
        nargs="*",
        choices=list(probes.PROBES),
        default=list(probes.PROBES),
        metavar="PROBE",
        help=f"what else to measure (default: all): {', '.join(probes.PROBES)}",
    )
    added.add_argument(
        "--families",
        nargs="*",
        choices=list(FAMILIES),
        default=list(FAMILIES),
        metavar="FAMILY",
        help=f"what no network here has, forward and backward (default: all): {', '.join(FAMILIES)}",
    )
    added.set_defaults(run=_targets, algorithms=[CHOSEN, CALL])

    drawn = _common(seconds=0.1, peers=["torch"])
    added = commands.add_parser("random", help="problems drawn at random, beside PyTorch", parents=[drawn])
    added.add_argument("ops", nargs="*", metavar="OP", help=f"all (default), or {', '.join(sweep.OPS)}")
    added.add_argument("--count", type=int, default=10, help="problems of each op and direction (default: 10)")
    added.add_argument("--seed", type=int, default=1, help="for the same problems again (default: 1)")
    layouts = ("channels_first", "channels_last")
    orders = "memory orders of maps, as far as PyTorch has them (default: channels_first)"
    added.add_argument("--layout", nargs="+", choices=layouts, default=layouts[:1], help=orders)
    added.set_defaults(run=_random, algorithms=[CHOSEN])

    added = commands.add_parser("plot", help="the table and the plots of a saved run")
    added.add_argument("file", type=Path)
    added.set_defaults(run=_plot)
    return parser


def _job(args: argparse.Namespace, command: str) -> Job:
    for place in args.register:
        cases.register(place)
    return Job(Report(command), select(args.peers), args.threads, args.seconds, args.algorithms)


def _save(args: argparse.Namespace) -> Path | None:
    return RESULTS / f"{args.save}.json" if args.save else None


def _main(args: argparse.Namespace, command: str) -> int:
    drawing = Step("pictures", lambda detail: pictures.draw(photographs.images(), OUT))
    selected = [*photographs.cases(), *cases.representatives()]
    return _job(args, command).run(selected, drawing, save=_save(args))


def _layers(args: argparse.Namespace, command: str) -> int:
    names = list(networks.NETWORKS) if args.networks == ["all"] else args.networks
    selected = [case for n in args.batch for case in cases.layers(names, n, args.direction)]
    return _job(args, command).run(selected, save=_save(args))


def _targets(args: argparse.Namespace, command: str) -> int:
    if args.every < 1:
        raise ValueError(f"every: expected 1 or more, got {args.every}")
    job = _job(args, command)
    selected = [
        case
        for direction in args.direction
        for n in args.batch
        for case in cases.layers(list(networks.NETWORKS), n, direction)[:: args.every]
    ]
    selected += [case for name in args.families for case in families.cases(name)]
    others = [
        Step(name, lambda detail, measure=probes.PROBES[name]: job.report.figures.extend(measure()))
        for name in args.probes
    ]
    return job.run(selected, *others, save=_save(args), rows=False)


def _random(args: argparse.Namespace, command: str) -> int:
    if args.count < 1:
        raise ValueError(f"count: expected 1 or more, got {args.count}")
    if unknown := set(args.ops) - set(sweep.OPS):
        raise ValueError(f"ops: no {min(unknown)!r}; expected some of {', '.join(sweep.OPS)}")
    job = _job(args, command)
    selected = sweep.cases(args.count, args.seed, args.ops or tuple(sweep.OPS), args.layout)
    status = job.run(selected, save=_save(args), rows=False)
    table.show_slowest(job.report)
    return status


def _plot(args: argparse.Namespace, command: str) -> int:
    saved = report.load(args.file)
    table.show(saved)
    for path in plots.draw(saved, OUT):
        print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
