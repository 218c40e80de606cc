"""The timer: CUDA events around replayed graphs, entrants in turns, buffers that no cache holds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.cases import Case, layers
from benchmarks.gpu.correctness import lost
from benchmarks.gpu.entrants import Entrant, fastconv_entrants, sets_of, tensors_for, torch_entrant
from fastconv import networks
from fastconv.notation import format_problem
from fastconv.options import Options
from fastconv.problem import PoolProblem

# How long one turn is, and how many rounds of turns there are.
TURN, ROUNDS = 4e-3, 7


TF32 = "tf32"
"""What float32 is called among the types to measure where both sides may round to TF32."""


def cases(batches: Sequence[int], dtypes: Sequence[str]) -> Iterator[Case]:
    """Yield the distinct layers of all networks in every direction, spread so that any beginning is a fair sample.

    The last word of a case's name is its element type, or `TF32`.
    """
    found = [
        Case(f"{case.name} {dtype}", _on_gpu(case.problem, "float32" if dtype == TF32 else dtype))
        for n in batches
        for direction in ("fprop", "dgrad", "wgrad")
        for case in layers(list(networks.NETWORKS), n, direction)
        for dtype in dtypes
        if dtype != TF32 or not isinstance(case.problem, PoolProblem)
    ]
    step = next(s for s in range(int(0.618 * len(found)), len(found) + 2) if math.gcd(s, len(found)) == 1)
    yield from (found[i * step % len(found)] for i in range(len(found)))


def _on_gpu(problem: Any, dtype: str) -> Any:
    placed = problem.replace(device="cuda", dtype=dtype)
    return placed if isinstance(problem, PoolProblem) else placed.replace(prepacked=False)


def rows_of(case: Case) -> tuple[list[dict[str, Any]], bool]:
    """Return a row for each entrant and layout, and whether this process has lost the GPU."""
    import cupy
    import torch

    properties = torch.cuda.get_device_properties(0)
    try:
        room = torch.cuda.mem_get_info()[0] // 4
        rows = measure(case, getattr(properties, "L2_cache_size", 64 << 20), room)
    except Exception as error:  # noqa: BLE001 - the other cases go on
        rows = [failed(case, f"{type(error).__name__}: {error}"[:500])]
    gone = lost()
    if not gone:
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()
    return rows, gone


def failed(case: Case, why: str) -> dict[str, Any]:
    """Return the row of a case that could not be measured."""
    return {"case": case.name, "entrant": "all", "layout": "", "seconds": None, "failure": why}


def measure(case: Case, cache: int, room: int) -> list[dict[str, Any]]:
    """Time all entrants on a case in both layouts, and return a row each."""
    tf32 = case.name.endswith(TF32)
    with _settings_of_pytorch(tf32):
        return _measured(case, tf32, cache, room)


def _measured(case: Case, tf32: bool, cache: int, room: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    options = Options(max_workspace=1 << 30, tf32=tf32)
    for layout in ("channels_first", "channels_last"):
        problem = case.problem.replace(layout=layout)
        if problem.ndim == 0 and layout == "channels_last":
            continue
        tensors = tensors_for(problem, sets_of(problem, cache, room))
        peer = torch_entrant(problem, tensors)
        entrants = [*fastconv_entrants(problem, tensors, options), *([peer] if peer else [])]
        reference = peer.first() if peer else None
        timed = _rounds(entrants, len(tensors))
        for entrant, result in zip(entrants, timed, strict=True):
            result["deviation"] = _deviation(entrant, reference) if result["failure"] is None else None
            if result["deviation"] is not None and not result["deviation"] <= entrant.allowed:
                result["failure"] = f"differs from cuDNN's by {result['deviation']:.2g} of the largest element"
        rows += [
            {
                "case": case.name,
                "tf32": tf32,
                "problem": format_problem(problem),
                "flops": problem.flops,
                "bytes": problem.bytes,
                "entrant": entrant.name,
                "layout": layout,
                "chosen": entrant.chosen,
                **result,
            }
            for entrant, result in zip(entrants, timed, strict=True)
        ]
    return rows


def _deviation(entrant: Entrant, reference: Any) -> float | None:
    if reference is None or entrant.name == "cudnn":
        return None
    return float(np.abs(entrant.first() - reference).max() / max(np.abs(reference).max(), 1e-30))


def _rounds(entrants: Sequence[Entrant], sets: int) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    turns: list[tuple[Callable[[], None], int] | None] = []
    for entrant in entrants:
        try:
            turns.append(_turn(entrant, sets))
            results.append({"seconds": None, "failure": None})
        except Exception as error:  # noqa: BLE001 - the others go on
            turns.append(None)
            results.append({"seconds": None, "failure": f"{type(error).__name__}: {error}"[:300]})
    times: list[list[float]] = [[] for _ in entrants]
    for _ in range(ROUNDS):
        for turn, taken in zip(turns, times, strict=True):
            if turn is not None:
                replay, runs = turn
                taken.append(_seconds(replay) / runs)
    for result, taken in zip(results, times, strict=True):
        if taken:
            result["seconds"] = statistics.median(taken)
    return results


def _turn(entrant: Entrant, sets: int) -> tuple[Callable[[], None], int]:
    """Return a graph of runs over all sets of buffers, as often as a turn takes, and how many runs those are."""
    once = entrant.capture(lambda: [entrant.run(i) for i in range(sets)] and None)
    taken = max(min(_seconds(once), _seconds(once)), 1e-6)
    repeats = max(1, min(200, round(TURN / taken)))
    return (lambda: [once() for _ in range(repeats)] and None), sets * repeats


def _seconds(work: Callable[[], None]) -> float:
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@contextmanager
def _settings_of_pytorch(tf32: bool) -> Iterator[None]:
    """Let cuDNN search for its fastest algorithm, and compute float32 as TF32 or not; set back what was before."""
    import torch

    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
        products.allow_tf32 = tf32
        try:
            yield
        finally:
            products.allow_tf32 = before


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Return the bytes a second, read and written, of a copy that no cache holds."""
    import torch

    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / min(_seconds(lambda: target.copy_(source)) for _ in range(ROUNDS))


@_settings_of_pytorch(tf32=False)
def latency() -> dict[str, float]:
    """Return the seconds of a call from Python on 1x64x8x8, where launching is all there is."""
    import cupy
    import torch

    import fastconv

    x, w = torch.randn(1, 64, 8, 8, device="cuda"), torch.randn(64, 64, 3, 3, device="cuda")
    ours = [cupy.from_dlpack(a) for a in (x, w)]
    calls: dict[str, Callable[[], Any]] = {
        "fastconv": lambda: fastconv.conv2d(*ours, padding=1),
        "torch": lambda: torch.nn.functional.conv2d(x, w, padding=1),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(500):
                call()
            torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) / 500)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def summary(rows: Iterable[dict[str, Any]], bandwidth: float = math.inf) -> dict[str, dict[str, float]]:
    """Return geometric means of cuDNN's best time over fastconv's, and how often it is faster, by kind of problem.

    Of pools also the share of a bandwidth that the best fastconv reaches.
    """
    by_case: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["seconds"] is not None and row["failure"] is None:
            about = {"kind": _kind(row), "bytes": row["bytes"]}
            best = by_case.setdefault(row["case"], about)  # type: ignore[arg-type]
            side = "cudnn" if row["entrant"] == "cudnn" else "chosen" if row["chosen"] else "other"
            for name in (side, "fastconv") if side != "cudnn" else (side,):
                best[name] = min(best.get(name, math.inf), row["seconds"])
    found: dict[str, list[dict[str, float]]] = {}
    for best in by_case.values():
        if "cudnn" in best and "fastconv" in best:
            found.setdefault(str(best["kind"]), []).append(best)
    return {
        kind: {
            "cases": len(those),
            "best": statistics.geometric_mean(b["cudnn"] / b["fastconv"] for b in those),
            "chosen": statistics.geometric_mean(b["cudnn"] / b.get("chosen", b["fastconv"]) for b in those),
            "faster": sum(b["fastconv"] < b["cudnn"] for b in those),
            **({"of_bandwidth": _of_bandwidth(those, bandwidth)} if kind.startswith("pool") else {}),
        }
        for kind, those in sorted(found.items())
    }


def _of_bandwidth(those: Sequence[dict[str, float]], bandwidth: float) -> float:
    return statistics.geometric_mean(max(b["bytes"] / b["fastconv"] / bandwidth, 1e-9) for b in those)


def _kind(row: dict[str, Any]) -> str:
    words = row["problem"].split()
    op, _, direction = words[0].partition(":")
    groups = [int(word[1:]) for word in words if word[:1] == "g" and word[1:].isdigit()]
    shape = "pool" if "pool" in op else "grouped" if groups and groups[0] > 1 else "dense"
    dtype = next((word for word in words if word in ("f32", "f64", "f16", "bf16")), "f32")
    dtype = TF32 if row.get("tf32") else dtype
    return f"{shape} {direction or 'fprop'} {dtype}"
