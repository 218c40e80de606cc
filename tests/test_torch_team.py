"""PyTorch's threads, on which fastconv works in a program that has imported `fastconv.torch`."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from fresh import python

import fastconv as fc
import fastconv.torch as ft
from fastconv import borrowed, testing
from fastconv.machine import available_cores
from fastconv.notation import parse_problem

several = pytest.mark.skipif(available_cores() < 2, reason="needs two cores")

# Work for several threads, by kernels of several kinds.
X, W = testing.random_inputs(parse_problem("conv2d n2 c32 i40 oc32 k3 p1"))


def results() -> list[np.ndarray]:
    y, pullback = fc.vjp(fc.conv2d, X, W, padding=1)
    return [y, *pullback(y)[:2], fc.max_pool2d(y, 2), fc.conv2d(X, W[:, :1], padding=1, groups=32)]


@pytest.fixture
def lent():
    """Lend PyTorch's threads, and return them."""
    lent = ft.team.lend()
    assert lent == ("OpenMP" in torch.__config__.parallel_info()) or sys.platform != "linux"
    team = borrowed.team(os.getpid())
    if team is None:
        pytest.skip("PyTorch's threads are not OpenMP's here")
    return team


@several
def test_the_same_bits_on_either_team(lent):
    ours = results()
    borrowed.lend(None)
    try:
        own = results()
    finally:
        borrowed.lend(lent)
    for one, other in zip(ours, own, strict=True):
        assert np.array_equal(one, other)


@several
def test_no_thread_is_added_to_pytorchs():
    """Two cores serve both libraries: fastconv's work starts no thread that PyTorch's has not."""
    code = """
        import os, torch, fastconv.torch as ft
        x, w = torch.rand(1, 32, 64, 64), torch.rand(32, 32, 3, 3)
        y = torch.conv2d(x, w)
        threads = len(os.listdir("/proc/self/task"))
        for _ in range(3):
            ours = ft.conv2d(x, w)
        print(len(os.listdir("/proc/self/task")) - threads, ft.stats().computed["conv2d"])
    """
    if not Path("/proc/self/task").is_dir():
        pytest.skip("no list of threads here")
    # BLAS, which NumPy and SciPy bring, would start some when it is loaded.
    assert python(dedent(code), OPENBLAS_NUM_THREADS="1").stdout.split() == ["0", "3"]


@several
def test_many_python_threads(lent):
    wanted = results()
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda _: results(), range(24)):
            assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def _child(queue) -> None:
    queue.put((borrowed.team(os.getpid()), results()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own(lent):
    """GNU OpenMP's do not survive a fork: a child that waited for them would wait for ever."""
    wanted = results()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    team, got = queue.get(timeout=60)
    child.join(60)
    assert team is None and child.exitcode == 0
    for a, b in zip(got, wanted, strict=True):
        assert np.array_equal(a, b)


def test_fewer_threads_of_pytorch(lent):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        y = ft.conv2d(torch.from_numpy(X), torch.from_numpy(W), padding=1)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(y.numpy(), fc.conv2d(X, W, padding=1))
