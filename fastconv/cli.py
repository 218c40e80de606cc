"""The command line: ``fastconv`` and ``python -m fastconv``.

Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn

from fastconv import choice, contest, dispatch, environment, info, networks, progress, tuning
from fastconv.algorithm import AnyProblem
from fastconv.machine import machine
from fastconv.notation import format_problem, parse_problem
from fastconv.options import Options, current, options
from fastconv.problem import DTYPES, ConvProblem, PoolProblem

_EXAMPLES = ("conv2d:fprop n1 ic64 ih56 iw56 oc64 kh3 kw3 p1 f32", "max_pool2d n1 c64 i112 k3 s2 p1")
_PROBLEM = f"""\
a problem is its text, such as
  {_EXAMPLES[0]}      {_EXAMPLES[1]}
or a layer of a network (resnet50/layer1.0.conv2), or a whole network (resnet50), one after the other at will.
networks: """


class Item(NamedTuple):
    """A problem with the name it was called by."""

    name: str
    problem: AnyProblem


class Part(NamedTuple):
    """A result, as plain data and as text, and the exit status that it asks for."""

    data: dict[str, Any]
    text: str
    status: int = 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}\n{self.format_usage().rstrip()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a wrong algorithm, 2 for bad input, 130 if interrupted.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; the process's by default.
    """
    try:
        args = _parser().parse_args(argv, argparse.Namespace(json=False))
        chosen = _chosen_options(args)
        # With none chosen the environment is left to who needs it: `info` shows what is wrong with it.
        with options(**chosen) if chosen else nullcontext():
            status = _show(args.command(args), args.json)
        sys.stdout.flush()
    except BrokenPipeError:  # who read has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MemoryError) as error:
        print(f"fastconv: error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="print the results as JSON")
    for name in _option_names():
        variable = environment.VARIABLES[f"FASTCONV_{name.upper()}"]
        how: dict[str, Any] = {"action": "store_true"} if variable.default is False else {"type": _reader(variable)}
        meaning = re.sub(r"^1: | \(`.*`\)$", "", variable.meaning)
        common.add_argument(f"--{name.replace('_', '-')}", help=meaning, **how)

    parser = _Parser(prog="fastconv", description="Fast convolutions, and why they are.", parents=[common])
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(run: Callable[[argparse.Namespace], Part | Iterator[Part]], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            run.__name__.strip("_"),
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        return added

    def with_problems(parser: argparse.ArgumentParser, nargs: str = "+") -> argparse.ArgumentParser:
        parser.epilog = _PROBLEM + ", ".join(networks.NETWORKS)
        parser.add_argument("words", nargs=nargs, metavar="problem", help="see below")
        positive = _reader(environment.VARIABLES["FASTCONV_THREADS"])
        parser.add_argument("--batch", type=positive, help="batch size of network layers (default: 1)")
        parser.add_argument("--dtype", choices=DTYPES, help="dtype of network layers (default: float32)")
        parser.add_argument(
            "--direction",
            choices=("fprop", "dgrad", "wgrad", "bgrad"),
            help="direction of network layers (default: fprop); pools have no wgrad and bgrad",
        )
        return parser

    command(_info, "show versions, machine, backends, CUDA, database and environment")
    with_problems(
        command(_explain, "show every algorithm for a problem, why it is refused, and what is expected of it")
    )
    with_problems(command(_bench, "check and time every algorithm that may solve a problem"))
    with_problems(command(_warmup, "compile and plan what problems need"))
    tune = with_problems(command(_tune, "measure the algorithms for a problem, and remember the fastest"), nargs="*")
    tune.add_argument("--force", action="store_true", help="measure what was measured before, too")
    actions = tune.add_mutually_exclusive_group()
    actions.add_argument("--export", metavar="FILE", help="write all measurements to a file")
    actions.add_argument("--merge", metavar="FILE", help="take over the measurements of a file")
    actions.add_argument("--clear", action="store_true", help="forget all measurements")
    return parser


def _option_names() -> list[str]:
    return [f.name for f in fields(Options) if f.name != "autotune"]


def _chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _option_names() if hasattr(args, name)}


def _reader(variable: environment.Variable) -> Callable[[str], Any]:
    """Read an option as its environment variable is read."""

    def read(text: str) -> Any:
        try:
            return variable.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return read


# ------------------------------------------------------------------------------------------------ problems


def _items(args: argparse.Namespace) -> list[Item]:
    """Return the problems that the words of the command line name, each once."""
    found: dict[AnyProblem, str] = {}
    for text in _texts(args.words):
        for item in _read(text, args):
            found.setdefault(item.problem, item.name)
    if not found:
        raise ValueError(f"problem: expected at least one, such as {_EXAMPLES[0]!r} or {_EXAMPLES[1]!r}")
    return [Item(name, problem) for problem, name in found.items()]


def _texts(words: Sequence[str]) -> Iterator[str]:
    """Join the words of each problem, which a shell takes apart unless they are quoted."""
    text: list[str] = []
    for word in words:
        if text and _begins(word):
            yield " ".join(text)
            text = []
        text.append(word)
    if text:
        yield " ".join(text)


def _begins(word: str) -> bool:
    """Whether a word begins a problem: it names a network, a layer or an op."""
    head = re.split(r"[\s:]", word.strip(), maxsplit=1)[0]
    ops = (*ConvProblem.OPS, *PoolProblem.KINDS)
    return "/" in word or head in networks.NETWORKS or head in ops or head.rstrip("123d") in ops


def _read(text: str, args: argparse.Namespace) -> list[Item]:
    n, dtype = args.batch or 1, args.dtype or "float32"
    if "/" in text:
        layer = networks.find(text, n, dtype)
        return [Item(layer.name, _turned(layer.problem, args.direction or "fprop"))]
    if text in networks.NETWORKS:
        return [
            Item(layer.name, _turned(layer.problem, args.direction or "fprop"))
            for layer in networks.distinct(networks.layers(text, n, dtype))
            if args.direction is None or args.direction in layer.problem.directions
        ]
    if not _begins(text):
        raise ValueError(f"problem: {text.split()[0]!r} is neither an op nor a network, {', '.join(networks.NETWORKS)}")
    if args.batch or args.dtype or args.direction:
        raise ValueError(f"problem: --batch, --dtype and --direction are for networks; {text!r} says its own")
    problem = parse_problem(text)
    if problem.n == 0:
        raise ValueError(f"problem: {text!r} has an empty batch, for which there is nothing to compute")
    return [Item(text, problem)]


def _turned(problem: AnyProblem, direction: str) -> AnyProblem:
    """Return a layer's forward problem, or the problem of one of its gradients."""
    if direction == "fprop":
        return problem
    changes = {"bias": "channel" if direction == "bgrad" else "none"} if isinstance(problem, ConvProblem) else {}
    turned: AnyProblem = problem.replace(direction=direction, **changes)
    return turned


# ------------------------------------------------------------------------------------------------ commands


def _name(item: Item) -> str:
    return item.name


def _part(item: Item, data: dict[str, Any], text: str, status: int = 0) -> Part:
    return Part({"name": item.name, "problem": format_problem(item.problem), **data}, text, status)


def _show(result: Part | Iterator[Part], as_json: bool) -> int:
    """Print the text of each part as it comes, or the data of all of them at the end; return the exit status."""
    data, status = [], 0
    for part in [result] if isinstance(result, Part) else result:
        data.append(part.data)
        status = max(status, part.status)
        if not as_json:
            print(part.text, flush=True)
    if as_json:
        print(json.dumps(data[0] if isinstance(result, Part) else data, indent=1))
    return status


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others, numbers as a rule, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


def _explain(args: argparse.Namespace) -> Iterator[Part]:
    for item in _items(args):
        survey = dispatch.survey(item.problem, current())
        yield _part(item, survey.to_dict(), str(survey))


def _tune(args: argparse.Namespace) -> Part | Iterator[Part]:
    if not (args.export or args.merge or args.clear):
        return _measure(args)
    if args.words:
        raise ValueError("problem: none can be given with --export, --merge or --clear")
    if args.force:
        raise ValueError("--force: nothing is measured with --export, --merge or --clear")
    return _manage(args)


def _measure(args: argparse.Namespace) -> Iterator[Part]:
    for item, detail in progress.track(_items(args), "tuning", _name):
        dispatch.plan_for(item.problem, current())  # raises if there is nothing to choose from
        tuned = dispatch.tune(item.problem, current(), force=args.force, progress=detail)
        yield _part(item, tuned.to_dict(), str(tuned))


def _manage(args: argparse.Namespace) -> Part:
    database = tuning.database()
    if args.export:
        database.export(args.export)
        data = {"exported": len(database), "to": args.export}
    elif args.merge:
        data = {"merged": database.merge(args.merge), "from": args.merge}
    else:
        data = {"cleared": len(database)}
        database.clear()
    data["database"] = str(database.path)
    return Part(data, ", ".join(f"{key}: {value}" for key, value in data.items()))


def _warmup(args: argparse.Namespace) -> Iterator[Part]:
    for item, _ in progress.track(_items(args), "warming up", _name):
        start = time.perf_counter()
        choice.warmup([item.problem])
        seconds = time.perf_counter() - start
        winner = dispatch.plan_for(item.problem, current()).algorithm.key
        yield _part(
            item,
            {"winner": winner, "seconds": seconds},
            f"{seconds:8.3f} s  {winner:<20}  {format_problem(item.problem)}",
        )


def _bench(args: argparse.Namespace) -> Iterator[Part]:
    for item, detail in progress.track(_items(args), "measuring", _name):
        problem = item.problem
        chosen = dispatch.plan_for(problem, current()).algorithm.key
        survey = dispatch.survey(problem, current())
        expected = {c.algorithm: c.seconds for c in survey.candidates if c.refusal is None}
        outcomes = contest.hold(problem, expected, detail)
        peak = machine().peak(problem.dtype)
        results = [_rated(problem, key, outcome, peak) for key, outcome in outcomes.items()]
        data = {
            "flops": problem.flops,
            "bytes": problem.bytes,
            "assumed_peak": peak,
            "threads": machine().threads(),
            "chosen": chosen,
            "results": sorted(results, key=lambda r: r["seconds"] or math.inf),
            "left_out": [key for key in expected if key not in outcomes],
        }
        yield _part(item, data, _bench_text(problem, data), status=int(any(r["failure"] for r in results)))


def _rated(problem: AnyProblem, key: str, outcome: contest.Outcome, peak: float) -> dict[str, Any]:
    rates: dict[str, float] = {}
    if outcome.seconds:
        rate = problem.flops / outcome.seconds
        rates = {"flops_rate": rate, "bytes_rate": problem.bytes / outcome.seconds, "peak_share": rate / peak}
    return {"algorithm": key, **outcome._asdict(), **rates}


def _bench_text(problem: AnyProblem, data: dict[str, Any]) -> str:
    rows = [["   algorithm", "ms", "GFLOP/s", "GB/s", "of peak", "error / bound"]]
    notes = []
    for result in data["results"]:
        if result["failure"]:
            notes.append(f"   {result['algorithm']} is wrong: {result['failure']}")
            continue
        rows.append(
            [
                f"{'->' if result['algorithm'] == data['chosen'] else '':2} {result['algorithm']}",
                f"{1e3 * result['seconds']:.4g}",
                f"{result['flops_rate'] / 1e9:.4g}",
                f"{result['bytes_rate'] / 1e9:.4g}",
                f"{result['peak_share']:.1%}",
                f"{result['error']:.2g}",
            ]
        )
    if data["left_out"]:
        notes.append(f"   left out, expected to be {contest.HOPELESS:g} times slower: {', '.join(data['left_out'])}")
    assumed = f"   peak assumed: {data['assumed_peak'] / 1e9:.4g} GFLOP/s on {data['threads']} threads"
    return "\n".join([format_problem(problem), _table(rows), *notes, assumed])


def _info(args: argparse.Namespace) -> Part:
    data = info.collect()
    here, cuda, database = data["machine"], data["cuda"], data["database"]
    sections = {
        "versions": {name: version or "not installed" for name, version in data["versions"].items()},
        "machine": {
            "processor": f"{here['cpu']}, {here['cores']} cores, {here['simd']}",
            "threads": here["threads"],
            "assumed peak": f"{here['assumed_peak_float32'] / 1e9:.4g} GFLOP/s float32",
        },
        "backends": {
            name: ", ".join(backend["algorithms"]) + ("" if backend["available"] else f" (no {backend['device']} here)")
            for name, backend in data["backends"].items()
        },
        "CUDA": {
            "driver": "none" if cuda["driver"] is None else f"for CUDA {'.'.join(map(str, cuda['driver']))}",
            "CuPy": cuda["cupy"] or "none",
            "NVRTC": "none" if cuda["nvrtc"] is None else ".".join(map(str, cuda["nvrtc"])),
            "devices": ", ".join(f"{d['name']} ({d['compute_capability']})" for d in cuda["devices"]) or "none",
            **({"missing": "; ".join(cuda["missing"])} if cuda["missing"] else {}),
        },
        "database": {"file": database["path"], "records": database["records"]},
        "frameworks": {name: version or "version unknown" for name, version in data["frameworks"].items()},
        "environment": {
            name: f"{variable['value']}{'' if variable['is_set'] else ' (default)'}: {variable['meaning']}"
            for name, variable in data["environment"].items()
        },
    }
    width = max(len(name) for lines in sections.values() for name in lines)
    text = [
        line
        for title, lines in sections.items()
        for line in (title, *(f"  {name:<{width}}  {value}" for name, value in lines.items()))
    ]
    return Part(data, "\n".join(text))
