"""The correctness suite on the device: what the tests do in emulation, on every problem of the shape sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from benchmarks.gpu.placing import Placed
from benchmarks.gpu.worker import Worker
from fastconv import dispatch, registry, testing
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.notation import format_problem, parse_problem
from fastconv.options import Options, applied
from fastconv.problem import DTYPES, PoolProblem

PROCESSES = 8
# What one problem may take: a kernel that never ends is given up then.
_LAST_SECONDS = 60.0

# Larger than the shape sets' problems: several tiles along every side, several parts of a reduction.
LARGER = """
    conv2d n3 c70 i29 oc150 k3 p1 bias relu
    conv2d n2 c64 i28 oc64 k3 p1 s2 channels_last
    conv2d n4 c130 i14 oc260 k1
    conv2d n2 c3 i112 oc64 k7 s2 p3
    conv2d n2 c96 i28 oc96 k3 p1 g96
    conv2d n2 c64 i28 oc64 k3 p1 g16 channels_last
    conv3d n1 c20 i12 oc40 k3 p1
    conv1d n3 c33 i1000 oc65 k9 p4
    linear n70 c1000 oc300 bias
    max_pool2d n4 c64 i57 k3 s2 p1
    avg_pool2d n4 c64 i28 k2 channels_last
    adaptive_avg_pool2d n4 c256 i7 o1
    unfold n2 c16 i28 k3 p1
""".strip().splitlines()


def _shape_sets(dtype: str) -> Iterator[AnyProblem]:
    """Yield the problems of the shape sets, but for those with narrow indices, which the CPU alone has."""
    return (p for p in testing.problems(dtype) if getattr(p, "index_dtype", "int64") == "int64")


def problems(dtype: str) -> Iterator[AnyProblem]:
    """Yield the problems of the shape sets and larger ones, in every direction, on the GPU."""
    for problem in _shape_sets(dtype):
        yield problem.replace(device="cuda")
    for text in LARGER:
        problem = parse_problem(f"{text} cuda").replace(dtype=dtype)
        yield problem
        for direction in ("dgrad", "wgrad"):
            if direction in problem.directions:
                plain = {} if isinstance(problem, PoolProblem) else {"bias": "none", "activation": None}
                yield problem.replace(direction=direction, **plain)


class OnDevice:
    """An algorithm of the GPU for NumPy arrays: what `testing.check_problem` hands it is copied there and back."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def plan(self, problem: AnyProblem) -> Plan:
        plan = self.algorithm.plan(problem)

        def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            read, written = ([Placed(array) for array in arrays] for arrays in (inputs, outputs))
            plan.run(*(tuple(placed.array for placed in some) for some in (read, written)))
            for placed in read:
                placed.check_untouched()
            for placed in written:
                placed.fetch()

        return Plan(problem, self.algorithm, run)


class Unit(NamedTuple):
    """What one process checks: an algorithm on elements of one type; with ``tf32`` what it solves only as TF32."""

    algorithm: str
    dtype: str
    tf32: bool = False

    def options(self) -> Options:
        """Return the options that it runs under."""
        return Options(tf32=self.tf32)

    def accepts(self, problem: AnyProblem) -> bool:
        """Whether a problem is one of those to check."""
        algorithm = registry.find(self.algorithm)
        with applied(Options()):
            plainly = algorithm.refuses(problem) is None
        if not self.tf32:
            return plainly
        with applied(self.options()):
            return not plainly and algorithm.refuses(problem) is None


def units(dtypes: Iterable[str]) -> list[Unit]:
    """Return what there is to check, in the order of the element types."""
    keys = [a.key for a in registry.algorithms() if a.device == "cuda"]
    found = [Unit(key, dtype) for dtype in dtypes for key in keys]
    return found + [Unit(key, "float32", tf32=True) for key in keys]


def check_unit(
    unit: Unit,
    deadline: float,
    place: Callable[[Algorithm], Any] = OnDevice,
    among: Iterable[AnyProblem] | None = None,
    lost: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Check one algorithm on every problem that it accepts, and return how that went.

    Parameters
    ----------
    unit : Unit
    deadline : float
        Of `time.monotonic`: what comes after is counted as skipped.
    place : callable
        Makes an algorithm take NumPy arrays.
    among : iterable of problems, optional
        By default those of `problems`.
    lost : callable
        Asked after a failure whether the device can no longer be used: then the rest is skipped.
    """
    entry: dict[str, Any] = {"checked": 0, "skipped": 0, "failures": []}
    gone = False
    for problem in problems(unit.dtype) if among is None else among:
        if not unit.accepts(problem):
            continue
        if gone or time.monotonic() > deadline:
            entry["skipped"] += 1
            continue
        entry["checked"] += 1
        try:
            with applied(unit.options()):
                testing.check_problem(place(registry.find(unit.algorithm)), problem)
        except Exception as error:  # noqa: BLE001 - whatever fails is written down, and the others go on
            entry["failures"].append(f"{format_problem(problem)}: {type(error).__name__}: {error}"[:500])
            gone = lost()
    return entry


def check(dtypes: Iterable[str], deadline: float, processes: int = PROCESSES) -> dict[str, dict[str, Any]]:
    """Check every CUDA algorithm, and return by algorithm how that went.

    Each unit has a process of its own: a kernel that reads where it must not takes the device from its whole process.
    Several run side by side, since most of the time goes into compiling.
    """
    waiting = units(dtypes)
    found: dict[str, dict[str, Any]] = {
        unit.algorithm: {"checked": 0, "skipped": 0, "failures": []} for unit in waiting
    }
    with ThreadPoolExecutor(processes) as threads:
        for unit, part in zip(waiting, threads.map(lambda unit: _alone(unit, deadline), waiting), strict=True):
            for name, value in part.items():
                found[unit.algorithm][name] += value
    return found


def _alone(unit: Unit, deadline: float) -> dict[str, Any]:
    with Worker() as worker:
        try:
            checked: dict[str, Any] = worker.run(_check_here, unit, deadline, deadline=deadline + _LAST_SECONDS)
        except RuntimeError as error:
            return {"checked": 0, "skipped": 0, "failures": [f"{unit}: {type(error).__name__}: {error}"]}
        return checked


def _check_here(unit: Unit, deadline: float) -> dict[str, Any]:
    return check_unit(unit, deadline, lost=lost)


def lost() -> bool:
    """Whether this process can no longer use the device."""
    import cupy

    try:
        cupy.cuda.Device().synchronize()
    except cupy.cuda.runtime.CUDARuntimeError:
        return True
    return False


def unsolved(dtypes: Iterable[str] = DTYPES) -> list[str]:
    """Return the problems of the shape sets that no CUDA algorithm solves."""
    found = [p.replace(device="cuda") for dtype in dtypes for p in _shape_sets(dtype)]
    return [format_problem(p) for p in found if dispatch.survey(p, Options()).winner is None]
