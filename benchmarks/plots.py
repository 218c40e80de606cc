"""The report as plots: speed per layer beside the peers', and the roofline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import Report, Row

_INCHES_A_CASE = 0.3
_CHOSEN = "chosen by fastconv"
_SPEED = "GFLOP/s, counted as direct convolution"
_OWN_MARKERS = "sDv^<>pPX*"


class Look(NamedTuple):
    """How those points are drawn that belong to one algorithm or peer."""

    colour: Any
    marker: str


def draw(report: Report, directory: Path) -> list[Path]:
    """Draw both plots for each number of threads, and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for threads in dict.fromkeys(row.threads for row in report.timed):
        rows = [row for row in report.timed if row.threads == threads]
        for name, figure in (("speed", _speed(report, rows)), ("roofline", _roofline(report, rows))):
            drawn.append(directory / f"{name}_{threads}.png")
            figure.savefig(drawn[-1], dpi=110)
    return drawn


def _looks(rows: list[Row]) -> dict[str, Look]:
    """Return fastconv's algorithms in black and grey with markers of their own, the peers as coloured circles."""
    peers = {row.entrant: row.peer for row in sorted(rows, key=lambda row: row.peer)}
    own = [name for name, peer in peers.items() if not peer]
    greys = np.linspace(0.0, 0.7, len(own))
    looks = {
        name: Look((grey, grey, grey), _OWN_MARKERS[i % len(_OWN_MARKERS)])
        for i, (name, grey) in enumerate(zip(own, greys, strict=True))
    }
    others = [name for name, peer in peers.items() if peer]
    return looks | {name: Look(colormaps["tab10"](i), "o") for i, name in enumerate(others)}


def _points(axis: Axes, report: Report, rows: list[Row], place: Callable[[Row], tuple[float, float]]) -> None:
    """Draw a point for each row, and a ring around those that fastconv chooses."""
    for name, look in _looks(rows).items():
        points = [place(row) for row in rows if row.entrant == name]
        axis.plot(*zip(*points, strict=True), look.marker, color=look.colour, label=name, alpha=0.85)
    if chosen := [place(row) for row in rows if row.chosen]:
        axis.plot(*zip(*chosen, strict=True), "o", markersize=12, color="none", markeredgecolor="black", label=_CHOSEN)


def _speed(report: Report, rows: list[Row]) -> Figure:
    """Return a line for each case, with a point on it for everyone who ran it."""
    cases = {case: i for i, case in enumerate(dict.fromkeys(row.case for row in rows))}
    figure = Figure(figsize=(11, 2.2 + _INCHES_A_CASE * len(cases)), layout="constrained")
    axis = figure.add_subplot()
    _points(axis, report, rows, lambda row: (report.rates(row).gflops, cases[row.case]))
    peak = report.peak(rows[0].threads).flops / 1e9
    axis.axvline(peak, color="black", linewidth=1, label=f"peak measured: {peak:.0f} GFLOP/s")
    axis.set(xscale="log", xlabel=_SPEED, ylim=(len(cases) - 0.5, -0.5), title=_title(report, rows[0].threads))
    axis.set_yticks(list(cases.values()), list(cases))
    _finish(figure, axis)
    return figure


def _roofline(report: Report, rows: list[Row]) -> Figure:
    """Return speed over arithmetic intensity, under the machine's limits."""
    peak = report.peak(rows[0].threads)
    figure = Figure(figsize=(11, 7), layout="constrained")
    axis = figure.add_subplot()
    intensities = [row.flops / row.bytes for row in rows]
    span = np.geomspace(min(intensities) / 2, max(intensities) * 2, 200)
    roof = np.minimum(peak.flops, span * peak.bandwidth) / 1e9
    limits = f"measured: {peak.flops / 1e9:.0f} GFLOP/s, {peak.bandwidth / 1e9:.1f} GB/s"
    axis.plot(span, roof, color="black", label=limits)
    _points(axis, report, rows, lambda row: (row.flops / row.bytes, report.rates(row).gflops))
    axis.set(xscale="log", yscale="log", xlabel="operations for each byte that must move", ylabel=_SPEED)
    axis.set_title(_title(report, rows[0].threads))
    _finish(figure, axis)
    return figure


def _finish(figure: Figure, axis: Axes) -> None:
    axis.grid(alpha=0.4)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def _title(report: Report, threads: int) -> str:
    return f"{report.machine['cpu']}, {threads} thread{'s' * (threads > 1)}, {report.recorded[:10]}"
