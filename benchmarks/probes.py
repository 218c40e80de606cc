"""What no single run of a layer shows: overheads, a cold start, shares of the peak, whole steps, predictions."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

import fastconv as fc
from benchmarks import cases
from benchmarks.measure import algorithm_run, pinned, timed
from benchmarks.peak import fma_run
from benchmarks.report import Figure
from benchmarks.steps import layer_steps
from benchmarks.targets import geometric_mean
from fastconv import dispatch, networks, registry, testing, tuning
from fastconv.machine import machine
from fastconv.options import current
from fastconv.problem import ConvProblem

# Algorithms that are predicted to take this many times longer than the fastest are not measured.
_HOPELESS = 12.0
_LARGE = 100e6  # operations
_AVX2_BYTES = 32
_SHAPES = 200
_FEWEST_FLOPS, _MOST_FLOPS = 1e5, 4e8
_SEED = 20
_KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (7, 7), (1, 7), (3, 1))

_COLD = """
import time
import numpy as np
start = time.perf_counter()
import fastconv as fc
imported = time.perf_counter()
x, w = np.ones((1, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
fc.conv2d(x, w, padding=1)
print(time.perf_counter() - imported)
"""

# What pip does: where it did not, a process would compile Python's own bytecode each time.
_INSTALL = "import compileall, fastconv; compileall.compile_dir(fastconv.__path__[0], quiet=2)"


def overhead() -> list[Figure]:
    """Time calls on an input of 16 numbers."""
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    plan = fc.plan(fc.conv2d, x, w, padding=1)
    runs: dict[str, tuple[float, Callable[[], object]]] = {
        "plan on 1x1x4x4": (2.0, lambda: plan(x)),
        "call on 1x1x4x4": (5.0, lambda: fc.conv2d(x, w, padding=1)),
    }
    taken = tuning.measure({what: run for what, (_, run) in runs.items()})
    return [Figure(what, asked, 1e6 * taken[what], "us") for what, (asked, _) in runs.items()]


def cold_start() -> list[Figure]:
    """Time the first call of a process, with no kernel compiled before and with all of them."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "NUMBA_CACHE_DIR": directory, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        _python(_INSTALL, environment)
        taken = [float(_python(_COLD, environment)) for _ in range(4)]
    return [
        Figure("first call of a process, nothing compiled", 3.0, taken[0], "s"),
        Figure("first call of a process, kernels on disk", 0.4, min(taken[1:]), "s"),
    ]


def _python(code: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=600
    ).stdout


def direct_convolution(every: int = 4, seconds: float = 0.25) -> list[Figure]:
    """Compare direct convolution with the processor's peak, one taking turns with the other; with AVX2 forced, too."""
    what = "direct convolution over 100 MFLOP"
    figures = [
        Figure(f"{what}: share of the FMA peak", 0.9, _share_of_peak(machine().vector_bytes, every, seconds), "", True)
    ]
    if machine().simd == "avx512":
        with _environment(FASTCONV_SIMD="avx2"):
            share = _share_of_peak(_AVX2_BYTES, every, seconds)
        figures.append(Figure(f"{what}, AVX2 forced: share of AVX2's peak", 0.85, share, "", True))
    return figures


def _share_of_peak(vector_bytes: int, every: int, seconds: float) -> float:
    """Return the geometric mean over each K-th dense layer of all networks, on one thread."""
    direct, additions = registry.find("numba/direct"), fma_run(vector_bytes)
    problems = [case.problem for case in cases.layers(list(networks.NETWORKS))]
    large = [
        p for p in problems if isinstance(p, ConvProblem) and p.groups == 1 and p.op != "linear" and p.flops > _LARGE
    ]
    shares = []
    with pinned(1):
        for problem in large[::every]:
            run = algorithm_run(direct, problem, testing.random_inputs(problem))
            taken = timed({"direct": run, "peak": additions.run}, seconds)
            shares.append(problem.flops / taken["direct"] * taken["peak"] / additions.flops)
    return geometric_mean(shares)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def predictions(direction: str = "fprop", count: int = _SHAPES, seconds: float = 0.1) -> list[Figure]:
    """Compare the dispatcher's choice with the best algorithm, over random shapes, on one thread and on all."""
    figures: list[Figure] = []
    for threads in sorted({1, machine().threads()}):
        with pinned(threads):
            losses = [_loss(problem, seconds, threads) for problem in random_problems(direction, count)]
        where = f"{count} random shapes, {threads} thread{'s' if threads > 1 else ''}"
        for word, asked, loss in (("mean", 1.05, geometric_mean(losses)), ("worst", 1.4, max(losses))):
            figures.append(Figure(f"{direction}: loss of the choice, {where}, {word}", asked, loss, "x"))
    return figures


def _loss(problem: ConvProblem, seconds: float, threads: int) -> float:
    """Return how many times longer the dispatcher's choice takes than the fastest."""
    choice = dispatch.survey(problem, current())
    best = min(c.predicted for c in choice.candidates if c.refusal is None and c.predicted is not None)
    names = [
        c.algorithm
        for c in choice.candidates
        if c.refusal is None and c.predicted is not None and c.predicted < _HOPELESS * best
    ]
    inputs = testing.random_inputs(problem)
    runs = {name: algorithm_run(registry.find(name), problem, inputs) for name in names}
    taken = timed(runs, seconds, rest=threads > 1)
    return taken[choice.winner] / min(taken.values())


def random_problems(direction: str, count: int, seed: int = _SEED) -> Iterator[ConvProblem]:
    """Yield convolutions such as networks have, and some that they do not have; the same ones each time."""
    draw = np.random.default_rng(seed)
    while count:
        kernel = tuple(int(k) for k in draw.choice(_KERNELS))
        size = int(2 ** draw.uniform(2, 8))
        stride = int(draw.choice([1, 1, 1, 2]))
        ic, oc = (int(2 ** draw.uniform(0, 10.5)) for _ in range(2))
        groups = 1
        kind = draw.integers(8)
        if kind == 0:
            groups = oc = ic
        elif kind == 1:
            groups = int(2 ** draw.integers(1, 6))
            ic, oc = (-(-c // groups) * groups for c in (ic, oc))
        problem = ConvProblem(
            op="conv2d",
            direction=direction,
            n=int(draw.choice([1, 1, 1, 2, 16])),
            ic=ic,
            oc=oc,
            groups=groups,
            input_size=(size, size),
            kernel_size=kernel,
            stride=(stride, stride),
            padding=tuple((k // 2, k // 2) for k in kernel),
            dilation=(1, 1),
            prepacked=direction == "fprop" and bool(draw.integers(2)),
        )
        if _FEWEST_FLOPS <= problem.flops <= _MOST_FLOPS:
            count -= 1
            yield problem


PROBES: dict[str, Callable[[], list[Figure]]] = {
    "overhead of a call": overhead,
    "cold start": cold_start,
    "direct convolution": direct_convolution,
    "predictions": predictions,
    "layer steps": layer_steps,
    **{f"predictions, {direction}": partial(predictions, direction) for direction in ("dgrad", "wgrad")},
}
