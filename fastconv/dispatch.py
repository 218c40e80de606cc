"""From a problem to a plan: who may, who is expected to be fastest, and why.

A plan is found by its problem and the options in force; a hit is one dictionary look-up. On a miss every
registered algorithm is asked, and what each answered is kept as data (`Choice`), which `explain` prints.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from fastconv import contest, environment, registry, tuning
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.machine import machine
from fastconv.notation import format_problem
from fastconv.options import Options, applied

log = logging.getLogger("fastconv")


class NoAlgorithmError(ValueError):
    """No registered algorithm may solve the problem under the options in force."""


@dataclass(frozen=True)
class Candidate:
    """What one algorithm answered.

    Attributes
    ----------
    algorithm : str
        ``backend/name``.
    refusal : str or None
        Why it may not be chosen; None if it may.
    predicted, measured : float or None
        Seconds a run, from the model and from an earlier `tune`.
    workspace : int or None
        Bytes of scratch memory.
    error_bound : float or None
        Relative to ``|x| conv |w|``.
    """

    algorithm: str
    refusal: str | None = None
    predicted: float | None = None
    measured: float | None = None
    workspace: int | None = None
    error_bound: float | None = None

    @property
    def seconds(self) -> float:
        """What the choice goes by: the measured time if there is one."""
        known = self.measured if self.measured is not None else self.predicted
        return math.inf if known is None else known


@dataclass(frozen=True)
class Choice:
    """Everything that the dispatcher knew when it chose. Printable; `to_dict` gives plain data.

    Attributes
    ----------
    problem : ConvProblem or PoolProblem
    options : Options
    candidates : tuple of Candidate
        Every registered algorithm, the fastest first, the refused last.
    winner : str or None
        ``backend/name``; None if all were refused.
    """

    problem: AnyProblem
    options: Options
    candidates: tuple[Candidate, ...]
    winner: str | None

    @property
    def reason(self) -> str:
        """Why the winner won, in words."""
        usable = [c for c in self.candidates if c.refusal is None]
        if not usable:
            return "every algorithm was refused"
        best = usable[0]
        if len(usable) == 1:
            return "the only one that was not refused"
        how = "predicted" if best.measured is None else "measured"
        ratio = usable[1].seconds / best.seconds if best.seconds else math.inf
        return f"{how} {_seconds(best.seconds)}, {ratio:.3g} times faster than {usable[1].algorithm}"

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as plain data, ready for JSON."""
        return {
            "problem": format_problem(self.problem),
            "options": asdict(self.options),
            "flops": self.problem.flops,
            "bytes": self.problem.bytes,
            "winner": self.winner,
            "reason": self.reason,
            "candidates": [asdict(c) for c in self.candidates],
        }

    def __str__(self) -> str:
        lines = [
            format_problem(self.problem),
            f"  {self.problem.flops / 1e6:.4g} MFLOP, {self.problem.bytes / 1e6:.4g} MB at least",
            f"  {'':2}{'algorithm':<20}{'predicted':>11}{'measured':>11}{'workspace':>12}{'error bound':>13}",
        ]
        for c in self.candidates:
            mark = "->" if c.algorithm == self.winner else ""
            if c.refusal is not None:
                lines.append(f"  {mark:2}{c.algorithm:<20}  refused: {c.refusal}")
                continue
            lines.append(
                f"  {mark:2}{c.algorithm:<20}{_seconds(c.predicted):>11}{_seconds(c.measured):>11}"
                f"{_bytes(c.workspace):>12}{c.error_bound:>13.2g}"
            )
        lines.append(f"  {self.winner or 'nothing'}: {self.reason}")
        return "\n".join(lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale or unit == "us":
            return f"{value / scale:.3g} {unit}"
    raise AssertionError


def _bytes(value: int | None) -> str:
    if value is None:
        return "-"
    return next(
        f"{value / s:.4g} {u}"
        for u, s in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
        if value >= s or s == 1
    )


def survey(problem: AnyProblem, options: Options) -> Choice:
    """Ask every algorithm, and choose.

    Raises
    ------
    NoAlgorithmError
        If the options name a backend or an algorithm that is not registered.
    """
    _check_names(options)
    with applied(options):
        known = tuning.database().lookup(format_problem(problem), measured_on())
        candidates = sorted(
            (_ask(a, problem, options, known) for a in reversed(registry.algorithms())),
            key=lambda c: (c.refusal is not None, c.seconds),
        )
    best = candidates[0] if candidates and candidates[0].refusal is None else None
    return Choice(problem, options, tuple(candidates), best.algorithm if best else None)


def measured_on() -> str:
    """What a measurement holds for: this machine with this many threads."""
    return f"{machine().key}, {machine().threads()} threads"


def _ask(algorithm: Algorithm, problem: AnyProblem, options: Options, known: dict[str, float | None]) -> Candidate:
    refusal = _filtered(algorithm, problem, options) or algorithm.refuses(problem)
    if refusal is None and known.get(algorithm.key, 0.0) is None:
        refusal = "its result differed from the reference when it was tuned"
    if refusal is not None:
        return Candidate(algorithm.key, refusal)
    workspace = algorithm.workspace_bytes(problem)
    if workspace > options.max_workspace and not algorithm.fallback:
        refusal = f"needs {_bytes(workspace)} of workspace, max_workspace allows {_bytes(options.max_workspace)}"
    return Candidate(
        algorithm.key,
        refusal,
        algorithm.predict(problem, machine()),
        known.get(algorithm.key),
        workspace,
        algorithm.error_bound(problem),
    )


def _filtered(algorithm: Algorithm, problem: AnyProblem, options: Options) -> str | None:
    if problem.device != algorithm.device:
        return f"computes on {algorithm.device}, the arrays are on {problem.device}"
    for name in ("backend", "algorithm"):
        wanted, has = getattr(options, name), getattr(algorithm, "name" if name == "algorithm" else name)
        if wanted is not None and wanted not in (has, algorithm.key):
            return f"options ask for {name} {wanted!r}"
    for name in ("deterministic", "strict"):
        if getattr(options, name) and not getattr(algorithm, name):
            return f"options ask for {name} algorithms"
    return None


@lru_cache(maxsize=4096)
def plan_for(problem: AnyProblem, options: Options) -> Plan:
    """Return the plan for a problem under some options, from the cache or newly chosen.

    Raises
    ------
    NoAlgorithmError
        If every algorithm refuses; the message gives each one's reason.
    """
    choice = tune(problem, options) if options.autotune else survey(problem, options)
    if choice.winner is None:
        reasons = "\n".join(f"  {c.algorithm}: {c.refusal}" for c in choice.candidates)
        raise NoAlgorithmError(f"no algorithm for {format_problem(problem)}:\n{reasons}")
    log.info("%s -> %s: %s", format_problem(problem), choice.winner, choice.reason)
    with applied(options):
        return registry.find(choice.winner).plan(problem)


def _check_names(options: Options) -> None:
    for name, has in (
        ("backend", {a.backend for a in registry.algorithms()}),
        ("algorithm", {n for a in registry.algorithms() for n in (a.name, a.key)}),
    ):
        wanted = getattr(options, name)
        if wanted is not None and wanted not in has:
            raise NoAlgorithmError(f"{name}: no {wanted!r}; registered are {', '.join(sorted(has))}")


def tune(
    problem: AnyProblem, options: Options, *, force: bool = False, progress: Callable[[str], None] | None = None
) -> Choice:
    """Measure the candidates of a problem, each checked against the reference first, and remember.

    Candidates that are predicted to be hopeless are left unmeasured. Nothing is measured anew that the
    database holds, unless ``force``.
    """
    choice = survey(problem, options)
    usable = [c for c in choice.candidates if c.refusal is None]
    if len(usable) < 2 or (not force and usable[0].measured is not None):
        return choice
    with applied(options):
        outcomes = contest.hold(problem, {c.algorithm: c.seconds for c in usable}, progress)
        for key, outcome in outcomes.items():
            if outcome.failure is not None:
                log.warning("%s is out for %s: %s", key, format_problem(problem), outcome.failure)
        results = {key: outcome.seconds for key, outcome in outcomes.items()}
        tuning.database().record(format_problem(problem), measured_on(), results)
    forget()
    return survey(problem, options)


_generation = 0


def generation() -> int:
    """Return a number that changes whenever plans made before may no longer be the best."""
    return _generation


def forget() -> None:
    """Forget all plans: algorithms or measurements have changed."""
    global _generation
    _generation += 1
    plan_for.cache_clear()


registry.on_change(forget)

if environment.read("FASTCONV_VERBOSE"):
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
