"""One case after the other: every algorithm and peer is checked against the reference, then all take turns.

The timer is fastconv's own, `fastconv.tuning.measure`: rounds in which each has its turn, in one process, and the
median of each one's share of its round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import calls
from benchmarks.cases import Case
from benchmarks.peers import Peer
from benchmarks.report import Row
from fastconv import dispatch, registry, testing, tuning
from fastconv.algorithm import Algorithm, AnyProblem
from fastconv.machine import machine
from fastconv.notation import format_problem
from fastconv.options import current, options
from fastconv.problem import INDEX_DTYPES

Run: TypeAlias = Callable[[], tuple[Any, ...]]

# The words among the algorithms for what the dispatcher takes, and for a call with weights as they are.
CHOSEN, CALL = "chosen", "call"

# What takes this many times longer than the fastest is timed once: rounds with it would be too few for the others.
_SLOW = 10.0

# Seconds that another process may hold a core.
_INTERRUPTION = 0.02


class Entrant(NamedTuple):
    """An algorithm or a peer, on one problem.

    Attributes
    ----------
    name : str
    peer : bool
    chosen : bool
        Whether the dispatcher takes this algorithm.
    refusal : str or None
        Why it cannot enter.
    bound : float
        What `testing.compare` is to hold it to.
    prepare : callable
        ``prepare(inputs)`` returns the run to check and to time, which returns the problem's outputs.
    """

    name: str
    peer: bool
    chosen: bool
    refusal: str | None
    bound: float
    prepare: Callable[[tuple[Any, ...]], Run]


def entrants(problem: AnyProblem, peers: Sequence[Peer] = (), only: Sequence[str] | None = None) -> list[Entrant]:
    """Return every algorithm, in the order the dispatcher would take them, and then the peers.

    Parameters
    ----------
    problem : ConvProblem or PoolProblem
    peers : sequence of Peer
        Installed ones.
    only : sequence of str, optional
        The backends and the algorithms (``backend/name``) that may enter, ``chosen`` for the one that the dispatcher
        takes, ``call`` for the public function; all algorithms by default.
    """
    choice = dispatch.survey(problem, current())
    threads = machine().threads()
    found = [
        Entrant(
            candidate.algorithm,
            False,
            candidate.algorithm == choice.winner,
            candidate.refusal,
            algorithm.error_bound(problem),
            partial(algorithm_run, algorithm, problem),
        )
        for candidate in choice.candidates
        for algorithm in [registry.find(candidate.algorithm)]
        if only is None
        or algorithm.key in only
        or algorithm.backend in only
        or (CHOSEN in only and algorithm.key == choice.winner)
    ]
    if only is not None and CALL in only:
        # With weights as they are, another algorithm may be taken.
        bound = max(registry.find(c.algorithm).error_bound(problem) for c in choice.candidates if c.refusal is None)
        found.append(Entrant(calls.NAME, False, False, calls.refuses(problem), bound, partial(calls.run, problem)))
    for peer in peers:
        prepare = partial(_peer_run, peer, problem, threads)
        found.append(Entrant(peer.name, True, False, peer.refuses(problem), peer.error_bound(problem), prepare))
    return found


def algorithm_run(algorithm: Algorithm, problem: AnyProblem, inputs: tuple[Any, ...]) -> Run:
    """Return the run of an algorithm on inputs of a problem, into outputs of its own; packing is done before."""
    plan = algorithm.plan(problem)
    packed = plan.packed(inputs)
    outputs = tuple(
        testing.laid_out(o, problem.layout, -2 if o.dtype in INDEX_DTYPES else np.nan) for o in problem.outputs
    )

    def run() -> tuple[Any, ...]:
        plan.run(packed, outputs)
        return outputs

    return run


def _peer_run(peer: Peer, problem: AnyProblem, threads: int, inputs: tuple[Any, ...]) -> Run:
    run = peer.prepare(problem, inputs, threads)
    return lambda: (run(),)


class Error(NamedTuple):
    """How far a result is from the reference, where it is farthest.

    Attributes
    ----------
    share : float
        The error as a share of what is allowed at its element.
    deviation : float
        The error as a share of the largest element.
    """

    share: float
    deviation: float


def check(entrant: Entrant, problem: AnyProblem, run: Run, exact: testing.Exact) -> Error:
    """Run once and return the largest error.

    Raises
    ------
    AssertionError
        If that is more than one; the message says where.
    """
    outputs = tuple(np.asarray(output) for output in run())
    share = testing.compare(problem, outputs, exact, entrant.bound)
    reference = exact.results[0]
    with np.errstate(invalid="ignore"):
        farthest = np.nanmax(np.abs(outputs[0] - reference), initial=0.0)
    return Error(share, float(farthest / np.nanmax(np.abs(reference))))


def measure(
    case: Case,
    peers: Sequence[Peer] = (),
    *,
    threads: int,
    seconds: float = 1.0,
    only: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda part: None,
) -> list[Row]:
    """Check and time every entrant on a case.

    Parameters
    ----------
    case : Case
    peers : sequence of Peer
        Installed ones.
    threads : int
        How many threads each may use.
    seconds : float
        How long the rounds go on.
    only : sequence of str, optional
        As in `entrants`.
    progress : callable, optional
        Called with what is being done.
    """
    problem = case.problem
    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    with pinned(threads), tuning.exclusive():
        progress("reference")
        inputs = testing.random_inputs(problem) if case.inputs is None else case.inputs
        exact = testing.exact(problem, inputs)
        for entrant in entrants(problem, peers, only):
            progress(entrant.name)
            outcome: dict[str, Any] = {"refusal": entrant.refusal}
            if entrant.refusal is None:
                try:
                    run = entrant.prepare(inputs)
                    error = check(entrant, problem, run, exact)
                    outcome |= {"error": error.share, "deviation": error.deviation}
                    runs[entrant.name] = run
                except Exception as failure:  # noqa: BLE001 - neither users' algorithms nor peers are ours
                    # A peer that gives up has not been wrong.
                    kind = "refusal" if entrant.peer and not isinstance(failure, AssertionError) else "failure"
                    outcome[kind] = f"{type(failure).__name__}: {failure}"
            rows[entrant.name] = Row(
                case.name,
                format_problem(problem),
                problem.flops,
                problem.bytes,
                threads,
                entrant.name,
                entrant.peer,
                entrant.chosen,
                **outcome,
            )
        progress("rounds")
        taken = timed(runs, seconds, rest=threads > 1)
    return [replace(row, seconds=taken.get(name)) for name, row in rows.items()]


def timed(runs: dict[str, Run], seconds: float, rest: bool = False) -> dict[str, float]:
    """Return the seconds of each run: those of similar speed in rounds, rested or not, the slow ones once."""
    if not runs:
        return {}
    once = tuning.measure(runs, 0)
    # What is interrupted seems slow: short runs get another chance.
    short = {name: run for name, run in runs.items() if _SLOW * min(once.values()) <= once[name] < _INTERRUPTION}
    once |= {name: min(again, once[name]) for name, again in tuning.measure(short, 0).items()}
    fast = {name: run for name, run in runs.items() if once[name] < _SLOW * min(once.values())}
    return once | tuning.measure(fast, seconds, rest)


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Hold fastconv and BLAS, which the reference and SciPy use too, to a number of threads.

    Peers are told the number when they prepare.
    """
    with options(threads=threads), threadpool_limits(threads, "blas"):
        yield
