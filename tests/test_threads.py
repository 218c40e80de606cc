"""Many Python threads at once, and forked children: the same results as one after the other."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fakes import Fake, general_backends
from fresh import in_a_fresh_process
from numba import njit
from sharing import check_threads_agree
from threadpoolctl import threadpool_info

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.codegen import whole
from fastconv.backends.cpu.steering import BYTES, THREAD, addresses, settle, steer_away
from fastconv.backends.im2col import blas
from fastconv.machine import available_cores
from fastconv.notation import parse_problem
from fastconv.options import current

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

# Work for several threads, in every family.
LARGE = [
    parse_problem(text)
    for text in (
        "conv2d n1 c64 i56 oc64 k3 p1 bias relu",
        "conv2d n2 c24 i30 oc40 k3 p1 bias relu",
        "conv2d n1 c32 i7 oc96 k3 p1",
        "conv2d n4 c64 i28 oc96 k1",
        "conv2d:dgrad n1 c64 i56 oc64 k3 p1",
        "conv2d:dgrad n4 c64 i28 oc96 k1",
        "conv2d:wgrad n4 c64 i28 oc64 k3 p1",
        "conv2d n1 c32 i28 oc32 k5 p2",
        "conv2d:dgrad n1 c32 i28 oc32 k5 p2",
        "conv2d:wgrad n4 c32 i28 oc48 k5 p2",
        *(
            f"conv2d:{direction} n2 c32 i28 oc48 {kernel}"
            for direction in ("fprop", "dgrad")
            for taps, padding in ((2, 1), (3, 1), (5, 2), (7, 3))
            for kernel in (f"kh1 kw{taps} pw{padding}", f"kh{taps} kw1 ph{padding}")
        ),
        "conv2d n2 c32 i28 oc48 k2",
        "conv2d:dgrad n4 c48 i28 oc64 k4 s2 p1",
        *(f"conv2d:{direction} n2 c32 i28 oc48 k4 p1" for direction in ("fprop", "dgrad", "wgrad")),
        *(f"conv2d:{direction} n4 c48 i28 oc64 k3 s2 p1" for direction in ("fprop", "dgrad", "wgrad")),
        "conv2d:dgrad n4 c64 i28 oc64 k3 s2 p1 g8",
        "conv2d:dgrad n4 c32 i28 oc32 k3 s2 p1 g32",
        "conv3d n1 c32 i14 oc48 k3 p1",
        "conv3d:wgrad n1 c32 i14 oc48 k3 p1",
        "linear n192 c300 oc50",
        "linear:dgrad n9 c1000 oc300",
        "linear:dgrad n192 c50 oc300",
        "linear:wgrad n9 c1000 oc300",
        "conv2d n2 c32 i29 oc32 k3 p1 g32",
        "conv2d n2 c40 i58 oc40 k3 s2 p1 g40",
        "conv2d:dgrad n4 c32 i28 oc32 k3 p1 g32",
        "conv2d:wgrad n4 c32 i28 oc32 k3 p1 g32",
        "conv2d:wgrad n4 c32 i28 oc32 k3 p1 g32 channels_last",
        "conv2d n2 c40 i56 oc40 k3 p1 g40 channels_last",
        "conv2d n4 ic128 i56 oc3 k1 bias channels_last",
        "conv2d:dgrad n4 c64 i40 oc64 k3 s2 p1 channels_last",
        "max_pool2d n2 c32 i56 k3 s2 p1 indices",
        "avg_pool2d:dgrad n2 c32 i56 k3 s1 p1",
        "unfold:dgrad n2 c32 i28 k3 p1",
    )
]


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


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def limited_run(threads: int) -> bool:
    """Run a convolution on so many threads of BLAS; return whether it was right."""
    x, w = testing.integer_inputs(LIMITED)
    with fc.options(backend="im2col", threads=threads):
        return np.array_equal(fc.conv2d(x, w, padding=1), LIMITED_RESULT)


LIMITED = parse_problem("conv2d n1 c16 i40 oc16 k3 p1")
LIMITED_RESULT = testing.run(registry.find("im2col/gemm"), LIMITED, testing.integer_inputs(LIMITED))[0]


@contextmanager
def limited_for_ever(threads: int) -> Iterator[None]:
    """Have four Python threads run one after another under a limit, so that it is always in force."""
    done = threading.Event()

    def work() -> bool:
        x, w = testing.integer_inputs(LIMITED)
        with fc.options(backend="im2col", threads=threads):
            while not done.is_set():
                fc.conv2d(x, w, padding=1)
        return True

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        try:
            yield
        finally:
            done.set()
            assert all(worker.result() for worker in workers)


def test_limits_on_threads_leave_blas_as_it_was():
    """Whatever the order in which threads that limit BLAS come and go."""
    before = blas_threads()
    assert before
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(limited_run, [1, 2, 3, 1, 2, 1, 3, 1] * 30))
    assert blas_threads() == before


def test_limits_on_threads_take_turns():
    """Who asks for another limit waits for those before, not for all that come."""
    with limited_for_ever(1), ThreadPoolExecutor(1) as pool:
        for threads in (2, 3, 2):
            assert pool.submit(limited_run, threads).result(timeout=60)


def test_a_limit_that_was_interrupted_while_waiting_lets_others_pass():
    class Interrupted(threading.Condition):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    limit = blas._Limit()
    with limit(1):
        whole, limit._changed = limit._changed, Interrupted()
        with pytest.raises(KeyboardInterrupt), limit(2):
            pass
        limit._changed = whole
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(limit._enter, 2).result(timeout=60) is None
        assert pool.submit(limit._leave).result(timeout=60) is None


def test_without_threadpoolctl_a_limit_below_the_cores_is_refused(monkeypatch):
    monkeypatch.setattr(blas, "_has_threadpoolctl", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    gemm = registry.find("im2col/gemm")
    for threads, refused in ((None, False), (1, True), (3, True), (4, False), (64, False)):
        with fc.options(threads=threads):
            assert ("threadpoolctl" in (gemm.refuses(LIMITED) or "")) == refused
            if not refused:
                result = testing.run(gemm, LIMITED, testing.integer_inputs(LIMITED))[0]
                assert np.array_equal(result, LIMITED_RESULT)


@pytest.mark.parametrize("key", [a.key for a in registry.algorithms() if a.deterministic and a.device == "cpu"])
def test_number_of_threads_does_not_change_deterministic_results(key):
    algorithm = registry.find(key)
    cases = [p for p in PROBLEMS + LARGE * (not algorithm.fallback) if algorithm.refuses(p) is None]
    assert cases
    jobs = [check_threads_agree(algorithm, problem, counts=(1, 2, 3, None)) for problem in cases]
    # The Fourier transforms are NumPy's, on Python's own threads.
    assert any(jobs) == (algorithm.backend == "numba" and key != "numba/fft")


def test_a_number_of_threads_that_changes_results_is_noticed():
    def drift(problem, outputs):
        outputs[0][...] *= 1 + math.ulp(1.0) * 2**29 * (current().threads or 0)

    with pytest.raises(AssertionError, match="threads change bits"):
        check_threads_agree(Fake("drifting", spoil=drift), PROBLEMS[0])


def _child(cases: list, answers) -> None:
    answers.put([testing.run(registry.find(key), problem, inputs)[0] for key, problem, inputs, _ in cases])


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe, and used, on Linux alone")
@in_a_fresh_process
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


def _limited_child(before: list[int]) -> None:
    os._exit(0 if blas_threads() == before and limited_run(2) and blas_threads() == before else 1)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe, and used, on Linux alone")
@in_a_fresh_process
def test_a_child_forked_while_blas_is_limited_has_no_limit():
    """The threads that hold the limit, or wait for it, are not in the child."""
    before = blas_threads()
    context = multiprocessing.get_context("fork")
    with limited_for_ever(1):  # one, since OpenBLAS itself cannot be forked while its threads compute
        for _ in range(10):
            child = context.Process(target=_limited_child, args=(before,))
            child.start()
            child.join(60)
            if child.exitcode is None:
                child.kill()
            assert child.exitcode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe, and used, on Linux alone")
@in_a_fresh_process
def test_forks_wait_for_a_limit_that_is_being_set():
    """In a child, nobody would set the other half of it."""
    before, setting = blas_threads(), threading.Event()
    controller = blas._limit()._controller
    limit = controller.limit

    def slowly(**limits):
        done = limit(**limits)
        setting.set()
        time.sleep(0.5)
        return done

    controller.limit = slowly
    other = threading.Thread(target=limited_run, args=(1,))
    other.start()
    setting.wait(60)
    child = multiprocessing.get_context("fork").Process(target=_limited_child, args=(before,))
    child.start()
    child.join(60)
    other.join(60)
    assert child.exitcode == 0
    assert blas_threads() == before


def _first(exact: testing.Exact) -> tuple:
    return exact.results[:1], exact.magnitude


def test_threads_that_begin_at_once_start_one_team(monkeypatch):
    """Workers look at their board for ever: another team's must not be let go."""
    from fastconv.backends.cpu import threads

    made, together = [], threading.Barrier(8)

    def slowly(lent):
        made.append(lent)
        time.sleep(0.05)
        return threads.Board(0)

    def first(_):
        together.wait(60)
        return threads._board(-1, None)

    monkeypatch.setattr(threads, "_made", slowly)
    monkeypatch.setattr(threads, "_boards", {})
    with ThreadPoolExecutor(8) as pool:
        boards = list(pool.map(first, range(8)))
    assert made == [None]
    assert all(board is boards[0] for board in boards)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores a thread may use"
)
@pytest.mark.skipif(available_cores() < 2, reason="there is no other core")
def test_a_sleeping_worker_is_steered_away_from_its_caller_until_it_runs():
    functions, worker = np.array(addresses(ctypes.CDLL(None)), np.int64), np.zeros(BYTES // 8, np.int64)
    steer = njit(lambda functions, worker: steer_away(functions, worker))
    back = njit(lambda functions, worker: settle(functions, worker))
    done = threading.Event()
    sleeper = threading.Thread(target=done.wait)
    sleeper.start()
    try:
        worker[THREAD // 8] = sleeper.ident
        everywhere = os.sched_getaffinity(sleeper.native_id)
        steer(functions.ctypes.data, worker.ctypes.data)
        elsewhere = os.sched_getaffinity(sleeper.native_id)
        assert elsewhere < everywhere
        assert len(elsewhere) == len(everywhere) - 1
        back(functions.ctypes.data, worker.ctypes.data)
        assert os.sched_getaffinity(sleeper.native_id) == everywhere
    finally:
        done.set()
        sleeper.join()


@pytest.mark.skipif(sys.platform != "linux", reason="a process's threads are not listed here")
def test_workers_that_have_woken_up_may_run_on_all_cores_again():
    algorithm, problem = registry.find("numba/direct"), LARGE[0]
    inputs = testing.random_inputs(problem)
    expected = testing.run(algorithm, problem, inputs)
    everywhere = os.sched_getaffinity(0)
    for _ in range(20):  # one that falls asleep just when it is called has its cores back the next time
        time.sleep(0.01)
        for got, wanted in zip(testing.run(algorithm, problem, inputs), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        time.sleep(0.01)
        threads = [int(path.name) for path in Path("/proc/self/task").iterdir()]
        if all(os.sched_getaffinity(thread) == everywhere for thread in threads):
            break
    else:
        pytest.fail("some threads may not run on all cores")


def test_a_sleeping_worker_is_called_once_until_it_wakes_up():
    """Else its cores would be taken while it takes them back, and some be lost for ever."""
    from fastconv.backends.cpu import threads

    calls, units = [], []
    board, done = threads.Board(1), ctypes.CFUNCTYPE(None, *(ctypes.c_int64,) * 4)(lambda *unit: units.append(unit))
    post = ctypes.CFUNCTYPE(None, ctypes.c_int64)(calls.append)
    semaphore = threads._WORKERS + threads._LINES + threads._SEMAPHORE
    asleep = threads._WORKERS + threads._LINES + threads._ASLEEP
    board._write({threads._POST: ctypes.cast(post, ctypes.c_void_p).value, asleep: 1})
    for _ in range(3):
        threads._run(board.address, ctypes.cast(done, ctypes.c_void_p).value, 0, 8, 1)
    assert len(units) == 24
    assert calls == [board.address + semaphore]


def _compiling_child() -> None:
    collects = gc.isenabled()
    os._exit(0 if collects and njit(lambda x: x + 1)(1) == 2 else 1)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe, and used, on Linux alone")
@in_a_fresh_process
def test_a_child_forked_while_another_thread_compiles_compiles_too():
    begun = threading.Event()

    def compile_slowly() -> None:
        with whole():
            begun.set()
            time.sleep(0.5)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(compile_slowly)
        assert begun.wait(60)
        child = multiprocessing.get_context("fork").Process(target=_compiling_child)
        child.start()
        child.join(10)
        if child.exitcode is None:
            child.kill()
        assert child.exitcode == 0
