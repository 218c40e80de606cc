"""What fastconv aims at, beside what a report shows: ratios to the best peer, layer by layer, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import calls, sweep
from benchmarks.families import FAMILIES
from benchmarks.report import Report, Row
from fastconv.algorithm import AnyProblem
from fastconv.notation import parse_problem
from fastconv.problem import ConvProblem

Ratios: TypeAlias = dict[str, float]

# Bytes that no cache of a core holds.
_BEYOND_CACHES = 64 << 20


class Target(NamedTuple):
    """An aim, and how a report shows whether it is met.

    Attributes
    ----------
    what : str
    mean : float or None
        What the geometric mean over layers should reach.
    least : float or None
        What every layer should reach.
    ratios : callable
        ``ratios(report, threads)`` returns each case's figure.
    """

    what: str
    mean: float | None
    least: float | None
    ratios: Callable[[Report, int], Ratios]


class Shown(NamedTuple):
    """A target with what was measured."""

    target: Target
    threads: int
    mean: float
    least: float
    worst: str
    cases: int

    @property
    def is_met(self) -> bool:
        """Whether both figures reach what they should."""
        reached = ((self.mean, self.target.mean), (self.least, self.target.least))
        return all(wanted is None or value >= wanted for value, wanted in reached)


def _against(
    ours: Callable[[Row], bool],
    theirs: Callable[[Row], bool] = lambda row: row.peer,
    where: Callable[[AnyProblem], bool] = lambda problem: True,
) -> Callable[[Report, int], Ratios]:
    """Return a figure: the time of the fastest of them over that of the fastest of us."""

    def ratios(report: Report, threads: int) -> Ratios:
        found = {}
        for case, rows in _cases(report, threads).items():
            problem = parse_problem(rows[0].problem)
            mine = [row.seconds for row in rows if ours(row) and row.seconds]
            other = [row.seconds for row in rows if theirs(row) and row.seconds]
            if mine and other and where(problem):
                found[case] = min(other) / min(mine)
        return found

    return ratios


def _share_of_bandwidth(report: Report, threads: int) -> Ratios:
    return {
        row.case: report.rates(row).share_of_bandwidth
        for row in report.timed
        if row.threads == threads and row.chosen and row.bytes > _BEYOND_CACHES
    }


def _error_beside_ncnn(report: Report, threads: int) -> Ratios:
    """Return how many times larger the peer's error is than that of fastconv's choice."""
    found = {}
    for case, rows in _cases(report, threads).items():
        if _is_square_and_dense(parse_problem(rows[0].problem)):
            errors = {row.entrant if row.peer else row.chosen: row.deviation for row in rows if row.deviation}
            if "ncnn" in errors and True in errors:
                found[case] = errors["ncnn"] / errors[True]
    return found


def _cases(report: Report, threads: int) -> dict[str, list[Row]]:
    cases: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.threads == threads:
            cases.setdefault(row.case, []).append(row)
    return cases


def _is_square_and_dense(problem: AnyProblem) -> bool:
    """Whether it is a 3x3 layer of stride 1, of 28 by 28 outputs or more."""
    return (
        isinstance(problem, ConvProblem)
        and problem.kernel_size == (3, 3)
        and problem.stride == (1, 1)
        and problem.groups == 1
        and min(problem.output_size) >= 28
    )


def _is_depthwise(problem: AnyProblem) -> bool:
    return isinstance(problem, ConvProblem) and problem.groups == problem.ic > 1 and problem.kernel_size == (3, 3)


def _chosen(row: Row) -> bool:
    return row.chosen


def _call(row: Row) -> bool:
    return row.entrant == calls.NAME


def _torch(row: Row) -> bool:
    return row.entrant.startswith("torch")


def _named(name: str) -> Callable[[Row], bool]:
    return lambda row: row.entrant == name


FORWARD = (
    Target("plan / best peer", 1.3, 0.9, _against(_chosen)),
    Target("call / torch.nn.functional", 2.2, 1.0, _against(_call, _named("torch"))),
    Target("3x3 stride 1 from 28x28 / ncnn", 1.3, None, _against(_chosen, _named("ncnn"), _is_square_and_dense)),
    Target("the same: ncnn's error / ours", 1.0, None, _error_beside_ncnn),
    Target("depthwise 3x3 / best peer", 2.0, None, _against(_chosen, where=_is_depthwise)),
)
POOLS = (
    Target("pool / ONNX Runtime", 1.5, None, _against(_chosen, _named("onnxruntime"))),
    Target("pool beyond the caches: share of a copy's bandwidth", 0.8, None, _share_of_bandwidth),
)

# What rows are held to, by their kind.
TARGETS: dict[str, tuple[Target, ...]] = {
    "convolution fprop": FORWARD,
    **{
        f"convolution {direction}": (Target(f"{direction} / best of PyTorch", 2.0, 0.95, _against(_chosen, _torch)),)
        for direction in ("dgrad", "wgrad")
    },
    "pool fprop": POOLS,
    "pool dgrad": (Target("pool gradient / best of PyTorch", 3.0, None, _against(_chosen, _torch)),),
    **{
        name: (Target(f"{name}, all directions / best of PyTorch", family.asked, None, _against(_chosen, _torch)),)
        for name, family in FAMILIES.items()
    },
    **{
        (kind := sweep.name(op, direction, layout)): (
            Target(f"{kind} / best of PyTorch", 1.3, 1.0, _against(_chosen, _torch)),
        )
        for op, (_, _, directions) in sweep.OPS.items()
        for layout in sweep.layouts_of(op)
        for direction in directions
    },
}


def shown(report: Report) -> list[Shown]:
    """Return the targets that a report has measurements for."""
    kinds: dict[str, list[Row]] = {}
    for row in report.rows:
        kinds.setdefault(_kind(row), []).append(row)
    found = []
    for kind, targets in TARGETS.items():
        part = replace(report, rows=kinds.get(kind, []))
        for threads in dict.fromkeys(row.threads for row in part.rows):
            found += [
                _summary(target, threads, ratios) for target in targets if (ratios := target.ratios(part, threads))
            ]
    return found


def _kind(row: Row) -> str:
    family = row.case.partition("/")[0]
    if family in TARGETS:
        return family
    problem = parse_problem(row.problem)
    return f"{'convolution' if isinstance(problem, ConvProblem) else 'pool'} {problem.direction}"


def _summary(target: Target, threads: int, ratios: Ratios) -> Shown:
    worst = min(ratios, key=lambda case: ratios[case])
    return Shown(target, threads, geometric_mean(ratios.values()), ratios[worst], worst, len(ratios))


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean of ratios."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def show(report: Report, console: Console) -> None:
    """Print the targets that a report has measurements for."""
    if rows := shown(report):
        columns = ("what", "threads", "layers", "asked\nmean", "measured", "asked\nleast", "measured", "where")
        table = _table("targets: ratios, layer by layer", columns)
        for row in rows:
            asked = [f"{value:.2f}" if value is not None else "" for value in (row.target.mean, row.target.least)]
            cells = (str(row.threads), str(row.cases), asked[0], f"{row.mean:.2f}", asked[1], f"{row.least:.2f}")
            table.add_row(escape(row.target.what), *cells, escape(row.worst), style=_style(row.is_met))
        console.print(table)
    if report.figures:
        table = _table("targets: figures", ("what", "asked", "measured", "unit"))
        for figure in report.figures:
            bound = f"{'>=' if figure.higher else '<='} {figure.asked:g}"
            table.add_row(
                escape(figure.what), bound, f"{figure.measured:.3g}", figure.unit, style=_style(figure.is_met)
            )
        console.print(table)


def _style(is_met: bool) -> str:
    return "green" if is_met else ""


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption="green is what is asked, or better")
    for name in columns:
        table.add_column(name, justify="left" if name in ("what", "where", "unit") else "right", overflow="fold")
    return table
