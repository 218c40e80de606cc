"""Many Python threads at once, and forked children: the same results as one after the other."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fakes import general_backends

import fastconv as fc
from fastconv import registry, testing
from fastconv.notation import parse_problem

TEXTS = [
    "conv2d n1 c16 i24 oc24 k3 p1 bias relu",
    "conv2d n2 c3 i33 oc8 k7 s2 p3",
    "conv2d n2 c8 i16 oc8 k3 p1 g8 channels_last",
    "conv2d:dgrad n2 c8 i17 oc12 k3 s2 p1",
    "conv2d:wgrad n3 c8 i15 oc12 k3 p1 reflect",
    "conv2d:bgrad n3 c8 i15 oc12 k3 bias",
    "conv1d n2 c8 i200 oc8 k5 d3 f16",
    "conv3d n1 c4 i8 oc6 k3 p1 f64",
    "linear n9 c300 oc50 bias",
    "locally_connected2d n2 c3 i8 oc4 k3",
    "max_pool2d n2 c16 i24 k3 s2 p1 ceil indices",
    "avg_pool2d:dgrad n2 c16 i24 k3 s2 p1",
    "lp_pool2d n2 c8 i16 k2",
    "unfold n2 c8 i12 k3 p1",
]
PROBLEMS = [parse_problem(text) for text in TEXTS]


@pytest.mark.parametrize("key", [a.key for a in registry.algorithms()])
def test_eight_threads_give_what_one_gives(key):
    """Every thread goes through all problems, beginning at its own, with a plan of its own and with a shared one."""
    algorithm = registry.find(key)
    cases = [(p, testing.random_inputs(p)) for p in PROBLEMS if algorithm.refuses(p) is None]
    serial = [testing.run(algorithm, *case) for case in cases]
    shared = [algorithm.plan(problem) for problem, _ in cases]
    bounds = [testing.exact(*case) for case in cases]

    def work(start: int) -> None:
        for i in np.roll(np.arange(len(cases)), -start).repeat(3):
            problem, inputs = cases[i]
            own = testing.run(algorithm, problem, inputs)
            common = tuple(np.empty_like(y) for y in own)
            shared[i].run(inputs, common)
            for outputs in (own, common):
                testing.compare(problem, outputs, bounds[i], algorithm.error_bound(problem))
                for one, other in zip(outputs, serial[i], strict=True):
                    assert not algorithm.deterministic or np.array_equal(one, other)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("backend", general_backends())
def test_public_functions_in_threads(backend):
    """Forward and backward, under each thread's own options."""
    x, w = testing.integer_inputs(parse_problem("conv2d n2 c4 i12 oc6 k3 p1"))

    def work(stride: int) -> list[np.ndarray]:
        with fc.options(backend=backend, max_workspace=(1 + stride) << 18):
            y, pullback = fc.vjp(fc.conv2d, x, w, stride=stride, padding=1)
            return [y, *pullback(y)[:2], fc.max_pool2d(y, 2)]

    strides = [1, 2, 3, 4] * 6
    serial = [work(stride) for stride in strides]
    with ThreadPoolExecutor(8) as pool:
        for wanted, got in zip(serial, pool.map(work, strides), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_limits_on_threads_leave_blas_as_it_was():
    """Whatever the order in which threads that limit BLAS come and go."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas() -> list[int]:
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    x, w = testing.integer_inputs(parse_problem("conv2d n1 c2 i8 oc2 k3 p1"))
    expected = fc.conv2d(x, w, padding=1, backend="im2col")
    before = blas()

    def work(threads: int) -> bool:
        with fc.options(backend="im2col", threads=threads):
            return all(np.array_equal(fc.conv2d(x, w, padding=1), expected) for _ in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [1, 2, 3, 1, 2, 1, 3, 1] * 8))
    assert blas() == before


def test_number_of_threads_does_not_change_deterministic_results():
    for problem in PROBLEMS:
        for algorithm in registry.algorithms():
            if algorithm.deterministic and algorithm.refuses(problem) is None:
                inputs, results = testing.random_inputs(problem), []
                for threads in (1, 2, None):
                    with fc.options(threads=threads):
                        results.append(testing.run(algorithm, problem, inputs))
                assert all(np.array_equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


def _child(cases: list, answers) -> None:
    answers.put([testing.run(registry.find(key), problem, inputs)[0] for key, problem, inputs, _ in cases])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe, and used, on Linux alone")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes():
    """After its parent has computed with the same backends, threads and all."""
    cases = []
    for algorithm in registry.algorithms():
        for problem in PROBLEMS:
            if algorithm.refuses(problem) is None:
                inputs = testing.integer_inputs(problem)
                cases.append((algorithm.key, problem, inputs, testing.run(algorithm, problem, inputs)[0]))
    large = np.ones((600, 600), np.float32)
    assert (large @ large == 600).all()  # BLAS has started its threads
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_child, args=(cases, answers))
    child.start()
    results = answers.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    for (key, problem, inputs, expected), result in zip(cases, results, strict=True):
        exact = testing.is_exact(problem)
        assert not exact or np.array_equal(result, expected), key
        bound = registry.find(key).error_bound(problem)
        testing.compare(problem, (result,), testing.Exact(*_first(testing.exact(problem, inputs))), bound)


def _first(exact: testing.Exact) -> tuple:
    return exact.results[:1], exact.magnitude
