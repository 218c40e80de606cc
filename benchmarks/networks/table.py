"""Rows as tables: one a job, and all networks beside each other in Markdown."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.networks.entrants import COMPILED, EAGER, FASTCONV, ONNXRUNTIME
from benchmarks.networks.measuring import Row, title

# The share of a run below which a part of it has no line of its own.
_SMALL = 1e-3


class Target(NamedTuple):
    """How many times as fast as the best of some rivals fastconv should be, as a geometric mean over the networks."""

    training: bool
    rivals: tuple[str, ...]
    wanted: float


# On two threads.
TARGETS = (Target(False, EAGER, 1.6), Target(False, (ONNXRUNTIME,), 1.0), Target(True, EAGER, 1.4))
_MEAN = "geometric mean"
# Who stands in a column of the overview, and under what name.
_RIVALS = {"PyTorch": EAGER, "compiled": (COMPILED,), "ONNX Runtime": (ONNXRUNTIME,)}


def show(rows: list[Row]) -> None:
    """Print every job's times, where they go, an overview of all, and what is aimed at."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for name, group in groupby(rows, title):
        found = list(group)
        own = next((row.seconds for row in found if row.entrant == FASTCONV), None)
        table = Table(title=name, title_justify="left")
        for column in ("", "ms", "images a second", "peak MiB", "times fastconv's"):
            table.add_column(column, justify="left" if not column else "right")
        for row in found:
            table.add_row(row.entrant, *_cells(row, own))
        console.print(table)
        for row in found:
            _show_layers(console, row)
    for line in ["", *times(rows), "", *memory(rows), "", *means(rows)]:
        console.print(line, markup=False, soft_wrap=True)


def _cells(row: Row, own: float | None) -> list[str]:
    memory = "" if row.memory is None else f"{row.memory / 2**20:.{1 if row.memory < 10 << 20 else 0}f}"
    if row.seconds is None:
        return [row.refusal or "", "", memory, ""]
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


def times(rows: list[Row]) -> list[str]:
    """Return a table of all networks in Markdown: milliseconds, and how many times as fast as who."""
    head, columns = ["network"], []
    for kind in _kinds(rows):
        head.append(f"{_named(*kind)}, ms")
        columns.append(_milliseconds(_of(rows, kind)))
        for name, rivals in _RIVALS.items():
            found = ratios(_of(rows, kind), rivals)
            if found:
                head.append(name)
                columns.append({network: f"{ratio:.2f}" for network, ratio in found.items()})
                columns[-1][_MEAN] = f"{_mean(found.values()):.2f}"
    return _markdown(head, columns, rows)


def memory(rows: list[Row]) -> list[str]:
    """Return a table of all networks in Markdown: by how many MiB a process grows at most."""
    head, columns = ["network"], []
    for kind in _kinds(rows):
        for name, entrants in {"fastconv": (FASTCONV,), **_RIVALS}.items():
            found = _best(_of(rows, kind), entrants, "memory")
            if found:
                head.append(f"{_named(*kind)}, MiB" if name == "fastconv" else name)
                columns.append({network: f"{value / 2**20:.0f}" for network, value in found.items()})
    return _markdown(head, columns, rows) if columns else []


def _markdown(head: Sequence[str], columns: Sequence[dict[str, str]], rows: list[Row]) -> list[str]:
    names = [*dict.fromkeys(row.network for row in rows)]
    names += [_MEAN] * any(_MEAN in column for column in columns)
    lines = [head, ["---"] * len(head), *([name, *(column.get(name, "") for column in columns)] for name in names)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _milliseconds(rows: list[Row]) -> dict[str, str]:
    found = {row.network: 1e3 * row.seconds for row in rows if row.entrant == FASTCONV and row.seconds}
    return {network: f"{value:.0f}" if value >= 100 else f"{value:.3g}" for network, value in found.items()}


def means(rows: list[Row]) -> list[str]:
    """Return, for each kind of job, the geometric mean over the networks of how many times faster fastconv is."""
    lines = []
    for kind in _kinds(rows):
        for target in TARGETS:
            found = ratios(_of(rows, kind), target.rivals) if target.training == kind[0] else {}
            if found:
                lines.append(
                    f"{_named(*kind)}, threads: {kind[2]}: {_mean(found.values()):.2f} times as fast as "
                    f"{' or '.join(target.rivals)}, whichever is faster, over {len(found)} networks; "
                    f"asked: {target.wanted}"
                )
    return lines


def ratios(rows: list[Row], rivals: Sequence[str]) -> dict[str, float]:
    """Return by network how many times as fast as the best of some rivals fastconv is."""
    own, best = _best(rows, (FASTCONV,), "seconds"), _best(rows, rivals, "seconds")
    return {network: best[network] / own[network] for network in own if network in best}


def _best(rows: list[Row], entrants: Sequence[str], what: str) -> dict[str, float]:
    """Return by network the least of what some entrants took, of right results."""
    found: dict[str, float] = {}
    for row in rows:
        value = getattr(row, what)
        if row.entrant in entrants and value is not None and row.failure is None:
            found[row.network] = min(value, found.get(row.network, math.inf))
    return found


def _kinds(rows: list[Row]) -> Iterable[tuple[bool, int, int]]:
    return dict.fromkeys((row.training, row.batch, row.threads) for row in rows)


def _of(rows: list[Row], kind: tuple[bool, int, int]) -> list[Row]:
    return [row for row in rows if (row.training, row.batch, row.threads) == kind]


def _named(training: bool, batch: int, *_: Any) -> str:
    return f"{'training' if training else 'inference'} of {batch}"


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
