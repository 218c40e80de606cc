"""What is here: versions, the machine, the backends, CUDA, the performance database and the environment, as data."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from fastconv import environment, registry, tuning
from fastconv._version import __version__
from fastconv.machine import machine
from fastconv.options import Options, applied, current

# Import name -> the name it is installed by.
_FRAMEWORKS = {
    "torch": "torch",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "jax": "jax",
    "dask": "dask",
    "scipy": "scipy",
    "ml_dtypes": "ml_dtypes",
}


def collect() -> dict[str, Any]:
    """Return everything that `fastconv info` shows, as plain data."""
    cuda_state = cuda()
    with applied(_options()):
        threads, peak = machine().threads(), machine().peak("float32")
    return {
        "versions": versions(),
        "machine": {**asdict(machine()), "threads": threads, "assumed_peak_float32": peak},
        "backends": backends(cuda_state),
        "cuda": cuda_state,
        "database": {"path": str(tuning.database().path), "records": len(tuning.database())},
        "environment": variables(),
        "frameworks": {name: tuning.installed(package) for name, package in _FRAMEWORKS.items() if find_spec(name)},
    }


def versions() -> dict[str, str | None]:
    """Return the versions that results depend on."""
    return {
        "fastconv": __version__,
        "python": platform.python_version(),
        **{name: tuning.installed(name) for name in ("numpy", "numba", "llvmlite")},
    }


def backends(cuda_state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the algorithms of each backend, where they compute, and whether that is possible here."""
    found: dict[str, dict[str, Any]] = {}
    for algorithm in registry.algorithms():
        entry = found.setdefault(algorithm.backend, {"device": algorithm.device, "algorithms": []})
        entry["algorithms"].append(algorithm.name)
        entry["available"] = algorithm.device == "cpu" or not cuda_state["missing"]
    return found


def cuda() -> dict[str, Any]:
    """Return what there is of CUDA, and under ``missing`` what stands in the way of using it."""
    state: dict[str, Any] = {"driver": _driver(), "cupy": None, "nvrtc": None, "devices": [], "missing": []}
    missing: list[str] = state["missing"]
    if state["driver"] is None:
        missing.append("no NVIDIA driver was found")
    if find_spec("cupy") is None:
        known = {12: "'fastconv[cuda12]'", 13: "'fastconv[cuda13]'"}
        fits = [known[state["driver"][0]]] if state["driver"] and state["driver"][0] in known else known.values()
        missing.append(f"CuPy is not installed: pip install {' or '.join(fits)}")
        return state
    try:
        import cupy

        state["cupy"] = cupy.__version__
        state["nvrtc"] = cupy.cuda.nvrtc.getVersion()
        for index in range(cupy.cuda.runtime.getDeviceCount()):
            properties = cupy.cuda.runtime.getDeviceProperties(index)
            state["devices"].append(
                {
                    "name": properties["name"].decode(),
                    "compute_capability": f"{properties['major']}.{properties['minor']}",
                    "memory": properties["totalGlobalMem"],
                }
            )
    except Exception as error:  # noqa: BLE001 - broken installations fail in ways of their own
        missing.append(f"CuPy does not work: {type(error).__name__}: {error}")
    if not state["devices"]:
        missing.append("no CUDA device was found")
    return state


def variables() -> dict[str, dict[str, Any]]:
    """Return every environment variable with its value, and what it does."""
    return {
        name: {"value": _value(name), "is_set": bool(os.environ.get(name)), "meaning": variable.meaning}
        for name, variable in environment.VARIABLES.items()
    }


def _options() -> Options:
    """Return the options in force; what they are by default if a variable is unreadable, which `variables` shows."""
    try:
        return current()
    except ValueError:
        return Options()


def _value(name: str) -> Any:
    try:
        return environment.read(name)
    except ValueError as error:
        return f"unreadable: {error}"


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
