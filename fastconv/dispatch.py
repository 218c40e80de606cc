"""From a problem to a plan: who may, who is expected to be fastest, and why.

A plan is found by its problem and the options in force; a hit is one dictionary look-up. On a miss every
registered algorithm is asked, and what each answered is kept as data (`Choice`), which `explain` prints.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any

from fastconv import contest, environment, registry, testing, tuning
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.backends.cuda import device
from fastconv.machine import machine
from fastconv.notation import format_problem
from fastconv.options import Options, applied, current
from fastconv.problem import ConvProblem

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
        None at all if the batch is empty.
    winner : str or None
        ``backend/name``; None if all were refused or there is nothing to compute.
    """

    problem: AnyProblem
    options: Options
    candidates: tuple[Candidate, ...]
    winner: str | None

    @property
    def reason(self) -> str:
        """Why the winner won, in words."""
        if self.problem.n == 0:
            return "the batch is empty: nothing to compute"
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
        name, refused = (
            max((len(c.algorithm) for c in self.candidates if (c.refusal is None) == usable), default=0)
            for usable in (True, False)
        )
        name = max(name, len("algorithm"))
        lines = [
            format_problem(self.problem),
            f"  {self.problem.flops / 1e6:.4g} MFLOP, {self.problem.bytes / 1e6:.4g} MB at least",
            f"  {'':2}{'algorithm':<{name}}{'predicted':>11}{'measured':>11}{'workspace':>12}{'error bound':>13}",
        ]
        for c in self.candidates:
            mark = "->" if c.algorithm == self.winner else ""
            if c.refusal is not None:
                lines.append(f"  {mark:2}{c.algorithm:<{refused}}  refused: {c.refusal}")
                continue
            lines.append(
                f"  {mark:2}{c.algorithm:<{name}}{_seconds(c.predicted):>11}{_seconds(c.measured):>11}"
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


def survey(problem: AnyProblem, options: Options, *, bans: bool = True) -> Choice:
    """Ask every algorithm, and choose. No algorithm is asked about an empty batch.

    Parameters
    ----------
    problem : ConvProblem or PoolProblem
    options : Options
    bans : bool
        Whether to refuse the algorithms that were wrong, or failed, when they were tuned.

    Raises
    ------
    NoAlgorithmError
        If the options name a backend or an algorithm that is not registered.
    ValueError
        If an environment variable cannot be read: algorithms that ask for it would only seem to refuse.
    """
    for name in environment.VARIABLES:
        environment.read(name)
    _check_names(options)
    if problem.n == 0:
        return Choice(problem, options, (), None)
    with applied(_comparing(options)):
        times, banned = _remembered(problem)
        candidates = sorted(
            (_ask(a, problem, options, times, banned if bans else {}) for a in reversed(registry.algorithms())),
            key=lambda c: (c.refusal is not None, c.seconds),
        )
    best = candidates[0] if candidates and candidates[0].refusal is None else None
    return Choice(problem, options, tuple(candidates), best.algorithm if best else None)


def _comparing(options: Options) -> Options:
    """Return the options under which algorithms are compared.

    If results must be the same bits for any number of threads, so must the choice: it is made as for one thread.
    """
    return options.replace(threads=1) if options.deterministic else options


def measured_on() -> str:
    """What a measurement holds for: this machine, its libraries, and what the options in force let a run use."""
    words = [machine().key, f"{machine().threads()} threads", _libraries()]
    forced = environment.read("FASTCONV_SIMD")
    if forced not in (None, machine().simd):
        words.append(f"as {forced}")
    if current().max_workspace != Options.max_workspace:
        words.append(f"max_workspace {current().max_workspace}")
    return ", ".join(words)


@cache
def _libraries() -> str:
    return ", ".join(f"{name} {tuning.installed(name)}" for name in ("numpy", "numba"))


def _forms(problem: AnyProblem) -> tuple[AnyProblem, ...]:
    """Return a problem with its weight as it is given, and with it packed: `plan` runs the second."""
    if not isinstance(problem, ConvProblem) or all(operand.name != "w" for operand in problem.inputs):
        return (problem,)
    return tuple(problem.replace(prepacked=prepacked) for prepacked in (False, True))


# What was raised when an algorithm was tuned. Unlike a wrong result that may be due to the moment, such as to a lack
# of memory, so this process alone remembers it.
_failures: dict[tuple[AnyProblem, str], str] = {}


def _remembered(problem: AnyProblem) -> tuple[dict[str, float], dict[str, str]]:
    """Return the measured seconds by algorithm, and why algorithms are out. One that is wrong in any form is out."""
    banned = {key: f"failed when it was tuned: {why}" for (of, key), why in list(_failures.items()) if of == problem}
    times = {}
    for form in _forms(problem):
        for key, seconds in tuning.database().lookup(format_problem(form), measured_on()).items():
            if seconds is None:
                banned[key] = "its result differed from the reference when it was tuned"
            elif form == problem:
                times[key] = seconds
    return times, banned


def _ask(
    algorithm: Algorithm, problem: AnyProblem, options: Options, times: dict[str, float], banned: dict[str, str]
) -> Candidate:
    try:
        return _answer(algorithm, problem, options, times, banned)
    except Exception as failure:  # noqa: BLE001 - one that is registered by a user may fail in any way
        return Candidate(algorithm.key, f"raised {type(failure).__name__} when it was asked: {failure}")


def _answer(
    algorithm: Algorithm, problem: AnyProblem, options: Options, times: dict[str, float], banned: dict[str, str]
) -> Candidate:
    refusal = _filtered(algorithm, problem, options) or algorithm.refuses(problem)
    if refusal is None and not algorithm.fallback:
        refusal = banned.get(algorithm.key)
    if refusal is not None:
        return Candidate(algorithm.key, refusal)
    predicted = float(algorithm.predict(problem, machine()))
    if not 0 <= predicted < math.inf:
        return Candidate(algorithm.key, f"predicts that a run takes {predicted} seconds")
    workspace = algorithm.workspace_bytes(problem)
    if workspace > options.max_workspace and not algorithm.fallback:
        refusal = f"needs {_bytes(workspace)} of workspace, max_workspace allows {_bytes(options.max_workspace)}"
    return Candidate(
        algorithm.key,
        refusal,
        predicted,
        times.get(algorithm.key),
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


def plan_for(problem: AnyProblem, options: Options, gpu: int | None = None) -> Plan:
    """Return the plan for a problem under some options, from the cache or newly chosen.

    Parameters
    ----------
    problem : ConvProblem or PoolProblem
    options : Options
    gpu : int, optional
        The GPU that the arrays are on, if they are on one; by default the current one.

    Raises
    ------
    NoAlgorithmError
        If every algorithm refuses; the message gives each one's reason. Also if the batch is empty.
    ValueError
        If the environment variable ``FASTCONV_VERBOSE`` cannot be read.
    """
    if gpu is None and problem.device == "cuda":
        gpu = device.current()
    return _planned(problem, options, gpu, _generation)


# Of the generation, too: what was chosen while algorithms or measurements changed is not found by it.
@lru_cache(maxsize=4096)
def _planned(problem: AnyProblem, options: Options, gpu: int | None, generation: int) -> Plan:
    _heed_verbose()
    with device.using(gpu):
        return _chosen(problem, options)


def _chosen(problem: AnyProblem, options: Options) -> Plan:
    measures = options.autotune and problem.device == "cpu"
    choice = _autotuned(problem, options) if measures else survey(problem, options)
    if choice.winner is None:
        _check_device(problem, options)
        reasons = "".join(f"\n  {c.algorithm}: {c.refusal}" for c in choice.candidates) or f" {choice.reason}"
        raise NoAlgorithmError(f"no algorithm for {format_problem(problem)}:{reasons}")
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

    A convolution is measured with its weight as it is given and packed. Candidates that are predicted to be hopeless
    are left unmeasured. Nothing is measured anew that the database holds, unless ``force``, which also gives those
    another try that were wrong or failed before.

    Raises
    ------
    ValueError
        If the problem is too large for this machine's memory, or is one on a GPU, where nothing is measured yet.
    """
    for form in _forms(problem):
        _measure(form, options, force, progress)
    return survey(problem, options)


def _autotuned(problem: AnyProblem, options: Options) -> Choice:
    try:
        return tune(problem, options)
    except (testing.UntestableError, MemoryError) as error:  # to compute with the caller's arrays may still be possible
        log.warning("not tuned: %s", error)
        return survey(problem, options)


def _measure(problem: AnyProblem, options: Options, force: bool, progress: Callable[[str], None] | None = None) -> None:
    usable = [c for c in survey(problem, options, bans=not force).candidates if c.refusal is None]
    if len(usable) < 2 or (not force and usable[0].measured is not None):
        return
    with applied(_comparing(options)):
        outcomes = contest.hold(problem, {c.algorithm: c.seconds for c in usable}, progress)
        for key, outcome in outcomes.items():
            _failures.pop((problem, key), None)
            if outcome.failure is not None:
                log.warning("%s failed on %s: %s", key, format_problem(problem), outcome.failure)
        if all(outcome.failure is not None for outcome in outcomes.values()):
            return  # so the fault lies elsewhere
        results: tuning.Results = {}
        for key, outcome in outcomes.items():
            if outcome.failure is None:
                results[key] = outcome.seconds
            elif registry.find(key).fallback:
                continue  # what solves everything is never out
            elif outcome.wrong:
                results[key] = None
            else:
                _failures[problem, key] = outcome.failure
        tuning.database().record(format_problem(problem), measured_on(), results)
    forget()


def _check_device(problem: AnyProblem, options: Options) -> None:
    """Say plainly why nothing on a GPU may run, if that is what the options ask for."""
    for name in ("backend", "algorithm"):
        wanted = getattr(options, name)
        devices = {a.device for a in registry.algorithms() if wanted in (a.backend, a.name, a.key)}
        if wanted is None or devices != {"cuda"} or problem.device == "cuda":
            continue
        missing = device.missing()
        if missing:
            raise NoAlgorithmError(f"{name}: {wanted!r} cannot run here: {missing}")
        raise NoAlgorithmError(
            f"{name}: {wanted!r} computes on arrays in GPU memory, and these are in the CPU's: pass CuPy arrays"
        )


_generations = itertools.count(1)
_generation = 0


def generation() -> int:
    """Return a number that changes whenever plans made before may no longer be the best."""
    return _generation


def forget() -> None:
    """Forget all plans: algorithms or measurements have changed."""
    global _generation
    _generation = next(_generations)
    _planned.cache_clear()


def _forget_failures_too() -> None:
    _failures.clear()
    forget()


registry.on_change(_forget_failures_too)


@cache
def _heed_verbose() -> None:
    """Log choices if the environment asks for it: where the program's logging goes, or else to standard error."""
    if not environment.read("FASTCONV_VERBOSE"):
        return
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
        log.propagate = False  # a program that sets up its logging later would have every line twice
