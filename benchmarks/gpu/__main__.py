"""Check every CUDA algorithm on the GPU, then time it beside cuDNN, and write what came out as JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu import correctness, timing
from benchmarks.places import OUT, RESULTS
from fastconv import info
from fastconv.backends.cuda import device
from fastconv.problem import DTYPES

FORMAT, SCHEMA = "fastconv GPU benchmark", 1
NOTHING_TO_RUN_ON = 3


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
        result["correctness"] = _check(args, start + 60 * args.minutes * args.check_share)
        result["unsolved"] = correctness.unsolved(_dtypes())
        wrong = any(entry["failures"] for entry in result["correctness"].values())
        _write(path, result)
    if not args.no_timing:
        timing.allow_tf32(False)
        result["latency"] = timing.latency()
        print(f"a call on 1x64x8x8: {result['latency']}")
        result["copy_bandwidth"] = bandwidth = timing.copy_bandwidth()
        print(f"a copy: {bandwidth / 1e12:.2f} TB/s")
        result["rows"] = rows = []
        for number, case in enumerate(timing.cases(args.batch, args.dtype), 1):
            if time.monotonic() > deadline:
                print(f"the time is up after {number - 1} cases")
                break
            rows += _timed(case)
            if number % 20 == 0:
                result["summary"] = timing.summary(rows, bandwidth)
                _write(path, result)
        result["summary"] = timing.summary(rows, bandwidth)
        wrong |= any(row["failure"] for row in rows)
        for kind, entry in result["summary"].items():
            print(f"{kind:24} {entry['best']:.2f} x cuDNN, {entry['faster']} of {entry['cases']} faster")
    _write(path, result)
    print(f"written to {path}")
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


def _check(args: argparse.Namespace, deadline: float) -> dict[str, dict[str, Any]]:
    # Element types in the order of their use, so that a lack of time costs the least.
    ordered = sorted(_dtypes(), key=lambda dtype: dtype not in args.dtype)
    found = correctness.check(ordered, deadline, args.processes)
    for key, entry in found.items():
        print(f"{key:28} {entry['checked']} checked, {entry['skipped']} skipped, {len(entry['failures'])} failed")
        for failure in entry["failures"][:5]:
            print(f"    {failure}")
    return found


def _timed(case: Any) -> list[dict[str, Any]]:
    import cupy
    import torch

    torch.backends.cudnn.benchmark = True
    properties = torch.cuda.get_device_properties(0)
    room = torch.cuda.mem_get_info()[0] // 4
    try:
        rows = timing.measure(case, getattr(properties, "L2_cache_size", 64 << 20), room)
    except Exception as error:  # noqa: BLE001 - the other cases go on
        return [{"case": case.name, "entrant": "all", "seconds": None, "failure": f"{type(error).__name__}: {error}"}]
    finally:
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()
    timed = {f"{row['entrant']} {row['layout']}": row["seconds"] for row in rows if row["seconds"]}
    print(case.name, *(f"{name}: {1e6 * seconds:.1f} us" for name, seconds in timed.items()), sep="  ")
    for row in rows:
        if row["failure"]:
            print(f"    {row['entrant']} {row['layout']}: {row['failure']}")
    return rows


def _versions() -> dict[str, Any]:
    import torch

    return {**info.versions(), "torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
