"""What is here: versions, the machine, the backends, CUDA, the performance database and the environment, as data."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from fastconv import environment, registry, tuning
from fastconv._version import __version__
from fastconv.backends.cuda import device
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
    cuda_state = device.state()
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
