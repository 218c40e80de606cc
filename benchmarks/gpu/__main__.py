"""Check every CUDA algorithm on the GPU, then time it beside cuDNN, and write what came out as JSON."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.gpu import correctness, timing, use
from benchmarks.gpu.worker import Worker
from benchmarks.places import OUT, RESULTS
from fastconv import info
from fastconv.backends.cuda import device
from fastconv.problem import DTYPES

FORMAT, SCHEMA = "fastconv GPU benchmark", 1
NOTHING_TO_RUN_ON = 3
# Seconds that a case or a check may take, with starting the process that it is in.
_PATIENCE = 90.0
# Whoever ends the run before its time still sees how far it came.
say = partial(print, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 if anything failed or was wrong, 3 if there is no GPU or no library for it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv)
    lacking = missing()
    if lacking:
        print("benchmarks.gpu cannot run here:", *lacking, sep="\n  ", file=sys.stderr)
        return NOTHING_TO_RUN_ON
    start = time.monotonic()
    result: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *argv]),
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device.state(),
        "versions": _versions(),
    }
    path = (RESULTS if args.save else OUT) / f"{args.save or 'gpu'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = start + 60 * args.minutes
    wrong = False
    if not args.no_check:
        result["use"] = _use()
        result["correctness"] = _check(args, start + 60 * args.minutes * args.check_share)
        result["unsolved"] = correctness.unsolved(_dtypes())
        wrong = any(map(use.is_wrong, result["use"].values())) or any(
            entry["failures"] for entry in result["correctness"].values()
        )
        _write(path, result)
    if not args.no_timing:
        with Worker() as worker:
            wrong |= _time(args, worker, deadline, path, result)
    _write(path, result)
    say(f"written to {path}")
    return 1 if wrong else 0


def missing() -> list[str]:
    """Return what stands in the way, each in words; nothing if all is there."""
    found = list(device.state()["missing"])
    if find_spec("torch") is None:
        found.append("PyTorch is not installed: pip install torch, a build for CUDA")
    else:
        import torch

        if not torch.cuda.is_available():
            found.append(f"PyTorch {torch.__version__} sees no CUDA device")
    return found


def _dtypes() -> list[str]:
    """Return the element types that arrays can have here: without ml_dtypes there is no bfloat16."""
    return [dtype for dtype in DTYPES if dtype != "bfloat16" or find_spec("ml_dtypes") is not None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="how long all may take (default: 9)")
    parser.add_argument("--check-share", type=float, default=0.4, help="the part of it for checks (default: 0.4)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 128], help="(default: 1 16 128)")
    timed, known = ["float32", "float16"], [*_dtypes(), timing.TF32]
    parser.add_argument("--dtype", nargs="+", choices=known, default=timed, help="(default: float32 float16)")
    parser.add_argument("--processes", type=int, default=correctness.PROCESSES, help="of the checks (default: 8)")
    parser.add_argument("--no-check", action="store_true", help="leave out the correctness suite")
    parser.add_argument("--no-timing", action="store_true", help="leave out the measurements")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    return parser


def _use() -> dict[str, str | None]:
    """Return what there is to say of each way to use arrays on a GPU; None where all is right."""
    found: dict[str, str | None] = {}
    with Worker() as worker:
        for name in use.CHECKS:
            try:
                found[name], lost = worker.run(use.check, name, deadline=time.monotonic() + _PATIENCE)
            except RuntimeError as error:
                found[name], lost = str(error), False
            if lost:
                worker.end()
            say(f"{name:32} {found[name] or 'right'}")
    return found


def _check(args: argparse.Namespace, deadline: float) -> dict[str, dict[str, Any]]:
    # Element types in the order of their use, so that a lack of time costs the least.
    ordered = sorted(_dtypes(), key=lambda dtype: dtype not in args.dtype)
    found = correctness.check(ordered, deadline, args.processes)
    for key, entry in found.items():
        say(f"{key:28} {entry['checked']} checked, {entry['skipped']} skipped, {len(entry['failures'])} failed")
        for failure in entry["failures"][:5]:
            say(f"    {failure}")
    return found


def _time(args: argparse.Namespace, worker: Worker, deadline: float, path: Path, result: dict[str, Any]) -> bool:
    """Measure until the time is up, into a result that is written now and then; return whether anything failed."""

    def asked(job: Callable[..., Any], *given: Any) -> Any:
        return worker.run(job, *given, deadline=time.monotonic() + _PATIENCE)

    for name, job in (("latency", timing.latency), ("copy_bandwidth", timing.copy_bandwidth)):
        try:
            result[name] = asked(job)
        except RuntimeError as error:
            result[name], result[f"{name}_failure"] = None, str(error)
        say(f"{name}: {result[name] or result[f'{name}_failure']}")
    bandwidth = result["copy_bandwidth"] or math.inf
    result["rows"] = rows = []
    for number, case in enumerate(timing.cases(args.batch, args.dtype), 1):
        if time.monotonic() > deadline:
            say(f"the time is up after {number - 1} cases")
            break
        try:
            of_case, lost = asked(timing.rows_of, case)
        except RuntimeError as error:
            of_case, lost = [timing.failed(case, str(error))], False
        if lost:
            worker.end()
        rows += of_case
        _show(case, of_case)
        if number % 20 == 0:
            result["summary"] = timing.summary(rows, bandwidth)
            _write(path, result)
    result["summary"] = timing.summary(rows, bandwidth)
    for kind, entry in result["summary"].items():
        say(f"{kind:24} {entry['best']:.2f} x cuDNN, {entry['faster']} of {entry['cases']} faster")
    return any(row["failure"] for row in rows)


def _show(case: Case, rows: Sequence[dict[str, Any]]) -> None:
    timed = {f"{row['entrant']} {row['layout']}": row["seconds"] for row in rows if row["seconds"]}
    say(case.name, *(f"{name}: {1e6 * seconds:.1f} us" for name, seconds in timed.items()), sep="  ")
    for row in rows:
        if row["failure"]:
            say(f"    {row['entrant']} {row['layout']}: {row['failure']}")


def _versions() -> dict[str, Any]:
    import torch

    return {**info.versions(), "torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
