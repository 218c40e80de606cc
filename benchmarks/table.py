"""The report in the terminal."""

from __future__ import annotations

import sys
from collections import defaultdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import targets
from benchmarks.report import Report, Row

_NUMBERS = ("ms", "GFLOP/s", "GB/s", "of\npeak", "of band-\nwidth", "error /\nbound")
# Where output goes to a file there is no terminal whose width could be asked for.
_FILE_WIDTH = 120


def show(report: Report, *, rows: bool = True) -> None:
    """Print the machine, a table of all rows that were timed, why others were not, and the targets.

    Without ``rows``, those that were wrong are all that is shown of them.
    """
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)
    for line in _heading(report):
        console.print(escape(line))
    if rows:
        for threads in dict.fromkeys(row.threads for row in report.rows):
            console.print(_table(report, [row for row in report.rows if row.threads == threads], threads))
        for line in _notes(report):
            console.print(escape(line), style="dim")
    targets.show(report, console)
    for row in report.failures:
        console.print(f"[bold red]WRONG[/] {escape(f'{row.case}, {row.entrant}: {row.failure}')}")


def show_slowest(report: Report, most: int = 40) -> None:
    """Print the problems on which a peer is faster than what the dispatcher takes, the slowest first."""
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)
    rows: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in report.timed:
        rows[row.case, row.threads].append(row)
    lines = []
    for found in rows.values():
        ours = next((row for row in found if row.chosen), None)
        best = min((row for row in found if row.peer), key=_seconds, default=None)
        if ours and best and (ratio := _seconds(best) / _seconds(ours)) < 1:
            times = f"{ours.entrant} {1e6 * _seconds(ours):.0f} us, {best.entrant} {1e6 * _seconds(best):.0f} us"
            lines.append((ratio, f"{ratio:.2f}  {ours.problem}: {times}"))
    for _, line in sorted(lines)[:most]:
        console.print(escape(line))
    console.print(f"{len(lines)} of {len(rows)} problems are slower than a peer's best")


def _seconds(row: Row) -> float:
    assert row.seconds is not None
    return row.seconds


def _heading(report: Report) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    here = report.machine
    peaks = [
        f"measured on {p.threads} thread{'s' * (p.threads > 1)}: {p.flops / 1e9:.4g} GFLOP/s of float32 multiply-adds, "
        f"{p.bandwidth / 1e9:.3g} GB/s copied"
        for p in report.peaks
    ]
    return [f"{here['cpu']}, {here['cores']} cores, {here['simd']}", versions, *peaks]


def _table(report: Report, rows: list[Row], threads: int) -> Table:
    table = Table(title=f"{threads} thread{'s' * (threads > 1)}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption = "-> is fastconv's choice, green the fastest, cyan a peer"
    table.add_column("case,\nalgorithm or peer", overflow="fold")
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for case in dict.fromkeys(row.case for row in rows):
        table.add_section()
        table.add_row(escape(case), style="bold")
        timed = [row for row in rows if row.case == case and row.seconds is not None]
        for i, row in enumerate(sorted(timed, key=_seconds)):
            table.add_row(*_cells(report, row), style="green" if i == 0 else "cyan" if row.peer else "")
    return table


def _cells(report: Report, row: Row) -> list[str]:
    rates = report.rates(row)
    assert row.seconds is not None
    return [
        f"{'->' if row.chosen else '':2} {escape(row.entrant)}",
        f"{1e3 * row.seconds:.4g}",
        f"{rates.gflops:.3g}",
        f"{rates.gb_per_s:.3g}",
        f"{rates.share_of_peak:.1%}",
        f"{rates.share_of_bandwidth:.1%}",
        f"{row.error:.1g}",
    ]


def _notes(report: Report) -> list[str]:
    """Return who was left out, and why, once for all cases."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in report.rows:
        if row.refusal is not None:
            reasons[row.entrant, row.refusal].append(row.case)
    notes = [
        f"{entrant} {reason}: not measured on {len(set(cases))} case{'s' * (len(set(cases)) > 1)}"
        for (entrant, reason), cases in reasons.items()
    ]
    return notes + [f"{name} is not installed: {todo}" for name, todo in report.absent.items()]
