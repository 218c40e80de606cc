"""The CUDA backend as a user meets it where there is no GPU, and what is asked of CuPy where there is one."""

from __future__ import annotations

import struct
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_emulation import Emulator, emulated, fake_cupy

import fastconv as fc
from fastconv import arrays, registry, testing
from fastconv.backends.cuda import compiling, device, launching
from fastconv.backends.cuda.algorithm import usual_strides
from fastconv.backends.cuda.launching import CupyLauncher, Kernel
from fastconv.backends.cuda.tensorcore.form import Form
from fastconv.backends.cuda.tensorcore.product import Product
from fastconv.notation import parse_problem
from fastconv.options import current

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
        self.calls, self.loaded, self.current, self.declared = [], [], 0, 0
        self.functions = {}
        self.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: self.current))

    def RawModule(self, path):  # noqa: N802 - CuPy's name
        self.loaded.append((self.current, path))

        class Function:
            shared_size_bytes = self.declared

            def __init__(function):  # noqa: N805
                function.asked = []

            @property
            def max_dynamic_shared_size_bytes(function):  # noqa: N805
                return max([(48 << 10) - function.shared_size_bytes, *function.asked[-1:]])

            @max_dynamic_shared_size_bytes.setter
            def max_dynamic_shared_size_bytes(function, value):  # noqa: N805
                function.asked.append(value)

            def __call__(function, grid, block, args, shared_mem):  # noqa: N805 - the module's own is outside
                self.calls.append((grid, block, args, shared_mem, function.max_dynamic_shared_size_bytes))

        # As CuPy does: what is loaded once on a GPU is the same function for all who ask for it.
        return SimpleNamespace(
            get_function=lambda name: self.functions.setdefault((self.current, path, name), Function())
        )


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


def test_a_later_plan_leaves_an_earlier_ones_shared_memory(cupy):
    large, small = (CupyLauncher().prepare(Kernel("direct.cu", "direct"), (64, 1, 1), n << 10) for n in (100, 60))
    for launch in (large, small, large):
        launch((1,), bytes(8), (on_gpu(256),))
    assert all(allowed >= shared for *_, shared, allowed in cupy.calls)


def test_shared_memory_that_a_kernel_declares_counts(cupy):
    cupy.declared = 4 << 10
    CupyLauncher().prepare(Kernel("direct.cu", "direct"), (64, 1, 1), 46 << 10)((1,), bytes(8), (on_gpu(256),))
    ((*_, allowed),) = cupy.calls
    assert allowed >= 46 << 10
    (function,) = cupy.functions.values()
    assert function.asked  # 46 KiB alone would be within what every block has


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


class OnGpu:
    """An array as CuPy has it, as far as reading arguments goes."""

    __module__ = "cupy.fake"
    __cuda_array_interface__ = None

    def __init__(self, index):
        self.device = SimpleNamespace(id=index)


def test_arrays_on_two_gpus_do_not_mix():
    _, kind = arrays.read("input", OnGpu(0))
    assert (kind.name, kind.device, kind.gpu) == ("CuPy", "cuda", 0)
    arrays.read_as("weight", OnGpu(0), kind, "input")
    with pytest.raises(ValueError, match="weight: is on GPU 1, but input is on GPU 0"):
        arrays.read_as("weight", OnGpu(1), kind, "input")
    with pytest.raises(TypeError, match="weight: is a NumPy array on cpu, but input is a CuPy array on cuda"):
        arrays.read_as("weight", W, kind, "input")


@pytest.fixture
def gpus(monkeypatch):
    """CuPy and two GPUs, played by NumPy and the emulator."""
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.module())
    with emulated():
        yield sys.modules["cupy"]


def placed(gpus, index, array):
    with gpus.cuda.Device(index):
        return gpus.ndarray(array)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_a_whole_call_on_the_gpu_and_its_gradients(gpus, layout):
    problem = parse_problem("conv2d n2 c3 i7 oc4 k3 p1")
    x, w = testing.integer_inputs(problem.replace(layout=layout))
    (dy, _) = testing.integer_inputs(problem.replace(direction="dgrad", layout=layout))
    expected, pullback = fc.vjp(fc.conv2d, x, w, padding=1, backend="reference")
    for _ in range(2):  # the second time from memory
        y, back = fc.vjp(fc.conv2d, placed(gpus, 1, x), placed(gpus, 1, w), padding=1)
        assert y.device.id == 1
        np.testing.assert_array_equal(y.array, expected)
        for gradient, right in zip(back(placed(gpus, 1, dy)), pullback(dy), strict=True):
            assert (gradient is None) == (right is None)
            if right is not None:
                assert gradient.device.id == 1
                np.testing.assert_array_equal(gradient.array, right)
    assert gpus.cuda.Device.current == 0


def test_a_call_on_the_gpu_is_read_once_a_form(gpus, monkeypatch):
    x, w = placed(gpus, 0, X), placed(gpus, 0, W)
    expected = fc.conv2d(x, w, padding=1).array
    monkeypatch.setattr(fc.call.Call, "run", None)
    np.testing.assert_array_equal(fc.conv2d(x, w, padding=1).array, expected)
    for other in (placed(gpus, 1, X), placed(gpus, 0, X[:, :, ::-1])):
        with pytest.raises(TypeError, match="not callable"):  # so it is read anew
            fc.conv2d(other, placed(gpus, other.device.id, W), padding=1)


def test_every_gpu_has_plans_of_its_own(gpus, monkeypatch):
    made_on = []
    plan = fc.dispatch.Plan
    monkeypatch.setattr(
        "fastconv.backends.cuda.algorithm.Plan",
        lambda *arguments: made_on.append(gpus.cuda.Device.current) or plan(*arguments),
    )
    arguments = {index: (placed(gpus, index, X), placed(gpus, index, W)) for index in (0, 1)}
    for index in (0, 1, 0, 1):
        assert fc.conv2d(*arguments[index]).device.id == index
    assert made_on == [0, 1]
    made = fc.plan(fc.conv2d, *arguments[1], stride=2)
    assert made(arguments[1][0]).device.id == 1
    assert made_on == [0, 1, 1]


def test_a_call_finds_what_was_warmed_up_on_its_gpu(gpus):
    planned = fc.dispatch._planned.cache_info
    for index in (0, 1):
        with gpus.cuda.Device(index):
            fc.warmup("conv2d n1 c2 i5 oc3 k3 cuda")
        before = planned().misses
        assert fc.conv2d(placed(gpus, index, X), placed(gpus, index, W)).device.id == index
        assert planned().misses == before


def test_no_images_and_residuals_are_handled_on_the_arrays_gpu(gpus):
    x, w, dy = (placed(gpus, 1, np.zeros(shape, np.float32)) for shape in ((0, 2, 5, 5), (3, 2, 3, 3), (0, 3, 3, 3)))
    assert not fc.grad.conv2d_weight(x, (3, 2, 3, 3), dy).array.any()
    x, y = placed(gpus, 1, X), placed(gpus, 1, np.ones((1, 3, 3, 3), np.float32))
    _, pullback = fc.vjp(fc.conv2d, x, w, residual=y)
    assert np.array_equal(pullback(y)[-1].array, y.array)


def runtime(capability, **attributes):
    known = {"name": b"Old", "major": capability[0], "minor": capability[1], "totalGlobalMem": 1 << 30}
    known |= {"multiProcessorCount": 10, "memoryBusWidth": 256}
    return SimpleNamespace(
        CUDARuntimeError=RuntimeError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda index: known,
        deviceGetAttribute=lambda attribute, index: {13: 1_980_000, 36: 2_619_000}[attribute],
    )


@pytest.mark.parametrize(("capability", "told"), [((7, 5), "need compute capability 8.0: Old has 7.5"), ((8, 0), None)])
def test_gpus_that_are_too_old_are_told(monkeypatch, capability, told):
    cuda = SimpleNamespace(runtime=runtime(capability), nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, __version__="14"))
    monkeypatch.setattr(device, "_driver", lambda: (12, 9))
    monkeypatch.setattr(device, "find_spec", lambda name: True)
    missing = device.state()["missing"]
    assert not missing if told is None else told in missing[0]


def test_an_old_gpu_beside_a_newer_one_is_told_where_it_is_the_current_one(monkeypatch):
    known = [runtime((8, 6)).getDeviceProperties(0), runtime((7, 5)).getDeviceProperties(1)]
    made = runtime((8, 6))
    made.getDeviceCount, made.getDeviceProperties = lambda: 2, known.__getitem__
    cuda = SimpleNamespace(runtime=made, nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, __version__="14"))
    monkeypatch.setattr(device, "_driver", lambda: (12, 9))
    monkeypatch.setattr(device, "find_spec", lambda name: True)
    for cached in (device.missing, device.properties):
        cached.cache_clear()
    try:
        told = []
        for index in (0, 1):
            made.getDevice = lambda index=index: index
            told.append(CupyLauncher().missing())
        assert told == [None, "the kernels need compute capability 8.0: Old has 7.5"]
    finally:
        for cached in (device.missing, device.properties):
            cached.cache_clear()


class RuntimeFailedError(RuntimeError):
    """As CuPy's error of the CUDA runtime."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


def _raising(error):
    def call(*_):
        raise error

    return call


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            {"nvrtc": RuntimeError("no libnvrtc")},
            [
                "NVRTC, which compiles the kernels, was not found (no libnvrtc): install a CUDA toolkit, or CuPy with "
                "its extra 'ctk'"
            ],
        ),
        ({"count": RuntimeFailedError(100)}, ["no CUDA device was found"]),
        ({"count": RuntimeFailedError(35)}, ["CuPy does not work: RuntimeFailedError: status 35"]),
    ],
)
def test_what_is_missing_is_told_and_nothing_else(monkeypatch, broken, told):
    made = runtime((9, 0))
    made.CUDARuntimeError = RuntimeFailedError
    if "count" in broken:
        made.getDeviceCount = _raising(broken["count"])
    version = _raising(broken["nvrtc"]) if "nvrtc" in broken else lambda: (12, 9)
    cuda = SimpleNamespace(runtime=made, nvrtc=SimpleNamespace(getVersion=version))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, __version__="14"))
    monkeypatch.setattr(device, "_driver", lambda: (12, 9))
    monkeypatch.setattr(device, "find_spec", lambda name: True)
    assert device.state()["missing"] == told


def test_clocks_are_asked_of_the_runtime(monkeypatch):
    """CUDA 13 has taken them out of the properties."""
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime((9, 0)))))
    device.properties.cache_clear()
    try:
        found = device.properties(0)
    finally:
        device.properties.cache_clear()
    assert found.hertz == 1.98e9
    assert found.bandwidth == 2 * 2.619e9 * 256 / 8


def test_a_plan_keeps_its_options():
    """A form of arrays that a plan meets later is prepared under the options that it was made with."""
    problem = parse_problem("conv2d n4 c16 i14 oc16 k3 p1 channels_last cuda").replace(dtype="float16")
    seen = []
    algorithm = registry.find("cuda/tensorcore")
    prepare = algorithm.prepare
    with emulated(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "prepare", lambda *given: seen.append(current().max_workspace) or prepare(*given))
        with fc.options(max_workspace=1 << 30):
            plan = algorithm.plan(problem)
        inputs = testing.random_inputs(problem)
        outputs = (np.empty(problem.y_shape, np.float16),)
        plan.run(tuple(testing.read_only_view(a) for a in inputs), outputs)
    assert seen == [1 << 30] * 2


def test_a_field_of_structured_elements_is_refused():
    problem = parse_problem("max_pool2d n1 c1 i4 k2 cuda")
    whole = np.zeros((1, 1, 4, 4), np.dtype([("a", np.float32), ("b", np.int8)]))
    with emulated():
        plan = registry.find("cuda/pool").plan(problem)
        with pytest.raises(ValueError, match="strides: expected multiples of 4 bytes"):
            plan.run((whole["a"],), (np.empty(problem.y_shape, np.float32),))


@pytest.mark.parametrize(("operand", "size"), [(0, 4), (1, 4), (2, 8)])
def test_elements_between_addresses_are_refused(operand, size):
    """No GPU reads them: it would be lost to the process. Indices have a size of their own."""
    problem = parse_problem("max_pool2d n1 c1 i4 k2 indices cuda")
    arrays = [np.zeros(problem.x_shape, np.float32), np.empty(problem.y_shape, np.float32)]
    arrays.append(np.empty(problem.y_shape, np.int64))
    array, shift = arrays[operand], size // 2
    arrays[operand] = np.zeros(array.nbytes + shift, np.uint8)[shift:].view(array.dtype).reshape(array.shape)
    with emulated():
        plan = registry.find("cuda/pool").plan(problem)
        with pytest.raises(ValueError, match=f"addresses: expected multiples of {size} bytes"):
            plan.run((arrays[0],), tuple(arrays[1:]))


def test_nothing_is_timed_on_a_gpu_yet():
    problem = parse_problem("conv2d n1 c8 i8 oc8 k3 cuda")
    with emulated():
        with pytest.raises(ValueError, match="timed on the CPU only"):
            fc.tune(problem)
        with fc.options(autotune=True):  # computes all the same
            assert fc.dispatch.plan_for(problem, current()).algorithm.device == "cuda"


@pytest.mark.parametrize("text", ["max_unpool2d n2 c64 i8 o16", "max_pool2d n2 c8 i9 k3", "unfold n2 c8 i7 k3"])
def test_something_solves_every_pool_whatever_the_workspace(text):
    with emulated(), fc.options(max_workspace=0):
        assert fc.explain(parse_problem(f"{text} cuda")).winner is not None


def test_large_weights_need_no_packing():
    """Offsets within a weight are of its rows: 4096 of 4096 half numbers are far from 2^31."""
    problem = parse_problem("linear n16 c4096 oc4096 cuda").replace(dtype="float16")
    form = Form(Product(problem), usual_strides(problem), 16)
    assert form.matrix.packing is None


@pytest.mark.parametrize(
    "text", ["conv2d n1 c70000 i1 oc70000 k1 g70000 cuda", "conv2d n1 c140000 i1 oc140000 k1 g70000 cuda"]
)
def test_more_groups_than_a_grid_has_rows_are_left_to_others(text):
    problem = parse_problem(text)
    with emulated():
        for key in ("cuda/depthwise", "cuda/grouped"):
            assert registry.find(key).refuses(problem)
        assert registry.find("cuda/direct").refuses(problem) is None
