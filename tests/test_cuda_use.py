"""The CUDA backend as a user meets it where there is no GPU, and what is asked of CuPy where there is one."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_emulation import Emulator, emulated

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cuda import compiling, device, launching
from fastconv.backends.cuda.launching import CupyLauncher, Kernel
from fastconv.notation import parse_problem

X, W = np.ones((1, 2, 5, 5), np.float32), np.ones((3, 2, 3, 3), np.float32)


@pytest.fixture(autouse=True)
def _plans_are_made_anew():
    fc.dispatch.forget()
    yield
    fc.dispatch.forget()


@pytest.mark.parametrize("options", [{"backend": "cuda"}, {"algorithm": "cuda/direct"}])
def test_error_says_why_it_cannot_run(monkeypatch, options):
    monkeypatch.setattr(device, "missing", lambda: "no NVIDIA driver was found; no CUDA device was found")
    with pytest.raises(ValueError, match=r"cuda.* cannot run here: no NVIDIA driver was found; no CUDA device"):
        fc.conv2d(X, W, **options)


def test_numpy_arrays_are_not_taken_to_the_gpu(monkeypatch):
    monkeypatch.setattr(device, "missing", lambda: None)
    with pytest.raises(ValueError, match=r"backend: 'cuda' computes on arrays in GPU memory.*pass CuPy arrays"):
        fc.conv2d(X, W, backend="cuda")


def test_missing_lists_everything(monkeypatch):
    monkeypatch.setattr(device, "state", lambda: {"missing": ["one thing", "another"]})
    device.missing.cache_clear()
    try:
        assert device.missing() == "one thing; another"
        problem = parse_problem("conv2d c2 i5 oc3 k3 cuda")
        assert registry.find("cuda/direct").refuses(problem) == "one thing; another"
    finally:
        device.missing.cache_clear()


def test_algorithms_for_the_gpu_refuse_arrays_of_the_cpu():
    with emulated():
        for algorithm in (a for a in registry.algorithms() if a.device == "cuda"):
            assert "GPU memory" in algorithm.refuses(parse_problem("conv2d c2 i5 oc3 k3"))


def test_dispatcher_chooses_among_algorithms_of_the_gpu():
    with emulated():
        choice = fc.explain(parse_problem("conv2d n1 c64 i56 oc64 k3 p1 cuda"))
    assert choice.winner is not None and registry.find(choice.winner).device == "cuda"


def test_kernels_are_prepared_once_a_form():
    emulator = Emulator()
    prepared = []
    prepare = emulator.prepare
    emulator.prepare = lambda *arguments: prepared.append(arguments) or prepare(*arguments)
    problem = parse_problem("conv2d n2 c3 i7 oc4 k3 cuda")
    inputs = testing.random_inputs(problem)
    with emulated(emulator):
        plan = registry.find("cuda/direct").plan(problem)
        outputs = (np.empty(problem.y_shape, np.float32),)
        for _ in range(2):
            plan.run(inputs, outputs)
        assert len(prepared) == 1
        plan.run(tuple(testing.read_only_view(a) for a in inputs), outputs)
        assert len(prepared) == 2


class FakeCupy:
    """As much of CuPy as the launcher asks for, writing down how kernels are called."""

    def __init__(self):
        self.calls, self.loaded, self.current = [], [], 0
        self.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: self.current))

    def RawModule(self, path):  # noqa: N802 - CuPy's name
        self.loaded.append((self.current, path))

        class Function:
            max_dynamic_shared_size_bytes = 0

            def __call__(function, grid, block, args, shared_mem):  # noqa: N805 - the module's own is outside
                self.calls.append((grid, block, args, shared_mem, function.max_dynamic_shared_size_bytes))

        return SimpleNamespace(get_function=lambda name: Function())


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    fake = FakeCupy()
    monkeypatch.setitem(__import__("sys").modules, "cupy", fake)
    monkeypatch.setattr(device, "properties", lambda index: SimpleNamespace(capability=((8, 0), (9, 0))[index]))
    monkeypatch.setattr(compiling, "architecture", lambda capability: f"sm_{capability[0]}0")
    monkeypatch.setattr(compiling, "image_file", lambda name, defines, arch: tmp_path / f"{name}-{arch}.cubin")
    return fake


def on_gpu(address):
    return SimpleNamespace(data=SimpleNamespace(ptr=address), device=nullcontext())


def test_launch_passes_one_struct_by_value(cupy):
    launch = CupyLauncher().prepare(Kernel("direct.cu", "direct"), (64, 1, 1), 100 << 10)
    parameters = bytes(24) + struct.pack("<q", 5)
    launch((7, 2), parameters, (on_gpu(4096), None, on_gpu(8192)))
    ((grid, block, (argument,), shared, allowed),) = cupy.calls
    assert (grid, block, shared, allowed) == ((7, 2), (64, 1, 1), 100 << 10, 100 << 10)
    # CuPy passes a NumPy array by value if it has one element, and refuses any other.
    assert isinstance(argument, np.ndarray) and argument.size == 1
    assert argument.tobytes() == struct.pack("<QQQq", 4096, 0, 8192, 5)
    assert parameters == bytes(24) + struct.pack("<q", 5)


def test_each_gpu_has_a_module_of_its_own(cupy):
    launch = CupyLauncher().prepare(Kernel("direct.cu", "direct"), (64, 1, 1))
    for cupy.current in (0, 1, 0, 1):
        launch((1,), bytes(8), (on_gpu(256),))
    assert [index for index, _ in cupy.loaded] == [0, 1]
    assert [path.rpartition("-")[2] for _, path in cupy.loaded] == ["sm_80.cubin", "sm_90.cubin"]
    assert len(cupy.calls) == 4


def test_replaced_launcher_comes_back():
    before = launching.launcher()
    emulator = Emulator()
    with launching.replaced(emulator):
        assert launching.launcher() is emulator
    assert launching.launcher() is before
