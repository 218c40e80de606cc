"""The CPU engine under load: many Python threads, forked children, thousands of shapes in one process."""

from __future__ import annotations

import pytest
from fresh import python

LAYERS = """
import numpy as np
import fastconv as fc
draw = np.random.default_rng(3)
SHAPES = [
    (3, 8, 3, 1), (16, 16, 3, 1), (32, 16, 1, 1), (8, 8, 3, 8),
    (16, 32, 5, 1), (24, 48, 3, 12), (64, 64, 3, 1), (7, 9, 2, 1),
]
def layer(ic, oc, k, groups):
    x = draw.integers(-3, 4, (2, ic, 19, 23)).astype("float32")
    w = draw.integers(-3, 4, (oc, ic // groups, k, k)).astype("float32")
    return lambda **where: fc.conv2d(x, w, padding=1, groups=groups, **where)
CALLS = [layer(*shape) for shape in SHAPES]
with fc.options(strict=True):
    EXPECTED = [call(backend="reference") for call in CALLS]
def check(i, rounds):
    with fc.options(strict=True):
        for _ in range(rounds):
            assert np.array_equal(CALLS[i](backend="numba"), EXPECTED[i]), SHAPES[i]
"""

AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda i: check(i, 60), range(8)))
"""

# Numba's own threads are at work too: neither may stop the other.
BESIDE_NUMBA = """
import numba
@numba.njit(parallel=True)
def total(a):
    s = 0.0
    for i in numba.prange(a.size):
        s += a[i]
    return s
assert total(np.ones(10000)) == 10000
print(numba.threading_layer())
"""

FORKED = """
import multiprocessing
check(0, 1)
context = multiprocessing.get_context("fork")
children = [context.Process(target=check, args=(i, 20)) for i in range(4)]
for child in children:
    child.start()
check(6, 20)
for child in children:
    child.join(60)
assert [child.exitcode for child in children] == [0] * 4
"""

MANY_SHAPES = """
import gc
import os
import resource
import numpy as np
import fastconv as fc
from fastconv.backends.cpu import compiling

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

draw = np.random.default_rng(5)
def one():
    groups = int(draw.choice([1, 1, 1, 2, 4]))
    ic, oc = (groups * int(draw.integers(1, 24)) for _ in range(2))
    k, s, d, p = (int(draw.integers(1, top)) for top in (5, 3, 3, 3))
    size = [int(n) for n in draw.integers(12, 24, 2)]
    x = draw.standard_normal((int(draw.integers(1, 3)), ic, *size), np.float32)
    w = draw.standard_normal((oc, ic // groups, k, k), np.float32)
    fc.conv2d(x, w, stride=s, dilation=d, padding=p - 1, groups=groups, backend="numba")

for _ in range(1500):
    one()
gc.collect()
before, compiled = resident(), compiling.count()
for _ in range(8500):  # with those before more than any cache keeps
    one()
gc.collect()
print(compiled, compiling.count(), resident() - before)
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_eight_python_threads_at_once(layer):
    printed = python(LAYERS + BESIDE_NUMBA + AT_ONCE + BESIDE_NUMBA, NUMBA_THREADING_LAYER=layer).stdout
    assert printed.split() == [layer] * 2


def test_forked_children_compute():
    python(LAYERS + FORKED)


@pytest.mark.slow
def test_thousands_of_shapes_take_bounded_memory_and_few_kernels():
    first, last, grown = map(int, python(MANY_SHAPES).stdout.split())
    assert 0 < first <= last < 400
    assert grown < 200 << 20
