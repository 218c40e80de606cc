"""A job: cases measured under one progress bar, and a report of them that is shown, written and drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import plots, table
from benchmarks.cases import Case
from benchmarks.measure import CALL, CHOSEN, measure
from benchmarks.peak import measure_peak
from benchmarks.peers import Peer
from benchmarks.places import OUT
from benchmarks.report import Report
from fastconv import progress, registry
from fastconv.machine import available_cores


class Step(NamedTuple):
    """A part of a job; ``run`` is given what tells the progress bar how far it is."""

    name: str
    run: Callable[[Callable[[str], None]], object]


class Job:
    """How cases are measured, and where the results go.

    Parameters
    ----------
    report : Report
        What the steps add to.
    peers : sequence of Peer
        Those to measure, if they are installed.
    threads : sequence of int
        Every case is measured with each of these numbers.
    seconds : float
        How long each case's rounds go on.
    only : sequence of str, optional
        The backends and the algorithms (``backend/name``) to measure; all by default.
    out : Path
        The directory for JSON, pictures and plots.

    Raises
    ------
    ValueError
        If there are fewer cores than threads, or no algorithms of a name in ``only``.
    """

    def __init__(
        self,
        report: Report,
        peers: Sequence[Peer],
        threads: Sequence[int],
        seconds: float,
        only: Sequence[str] | None = None,
        out: Path = OUT,
    ) -> None:
        if not all(1 <= n <= available_cores() for n in threads):
            raise ValueError(f"threads: expected 1 to {available_cores()}, the cores there are, got {threads}")
        known = {name for algorithm in registry.algorithms() for name in (algorithm.key, algorithm.backend)}
        known |= {CHOSEN, CALL}
        if unknown := set(only or ()) - known:
            raise ValueError(f"algorithms: no {min(unknown)!r}; expected some of {', '.join(sorted(known))}")
        self.report = report
        self.peers = [peer for peer in peers if peer.missing() is None]
        self.threads = list(dict.fromkeys(threads))
        self.seconds = seconds
        self.only = only
        self.out = out

    def run(self, cases: Sequence[Case], *others: Step, save: Path | None = None, rows: bool = True) -> int:
        """Measure the machine and the cases, take the other steps, then write the report and show it.

        Parameters
        ----------
        cases : sequence of Case
        *others : Step
        save : Path, optional
            Where to write the numbers, too.
        rows : bool
            Whether every row is shown.

        Returns
        -------
        int
            1 if any result was wrong, else 0.
        """
        steps = [
            *(Step(f"the machine's limits, threads: {n}", partial(self._measure_peak, n)) for n in self.threads),
            *(Step(f"{c.name}, threads: {n}", partial(self._measure, c, n)) for n in self.threads for c in cases),
            *others,
            Step("plots", lambda detail: plots.draw(self.report, self.out)),
        ]
        for step, detail in progress.track(steps, "benchmark", lambda step: step.name):
            step.run(detail)
        for path in filter(None, (self.out / "latest.json", save)):
            self.report.save(path)
            print(f"numbers: {path}", file=sys.stderr)
        print(f"pictures and plots: {self.out}", file=sys.stderr)
        table.show(self.report, rows=rows)
        return 1 if self.report.failures else 0

    def _measure_peak(self, threads: int, detail: Callable[[str], None]) -> None:
        self.report.peaks.append(measure_peak(threads))

    def _measure(self, case: Case, threads: int, detail: Callable[[str], None]) -> None:
        self.report.rows += measure(
            case, self.peers, threads=threads, seconds=self.seconds, only=self.only, progress=detail
        )
