"""The correctness suite on the device: what the tests do in emulation, on every problem of the shape sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fastconv import dispatch, registry, testing
from fastconv.algorithm import Algorithm, AnyProblem, Plan
from fastconv.notation import format_problem, parse_problem
from fastconv.options import Options
from fastconv.problem import DTYPES, PoolProblem

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


def problems(dtype: str) -> Iterator[AnyProblem]:
    """Yield the problems of the shape sets and larger ones, in every direction, on the GPU."""
    for problem in testing.problems(dtype):
        yield problem.replace(device="cuda")
    for text in LARGER:
        problem = parse_problem(f"{text} cuda").replace(dtype=dtype)
        yield problem
        for direction in ("dgrad", "wgrad"):
            if direction in problem.directions:
                plain = {} if isinstance(problem, PoolProblem) else {"bias": "none", "activation": None}
                yield problem.replace(direction=direction, **plain)


def on_device(array: Any) -> Any:
    """Return a copy of a NumPy array in GPU memory, of the same strides."""
    import cupy

    low, high = np.lib.array_utils.byte_bounds(array)
    start = array.__array_interface__["data"][0]
    memory = cupy.empty(high - low, np.uint8)
    view = cupy.ndarray(array.shape, array.dtype, memory.data + (start - low), array.strides)
    view[...] = cupy.asarray(np.ascontiguousarray(array))
    return view


class OnDevice:
    """An algorithm of the GPU for NumPy arrays: what `testing.check_problem` hands it is copied there and back."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def plan(self, problem: AnyProblem) -> Plan:
        plan = self.algorithm.plan(problem)

        def run(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            there = tuple(on_device(array) for array in outputs)
            plan.run(tuple(on_device(array) for array in inputs), there)
            for array, result in zip(outputs, there, strict=True):
                array[...] = result.get()

        return Plan(problem, self.algorithm, run)


def check(
    among: Iterable[AnyProblem], deadline: float, place: Callable[[Algorithm], Any] = OnDevice
) -> dict[str, dict[str, Any]]:
    """Check every CUDA algorithm on every problem that it accepts, and return by algorithm how that went.

    Parameters
    ----------
    among : iterable of problems
    deadline : float
        Of `time.monotonic`: what comes after is counted as skipped.
    place : callable
        Makes an algorithm take NumPy arrays.
    """
    algorithms = [a for a in registry.algorithms() if a.device == "cuda"]
    found: dict[str, dict[str, Any]] = {a.key: {"checked": 0, "skipped": 0, "failures": []} for a in algorithms}
    for problem in among:
        for algorithm in algorithms:
            entry = found[algorithm.key]
            if algorithm.refuses(problem) is not None:
                continue
            if time.monotonic() > deadline:
                entry["skipped"] += 1
                continue
            entry["checked"] += 1
            try:
                testing.check_problem(place(algorithm), problem)
            except Exception as error:  # noqa: BLE001 - whatever fails is written down, and the others go on
                entry["failures"].append(f"{format_problem(problem)}: {type(error).__name__}: {error}"[:500])
    return found


def unsolved(dtypes: Iterable[str] = DTYPES) -> list[str]:
    """Return the problems of the shape sets that no CUDA algorithm solves."""
    found = [p.replace(device="cuda") for dtype in dtypes for p in testing.problems(dtype)]
    return [format_problem(p) for p in found if dispatch.survey(p, Options()).winner is None]
