"""CuPy's own arrays, in the CPU's memory: everything that is asked of them is asked of the real ones, GPU or no GPU."""

from __future__ import annotations

import cupy
import numpy as np
import pytest
from cuda_emulation.host_cupy import cupy_on_host, seen

import fastconv as fc
from benchmarks.gpu import correctness, use
from benchmarks.gpu.placing import Placed
from fastconv import registry, testing
from fastconv.notation import parse_problem


@pytest.fixture(autouse=True)
def _on_host():
    fc.dispatch.forget()
    with cupy_on_host():
        yield
    fc.dispatch.forget()


NEEDS_A_GPU = {"graphs_hold_all_of_a_call", "tensors_of_pytorch"}
# Of smaller arrays below.
MUCH_MEMORY = {"more_than_2_to_the_31_elements"}


@pytest.mark.parametrize("name", sorted(use.CHECKS.keys() - NEEDS_A_GPU - MUCH_MEMORY))
def test_what_a_user_does(name, monkeypatch):
    monkeypatch.setattr(use, "lost", lambda: False)
    assert use.check(name) == (None, False)


def test_last_of_many_images(monkeypatch):
    monkeypatch.setattr(use, "_IMAGE", (4, 5, 7))
    monkeypatch.setattr(use, "_MANY", 300)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (1 << 40, 1 << 40))
    monkeypatch.setattr(use, "lost", lambda: False)
    assert use.check("more_than_2_to_the_31_elements") == (None, False)


def test_what_memory_is_too_small_for_is_said_not_to_be_checked(monkeypatch):
    monkeypatch.setattr(use, "lost", lambda: False)
    said, _ = use.check("more_than_2_to_the_31_elements")
    assert said.startswith("not checked: of GPU memory 0 GiB are free")
    assert not use.is_wrong(said)


def test_what_fails_is_wrong(monkeypatch):
    monkeypatch.setattr(use, "lost", lambda: False)
    monkeypatch.setattr(use, "_there", lambda *_: 1 // 0)
    said, _ = use.check("no_images")
    assert said.startswith("ZeroDivisionError")
    assert use.is_wrong(said)


@pytest.mark.parametrize(
    "text",
    [
        "conv2d n2 c5 i7 oc6 k3 p1 bias relu bf16",
        "conv2d:wgrad n2 c8 i7 oc8 k3 p1 f16 channels_last",
        "max_pool2d n2 c8 i9 k3 s2 p1 indices channels_last",
    ],
)
def test_correctness_suite(text):
    problem = parse_problem(f"{text} cuda")
    solvers = [a for a in registry.algorithms() if a.device == "cuda" and a.refuses(problem) is None]
    assert solvers
    for algorithm in solvers:
        testing.check_problem(correctness.OnDevice(algorithm), problem)


def test_stray_writes_are_noticed():
    host = np.arange(12, dtype=np.float32).reshape(3, 4)[::-1, ::2]
    placed = Placed(host)
    assert np.array_equal(seen(placed.array), host)
    assert placed.array.strides == host.strides
    placed.check_untouched()
    seen(placed.array)[1, 1] = 70
    placed.fetch()
    assert host[1, 1] == 70
    with pytest.raises(AssertionError, match="an input"):
        Placed.check_untouched(_written(Placed(host), 0))
    for step in (-1, 1):  # before the first element, and between the first and the second
        with pytest.raises(AssertionError, match="beside an output"):
            _written(Placed(host), step).fetch()


def _written(placed, step):
    """Write to a place some elements beyond an array's first."""
    flat = cupy.ndarray(1, np.float32, placed.array.data + 4 * step)
    seen(flat)[0] = 5
    return placed


def test_portions_of_a_batch_are_slices_of_cupys_arrays(monkeypatch):
    monkeypatch.setattr("fastconv.backends.cuda.direct.algorithm._MOST", 120)
    x, w = (use._there(array) for array in testing.integer_inputs(parse_problem("conv2d n5 c3 i7 oc4 k3 p1")))
    expected = fc.conv2d(x.get(), w.get(), padding=1, backend="reference")
    assert np.array_equal(fc.conv2d(x, w, padding=1, algorithm="cuda/direct").get(), expected)


def test_results_are_cupys_and_keep_the_memory_order():
    x = np.moveaxis(cupy.asarray(np.ones((2, 7, 6, 8), np.float16)), -1, 1)
    w = cupy.asarray(np.ones((8, 8, 3, 3), np.float16))
    y = fc.conv2d(x[:, :, ::-1], w, padding=1)
    assert type(y) is cupy.ndarray
    assert fc.arrays.layout_of(y) == "channels_last"
    out = cupy.empty(y.shape, np.float16)
    assert fc.conv2d(x, w, padding=1, out=out) is out
    assert np.array_equal(out.get(), y.get()[:, :, ::-1])
    z = fc.conv2d(x, w, padding=1, residual=out, activation="relu")
    assert np.array_equal(z.get(), 2 * out.get())
