"""The GPU as predictions see it, and what is missing where there is none to use."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

# Nothing here is measured. What a multiprocessor does in a cycle: fused multiply-adds by accumulator, by capability.
_FMA_PER_CYCLE = {(8, 0): 64, (8, 6): 128, (8, 9): 128, (9, 0): 128, (10, 0): 128, (12, 0): 128}
_DOUBLE_PER_CYCLE = {(8, 0): 32, (9, 0): 64, (10, 0): 64}
# The same on tensor cores, of half types by `mma.sync`; of TF32 half as many.
_TENSOR_PER_CYCLE = {(8, 0): 1024, (8, 6): 512, (8, 9): 512, (9, 0): 1280, (10, 0): 1024, (12, 0): 512}
_LAUNCH_SECONDS = 4e-6
# The oldest GPUs that have what the kernels are written with: cp.async, and mma.sync of bfloat16 and TF32.
_LEAST_CAPABILITY = 8, 0
# cudaDevAttrClockRate and cudaDevAttrMemoryClockRate, in kHz.
_CLOCKS = 13, 36
# cudaErrorNoDevice: none is built in, or CUDA_VISIBLE_DEVICES hides them.
_NO_DEVICE = 100
# The share of its speed that a multiprocessor has with one block of several that it could run.
_ALONE = 0.5


@dataclass(frozen=True)
class Properties:
    """A GPU.

    Attributes
    ----------
    name : str
    capability : (int, int)
        The compute capability.
    multiprocessors : int
    hertz : float
        Cycles a second of a multiprocessor.
    bandwidth : float
        Bytes a second from and to memory.
    shared_bytes : int
        Shared memory that a block may have.
    l2_bytes : int
        Size of the second-level cache.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    hertz: float
    bandwidth: float
    shared_bytes: int
    l2_bytes: int

    def peak(self, dtype: str) -> float:
        """Return FLOP/s of fused multiply-adds on CUDA cores with sums in ``dtype``."""
        if dtype == "float64":
            rate = _DOUBLE_PER_CYCLE.get(self.capability, 2)
        else:
            rate = _FMA_PER_CYCLE.get(self.capability, 128)
        return 2.0 * rate * self.multiprocessors * self.hertz

    def tensor_peak(self, dtype: str) -> float:
        """Return FLOP/s of tensor cores on operands of ``dtype``: float32 is computed as TF32."""
        rate = _TENSOR_PER_CYCLE.get(self.capability, 512) // (2 if dtype == "float32" else 1)
        return 2.0 * rate * self.multiprocessors * self.hertz

    def seconds(
        self, *, flops: float, moved: float, blocks: int, peak: float, resident: int = 1, launches: int = 1
    ) -> float:
        """Return what launches should take: work in waves of blocks, or memory, whichever takes longer.

        Parameters
        ----------
        flops, moved : float
            Operations, padding of tiles counted, and bytes to and from memory.
        blocks : int
            Blocks of all launches.
        peak : float
            FLOP/s that the kernel reaches with every multiprocessor at work.
        resident : int
            Blocks that a multiprocessor runs side by side.
        launches : int
        """
        each = -(-blocks // self.multiprocessors)  # blocks of the busiest multiprocessor
        # One block alone leaves gaps that others would fill.
        filled = _ALONE + (1 - _ALONE) * min(1.0, each / resident)
        working = flops / blocks * each * self.multiprocessors / (peak * filled)
        moving = moved / (self.bandwidth * min(1.0, blocks / self.multiprocessors))
        return _LAUNCH_SECONDS * launches + max(working, moving)


@cache
def properties(index: int) -> Properties:
    """Return a device's properties, asked of the CUDA runtime."""
    import cupy

    runtime = cupy.cuda.runtime
    known: dict[str, Any] = runtime.getDeviceProperties(index)
    # Among the properties there are no clocks since CUDA 13. Twice the memory's for double data rate.
    hertz, memory_hertz = (1e3 * runtime.deviceGetAttribute(attribute, index) for attribute in _CLOCKS)
    return Properties(
        name=known["name"].decode(),
        capability=(known["major"], known["minor"]),
        multiprocessors=known["multiProcessorCount"],
        hertz=hertz or 1.5e9,
        bandwidth=2 * (memory_hertz or 1.6e9) * known.get("memoryBusWidth", 384) / 8,
        shared_bytes=known.get("sharedMemPerBlockOptin", 48 << 10),
        l2_bytes=known.get("l2CacheSize", 4 << 20),
    )


def current() -> int | None:
    """Return the current GPU's index; None without CuPy."""
    if "cupy" not in sys.modules and find_spec("cupy") is None:
        return None
    import cupy

    try:
        return int(cupy.cuda.runtime.getDevice())
    except cupy.cuda.runtime.CUDARuntimeError:
        return None


def using(index: int | None) -> AbstractContextManager[Any]:
    """Return a context in which a GPU is the current one; None leaves it as it is."""
    if index is None:
        return nullcontext()
    import cupy

    context: AbstractContextManager[Any] = cupy.cuda.Device(index)
    return context


def state() -> dict[str, Any]:
    """Return what there is of CUDA, and under ``missing`` what stands in the way of using it."""
    found: dict[str, Any] = {"driver": _driver(), "cupy": None, "nvrtc": None, "devices": [], "missing": []}
    missing: list[str] = found["missing"]
    if found["driver"] is None:
        missing.append("no NVIDIA driver was found")
    if find_spec("cupy") is None:
        known = {12: "'fastconv[cuda12]'", 13: "'fastconv[cuda13]'"}
        fits = [known[found["driver"][0]]] if found["driver"] and found["driver"][0] in known else known.values()
        missing.append(f"CuPy is not installed: pip install {' or '.join(fits)}")
        return found
    try:
        import cupy

        found["cupy"] = cupy.__version__
        try:
            found["nvrtc"] = cupy.cuda.nvrtc.getVersion()
        except Exception as error:  # noqa: BLE001 - of which type depends on how CuPy looked for it
            missing.append(
                f"NVRTC, which compiles the kernels, was not found ({error}): "
                "install a CUDA toolkit, or CuPy with its extra 'ctk'"
            )
        if found["driver"] is None:
            return found
        for index in range(_device_count()):
            properties = cupy.cuda.runtime.getDeviceProperties(index)
            found["devices"].append(
                {
                    "name": properties["name"].decode(),
                    "compute_capability": _dotted((properties["major"], properties["minor"])),
                    "memory": properties["totalGlobalMem"],
                }
            )
    except Exception as error:  # noqa: BLE001 - broken installations fail in ways of their own
        missing.append(f"CuPy does not work: {type(error).__name__}: {error}")
        return found
    capable = [d for d in found["devices"] if tuple(map(int, d["compute_capability"].split("."))) >= _LEAST_CAPABILITY]
    if not found["devices"]:
        missing.append("no CUDA device was found")
    elif not capable:
        shown = ", ".join(f"{d['name']} has {d['compute_capability']}" for d in found["devices"])
        missing.append(_needs(shown))
    return found


def _device_count() -> int:
    import cupy

    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if error.status != _NO_DEVICE:
            raise
        return 0


@cache
def missing() -> str | None:
    """Return in words what stands in the way of using a GPU; None if nothing does."""
    return "; ".join(state()["missing"]) or None


def refusal() -> str | None:
    """Return in words what stands in the way of using the current GPU; None if nothing does."""
    reason = missing()
    if reason is not None:
        return reason
    index = current()
    here = properties(0 if index is None else index)
    return None if here.capability >= _LEAST_CAPABILITY else _needs(f"{here.name} has {_dotted(here.capability)}")


def _needs(found: str) -> str:
    return f"the kernels need compute capability {_dotted(_LEAST_CAPABILITY)}: {found}"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _driver() -> tuple[int, int] | None:
    """Return the CUDA version that the driver supports, asked of the driver itself; None without one."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10
