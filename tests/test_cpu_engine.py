"""The CPU engine beyond what the registry's tests ask of every algorithm: vector widths, tiles, threads, caches."""

from __future__ import annotations

import ast
import functools
import itertools
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh import in_a_fresh_process, python

import fastconv as fc
from fastconv import registry
from fastconv.backends.cpu import scratch, threads, work
from fastconv.backends.cpu.direct.work import Work, choose_tile
from fastconv.backends.cpu.registers import Simd, simd
from fastconv.machine import machine
from fastconv.notation import parse_problem

ENGINE = [algorithm.key for algorithm in registry.algorithms() if algorithm.backend == "numba"]
OTHERS = [name for name in ("avx512", "avx2", "neon", "none") if name != simd().name]


@pytest.mark.slow
@pytest.mark.parametrize("vectors", OTHERS)
def test_every_width_of_vectors_is_right(vectors):
    """In a fresh process, since compiled kernels and plans know the width."""
    code = """
from fastconv import registry, testing
every = {every}
for algorithm in registry.algorithms():
    if algorithm.backend == "numba":
        problems = [p for p in testing.problems("float32") if algorithm.refuses(p) is None]
        print(algorithm.key, testing.check_algorithm(algorithm, problems[::every]))
"""
    # NEON's registers on another processor compile slowly, and are what FASTCONV_SIMD=none is but for their number.
    every = 4 if vectors == "neon" else 1
    lines = python(code.format(every=every), FASTCONV_SIMD=vectors).stdout.splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines)
    assert set(counts) == set(ENGINE)
    assert all(int(count) > 0 for count in counts.values())


@pytest.mark.parametrize(("lanes", "registers"), [(16, 32), (8, 16), (4, 32), (4, 16), (2, 16)])
def test_tiles_fit_the_registers_and_the_map(lanes, registers):
    for rows, cols, channels in itertools.product((1, 2, 7, 55), (1, 3, 7, 14, 27, 224), (1, 16, 17, 96, 512)):
        tile, cycles = choose_tile((rows, cols), channels, lanes, registers)
        sums = tile.rows * tile.cols * tile.vectors
        assert sums + tile.vectors + 1 <= registers
        assert 1 <= tile.rows <= rows and 1 <= tile.cols <= cols and 1 <= tile.tail <= tile.vectors
        vectors = -(-channels // lanes)
        assert (vectors - tile.tail) % tile.vectors == 0
        assert cycles >= rows * cols * vectors / 2


@pytest.mark.parametrize("workers", [1, 2, 3, 16, 64])
@pytest.mark.parametrize(
    "text",
    ["conv2d n1 c64 i56 oc64 k3 p1", "conv2d n1 c512 i7 oc512 k3 p1", "conv2d n1 c8 i5 oc8 k1", "linear n1 c64 oc1000"],
)
def test_work_is_cut_into_units_for_every_worker(text, workers):
    work = Work(parse_problem(text), Simd("avx2", 32, 16, True), workers, 1 << 20)
    assert work.tile.rows <= work.band <= work.axes[1].out
    assert work.bands * work.band >= work.axes[1].out
    assert 1 <= work.parts <= work.blocks
    assert work.units >= min(workers, work.blocks * -(-work.axes[1].out // work.tile.rows))


def test_tiless_do_not_grow_with_the_shapes_that_come():
    from fastconv.backends.cpu.direct.tile import tiles

    before = tiles.cache_info().currsize
    for size in range(14, 64):
        for kernel, stride in ((3, 1), (5, 2), (1, 1)):
            x = np.zeros((1, 3, size, 56), np.float32)
            fc.conv2d(x, np.zeros((32, 3, kernel, kernel), np.float32), stride=stride, algorithm="numba/direct")
    assert tiles.cache_info().currsize - before <= 8


SOLVE_ALL = """
from fastconv import registry, testing
from fastconv.backends.cpu.compiling import count
from numba.core import event
with event.install_recorder("numba:run_pass") as compiling:
    for name in {names}:
        algorithm = registry.find(name)
        problem = next(p for p in testing.problems("float32") if algorithm.refuses(p) is None)
        testing.run(algorithm, problem, testing.random_inputs(problem))
print(count(), len(compiling.buffer))
"""


@pytest.mark.slow
def test_every_kernel_is_found_on_disk_by_a_later_process():
    """What encloses another compiled function never is: its key on disk is new in every process.

    The second may still miss what another test process, which keeps its kernels in the same files, made them forget.
    """
    for _ in range(4):
        kernels, passes = map(int, python(SOLVE_ALL.format(names=ENGINE)).stdout.split())
        if passes == 0:
            break
    assert kernels > 0 and passes == 0


def test_every_kernel_encloses_the_sources():
    """One that does not is found on disk as it was before another file of the engine changed."""
    checked = 0
    for path in Path(threads.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            decorators = [ast.unparse(d).partition("(")[0] for d in getattr(node, "decorator_list", [])]
            if isinstance(node, ast.FunctionDef) and {"function", "callback"} & set(decorators):
                checked += 1
                assert "sources" in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}, (path, node.name)
    assert checked > 20


def test_the_engine_leaves_numba_its_linear_algebra():
    """SciPy's is not imported with the engine, and whoever needs it for code of their own still gets it."""
    pytest.importorskip("scipy", reason="numba's linear algebra needs it: pip install scipy")
    python("""
import sys
import numpy as np
import fastconv as fc
fc.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), backend="numba")
assert "scipy.linalg" not in sys.modules
import numba
assert numba.njit(lambda a: np.linalg.inv(a))(2 * np.eye(2))[0, 0] == 0.5
assert numba.njit(lambda a: np.cov(a))(np.eye(2))[0, 0] == 0.5
""")


@functools.cache
def counting() -> Any:
    """Return a compiled task that adds one to a counter for each of its units."""
    from numba import cfunc, types

    from fastconv.backends.cpu.shared_words import add

    @cfunc(types.void(*(types.int64,) * 4))
    def count(job, start, stop, worker):
        for unit in range(start, stop):
            add(job + 8 * unit, 1)

    return count


def sums(units: int, workers: int) -> list[int]:
    """Return how often each unit of a job is done."""
    job = np.zeros(units, np.int64)
    threads.run(counting().address, scratch.address(job), units, workers)
    return job.tolist()


@pytest.mark.parametrize("workers", [1, 2, 3, 64])
@pytest.mark.parametrize("units", [1, 2, 7, 1000])
def test_every_unit_is_done_once(units, workers):
    assert sums(units, workers) == [1] * units


def test_python_threads_that_find_the_workers_busy_compute_alone():
    with ThreadPoolExecutor(8) as pool:
        assert all(counts == [1] * 50 for counts in pool.map(sums, [50] * 400, [2] * 400))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is safe, and used, on Linux alone")
@in_a_fresh_process
def test_forked_child_has_workers_of_its_own():
    assert sums(100, 2) == [1] * 100
    for _ in range(20):
        child = multiprocessing.get_context("fork").Process(target=_summing_child, daemon=True)
        child.start()
        child.join(60)
        assert child.exitcode == 0


def _summing_child() -> None:
    assert sums(100, 2) == [1] * 100


def test_a_problem_that_is_soon_done_is_left_to_one_thread(monkeypatch):
    monkeypatch.setattr(work, "WORTH_SHARING", 6e-6)
    for text, count in (
        ("conv2d n1 c2 i4 oc2 k3 p1", 1),
        ("max_pool2d n1 c8 i8 k2", 1),
        ("conv2d n1 c64 i56 oc64 k3 p1", machine().threads()),
        ("max_pool2d n1 c64 i112 k3 s2", machine().threads()),
    ):
        assert work.workers_for(parse_problem(text)) == count


# -------------------------------------------------------------------------------------------------------- scratch


def test_addresses_of_arrays_of_any_kind():
    array = np.arange(12.0).reshape(3, 4)
    frozen = array.copy()
    frozen.flags.writeable = False
    for view in (array, array[1:, 2:], array[::-1], array.T, frozen):
        assert scratch.address(view) == view.ctypes.data


def test_scratch_is_aligned_and_kept():
    first = scratch.take(1000)
    assert first % 64 == 0
    assert scratch.take(500) == first
