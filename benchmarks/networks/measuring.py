"""Networks measured: entrants compared with each other, timed in rounds, and each one's memory in a process alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.measure import pinned
from benchmarks.networks.entrants import ENTRANTS, FASTCONV, Entrant, Job, Run
from fastconv import nn, tuning
from fastconv.algorithm import ERROR_CONSTANT

# What can be measured.
PARTS = ("time", "memory", "layers")
# How long a turn goes on at least: small networks run again and again, as whoever trains or serves them does.
_TURN = 0.05
# How many processes measure their memory at once: most of their time goes into importing and preparing.
_TOGETHER = 2
# Steps of training whose losses are compared.
_STEPS = 3
# Seconds that a process may take to measure its memory: some compile for minutes.
_LONGEST = 1800
# The largest error of an output, as a share of the largest: what Winograd's bound makes of many layers.
_DEVIATION = ERROR_CONSTANT * 2.0**-10


@dataclass
class Row:
    """How one entrant did on one job.

    Attributes
    ----------
    network, batch, training, threads, entrant
    seconds : float or None
        A run's; None for one that could not be measured.
    images : float or None
        A second.
    memory : int or None
        Bytes that a process of its own grew by at most, from before the network was made.
    refusal, failure : str or None
        Why it was not measured, or what was wrong with its result.
    layers : list of (path, what, seconds)
        Where fastconv's time goes, if asked for.
    recorded : str
        When.
    """

    network: str
    batch: int
    training: bool
    threads: int
    entrant: str
    seconds: float | None = None
    images: float | None = None
    memory: int | None = None
    refusal: str | None = None
    failure: str | None = None
    layers: list[tuple[str, str, float]] = field(default_factory=list)
    recorded: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def title(job: Job | Row) -> str:
    """Return what a job is, in words."""
    kind = "training step" if job.training else "inference"
    return f"{job.network}, {kind} of {job.batch}, {job.threads} thread{'s' * (job.threads > 1)}"


def measure(
    job: Job,
    names: Sequence[str],
    seconds: float,
    parts: Collection[str] = ("time", "memory"),
    progress: Callable[[str], None] = lambda part: None,
) -> list[Row]:
    """Return a row for every entrant.

    Parameters
    ----------
    job : Job
    names : sequence of str
        The entrants'.
    seconds : float
        How long the rounds go on.
    parts : collection of str
        Of `PARTS`: ``time`` compares results with fastconv's and times them in rounds; ``memory`` and ``layers`` stand
        for the fields of a row.
    progress : callable, optional
        Called with what is being done.
    """
    able: dict[str, Entrant] = {}
    rows: dict[str, Row] = {}
    for entrant in (e for e in ENTRANTS if e.name in names):
        row = rows[entrant.name] = Row(*job, entrant.name, refusal=_refusal(entrant, job))
        if row.refusal is None:
            able[entrant.name] = entrant
    if "time" in parts:
        _time(job, able, rows, seconds, progress)
    if "memory" in parts:
        progress("memory")
        left = [name for name in able if rows[name].refusal is None]
        with ThreadPoolExecutor(_TOGETHER) as pool:
            for name, peak in zip(left, pool.map(lambda name: _memory(job, name), left), strict=True):
                rows[name].memory = peak
    if "layers" in parts and FASTCONV in rows:
        progress("layers")
        rows[FASTCONV].layers = time_layers(job)
    return [rows[name] for name in names]


def _time(
    job: Job, able: dict[str, Entrant], rows: dict[str, Row], seconds: float, progress: Callable[[str], None]
) -> None:
    """Fill in the times of rows, and whether a result is wrong."""
    runs: dict[str, Run] = {}
    results: dict[str, Any] = {}
    with pinned(job.threads):
        for name, entrant in able.items():
            progress(name)
            try:
                run = entrant.prepare(job, True)
                results[name] = _first_results(run, job)
                runs[name] = run
            except Exception as error:  # noqa: BLE001 - other libraries fail in many ways
                rows[name].refusal = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        for name, result in results.items():
            rows[name].failure = _difference(result, results.get(FASTCONV, result))
        progress("rounds")
        with tuning.exclusive():
            taken = _timed(runs, seconds, rest=job.threads > 1)
    for name, value in taken.items():
        rows[name].seconds, rows[name].images = value, job.batch / value


def _timed(runs: dict[str, Run], seconds: float, rest: bool) -> dict[str, float]:
    """Return the seconds of a run of each, once memory has settled: new pages take as long as a small network.

    A run that takes longer than all rounds may is given its rounds all the same.
    """
    longest = 0.0
    for run in runs.values():
        start = time.perf_counter()
        run()
        longest = max(longest, time.perf_counter() - start)
    return tuning.measure(runs, max(seconds, 2 * longest), rest, warm=True, turn=_TURN) if runs else {}


def _first_results(run: Run, job: Job) -> Any:
    """Return the outputs; of training the losses of a few steps, which tell of gradients, too."""
    return np.array([run() for _ in range(_STEPS)]) if job.training else np.asarray(run())


def _refusal(entrant: Entrant, job: Job) -> str | None:
    if job.training and not entrant.trains:
        return "does not train"
    missing = [package for package in entrant.needs if find_spec(package) is None]
    return f"is not installed: {', '.join(missing)}" if missing else None


def _difference(result: Any, expected: Any) -> str | None:
    """Say what is wrong with a result: the outputs, or the first losses."""
    if result.shape != expected.shape or not np.isfinite(result).all():
        return f"its result has shape {result.shape}, or is not finite"
    share = float(np.abs(result - expected).max() / np.abs(expected).max())
    return None if share <= _DEVIATION else f"differs from fastconv's by {share:.2g} of the largest"


def time_layers(job: Job, repeat: int = 3) -> list[tuple[str, str, float]]:
    """Return the least seconds of everything that fastconv does, in order: path, what, seconds."""
    from fastconv.options import options

    with options(threads=job.threads):
        if not job.training:
            profile = nn.Inference(job.built(), job.images()).profile(job.images(), repeat)
            return [(step.path, step.what, seconds) for step, seconds in profile]
        return _training_layers(job, repeat)


def _training_layers(job: Job, repeat: int) -> list[tuple[str, str, float]]:
    """Return the seconds of every layer's forward and backward pass, without those of layers inside; of loss and
    optimiser, too.
    """
    network = job.built()
    loss, optimiser = nn.SoftmaxCrossEntropy(), nn.SGD(network, 1e-3, 0.9)
    clock = _Clock()
    for path, layer in network.named_layers():
        clock.watch(layer, ("forward",), (path, f"{type(layer).__name__} forward"))
        clock.watch(layer, ("backward", "backward_onto"), (path, f"{type(layer).__name__} backward"))
    clock.watch(loss, ("forward", "backward"), ("", type(loss).__name__))
    clock.watch(optimiser, ("step",), ("", f"{type(optimiser).__name__} step"))
    rounds = []
    for _ in range(repeat + 1):
        clock.taken = dict.fromkeys(clock.taken, 0.0)
        nn.train_step(network, loss, optimiser, job.images(), job.labels())
        rounds.append(clock.taken)
    return [(*name, min(taken[name] for taken in rounds[1:])) for name in clock.taken]


class _Clock:
    """Knows for how long the methods that it watches have run: each without what it calls of the others.

    Attributes
    ----------
    taken : dict of (path, what) to float
        Seconds.
    """

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], float] = {}
        self._within = [0.0]

    def watch(self, watched: Any, methods: Sequence[str], name: tuple[str, str]) -> None:
        """Time methods of one object under one name from now on."""
        self.taken[name] = 0.0
        for method in methods:
            if hasattr(watched, method):
                setattr(watched, method, self._timed(getattr(watched, method), name))

    def _timed(self, original: Callable[..., Any], name: tuple[str, str]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            start = time.perf_counter()
            result = original(*args, **kwargs)
            seconds = time.perf_counter() - start
            self.taken[name] += seconds - self._within.pop()
            self._within[-1] += seconds
            return result

        return timed


def _memory(job: Job, name: str) -> int | None:
    """Return by how much a process of its own grows at most when an entrant prepares and runs."""
    command = [sys.executable, "-m", "benchmarks.networks.peak_memory", name, json.dumps(job)]
    with suppress(subprocess.SubprocessError, ValueError, IndexError):
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LONGEST)
        return int(result.stdout.split()[-1])
    return None
