"""What was measured, as data: rows, and a report of them with all that they depend on. JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peak import Peak
from benchmarks.peers import PEERS
from fastconv import files, info
from fastconv.machine import machine

FORMAT = "fastconv benchmark"
SCHEMA = 2


@dataclass(frozen=True)
class Row:
    """How one entrant did on one case.

    Attributes
    ----------
    case : str
        The layer, or the photograph and what is done to it.
    problem : str
        Its text form.
    flops, bytes : int
        Of the direct method, and what must move at least.
    threads : int
    entrant : str
        An algorithm's key or a peer's name.
    peer : bool
        Which of the two.
    chosen : bool
        Whether fastconv's dispatcher takes this algorithm.
    seconds : float or None
        What a run took; None if it was not timed.
    error : float or None
        The largest error of any element, as a share of what is allowed there.
    deviation : float or None
        The largest error of any element, as a share of the largest element.
    refusal : str or None
        Why it was not measured.
    failure : str or None
        What was wrong with its result.
    """

    case: str
    problem: str
    flops: int
    bytes: int
    threads: int
    entrant: str
    peer: bool
    chosen: bool = False
    seconds: float | None = None
    error: float | None = None
    deviation: float | None = None
    refusal: str | None = None
    failure: str | None = None


class Figure(NamedTuple):
    """A figure with what is asked of it: ``asked`` at most, or, with ``higher``, at least."""

    what: str
    asked: float
    measured: float
    unit: str
    higher: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is as asked."""
        return self.measured >= self.asked if self.higher else self.measured <= self.asked


class Rates(NamedTuple):
    """A row's speed: per second, and as shares of what the machine reached on as many threads.

    The share of the bandwidth is above one where arrays stay in the caches, and that of the peak where an algorithm
    needs fewer operations than the direct method, which is what is counted.
    """

    gflops: float
    gb_per_s: float
    share_of_peak: float
    share_of_bandwidth: float


@dataclass
class Report:
    """One run of the benchmark."""

    command: str
    recorded: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = field(default_factory=lambda: asdict(machine()))
    versions: dict[str, str | None] = field(default_factory=lambda: {**info.versions(), **_peer_versions()})
    absent: dict[str, str] = field(default_factory=lambda: _absent_peers())
    peaks: list[Peak] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """The rows whose result was wrong."""
        return [row for row in self.rows if row.failure is not None]

    @property
    def timed(self) -> list[Row]:
        """The rows that have a time."""
        return [row for row in self.rows if row.seconds is not None]

    def peak(self, threads: int) -> Peak:
        """Return the machine's limits on a number of threads."""
        return next(peak for peak in self.peaks if peak.threads == threads)

    def rates(self, row: Row) -> Rates:
        """Return the speed of a row that was timed."""
        assert row.seconds is not None
        peak = self.peak(row.threads)
        flops, moved = row.flops / row.seconds, row.bytes / row.seconds
        return Rates(flops / 1e9, moved / 1e9, flops / peak.flops, moved / peak.bandwidth)

    def save(self, path: Path) -> None:
        """Write the report as JSON, its rows with their rates."""
        data = {
            "format": FORMAT,
            "schema": SCHEMA,
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "peaks": [peak._asdict() for peak in self.peaks],
            "figures": [figure._asdict() for figure in self.figures],
            "rows": [{**asdict(row), **(self.rates(row)._asdict() if row.seconds else {})} for row in self.rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, json.dumps(data, indent=1) + "\n")


def load(path: Path) -> Report:
    """Read what `Report.save` wrote.

    Raises
    ------
    ValueError
        If the file is no report, or one of another schema.
    OSError
        If it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if (data["format"], data["schema"]) != (FORMAT, SCHEMA):
            raise ValueError(f"it is {data['format']!r} of schema {data['schema']!r}, not {FORMAT!r} of {SCHEMA}")
        made = {f.name: data[f.name] for f in fields(Report)}
        made["peaks"] = [Peak(**_only(Peak._fields, peak)) for peak in data["peaks"]]
        made["rows"] = [Row(**_only((f.name for f in fields(Row)), row)) for row in data["rows"]]
        made["figures"] = [Figure(**_only(Figure._fields, figure)) for figure in data["figures"]]
        return Report(**made)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as a report ({type(error).__name__}: {error})") from None


def _only(names: Iterable[str], values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in names}


def _peer_versions() -> dict[str, str]:
    return {peer.library: peer.version for peer in PEERS if peer.missing() is None}


def _absent_peers() -> dict[str, str]:
    return {peer.library: todo for peer in PEERS if (todo := peer.missing()) is not None}
