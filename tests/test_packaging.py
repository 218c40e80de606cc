"""What is built and installed: complete, and with NumPy and Numba alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fresh import ROOT, python

import fastconv
from fastconv import registry

# What a computation may need some day, and an import must not.
LATE = ("numba", "llvmlite", "torch", "cupy", "jax", "onnx", "dask", "rich", "scipy", "ml_dtypes", "threadpoolctl")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command away from the checkout, and return what it printed."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the package."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel made of it, by name suffix."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    (sdist,) = directory.glob("*.tar.gz")
    (wheel,) = directory.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def checkout_files(*places: str) -> set[str]:
    """Return the files under some places of the checkout, relative to it, but for what programs write there."""
    written = {"__pycache__", "out"}
    tops = [ROOT / place for place in places]
    paths = [path.relative_to(ROOT) for top in tops for path in (top.rglob("*") if top.is_dir() else [top])]
    return {str(path) for path in paths if (ROOT / path).is_file() and not written & set(path.parts)}


def test_import_leaves_heavy_packages_alone():
    code = f"import sys, fastconv; print(sorted(set({LATE!r}) & set(sys.modules)))"
    assert python(code).stdout.strip() == "[]"


def test_declared_dependencies_are_numpy_and_numba():
    assert [d.partition(">=")[0] for d in project()["dependencies"]] == ["numpy", "numba"]


@pytest.mark.parametrize("extra", ["dev", "peers"])
def test_torch_is_pinned_where_it_is_a_referee(extra):
    pins = [d for d in project()["optional-dependencies"][extra] if d.startswith("torch")]
    assert pins == ["torch==2.13.0"]


def test_sdist_holds_what_building_and_testing_takes(built):
    with tarfile.open(built["sdist"]) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    expected = checkout_files(
        ".ci", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "pyproject.toml",
        "benchmarks", "fastconv", "kernels", "tests",
    )  # fmt: skip
    assert expected - members == set()


def test_wheel_holds_the_package_and_the_kernels(built):
    with zipfile.ZipFile(built["wheel"]) as archive:
        members = {name for name in archive.namelist() if ".dist-info/" not in name}
    kernels = {name.replace("kernels/", "fastconv/_kernels/") for name in checkout_files("kernels")}
    assert kernels
    assert members == checkout_files("fastconv") | kernels


def installed_alone(directory: Path, *packages: str | Path) -> Path:
    """Install packages in an environment of their own, and return where its programs are."""
    venv.create(directory / "venv", with_pip=True)
    scripts = directory / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", *packages, cwd=directory)
    return scripts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_alone_convolves(built, tmp_path):
    """The wheel in an environment of its own, with what it depends on and no more."""
    scripts = installed_alone(tmp_path, built["wheel"])

    installed = run(scripts / "python", "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    names = {line.partition("==")[0] for line in installed.split() if "==" in line}
    assert names - {"pip", "setuptools"} == {"fastconv", "numpy", "numba", "llvmlite"}

    code = """
import numpy as np, fastconv as fc
from fastconv.backends.cuda import sources
x = np.array([[1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]], np.float32)[None, None]
w = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], np.float32)[None, None]
for backend in fc.available_backends():
    print(backend, fc.conv2d(x, w, padding=1, backend=backend).astype(int).ravel().tolist())
print(fc.__file__)
print(sources.kernel_directory())
print(len(sources.source("fastdiv.cuh")))
"""
    *results, package, kernels, length = run(scripts / "python", "-c", code, cwd=tmp_path).splitlines()
    expected = [7, 12, 10, 2, 4, 15, 16, 10, 10, 6, 15, 6, 8, 10, 4, 3]
    assert results == [f"{backend} {expected}" for backend in fastconv.available_backends()]
    assert Path(package).is_relative_to(tmp_path)
    assert Path(kernels) == Path(package).parent / "_kernels"
    assert int(length) == len((ROOT / "kernels" / "fastdiv.cuh").read_text(encoding="utf-8"))

    shown = run(scripts / "fastconv", "info", "--json", cwd=tmp_path, FASTCONV_CACHE_DIR=str(tmp_path))
    assert json.loads(shown)["versions"]["fastconv"] == fastconv.__version__


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the lowest Numba is older than this Python: use 3.13")
def test_lowest_versions_compute(built, tmp_path):
    """Every compiled algorithm, with the oldest NumPy and Numba that pip may find good enough."""
    lowest = [d.replace(">=", "==") for d in project()["dependencies"]]
    scripts = installed_alone(tmp_path, built["wheel"], *lowest)
    code = """
from fastconv import registry, testing
families = list(testing.problems())
for algorithm in registry.algorithms():
    if algorithm.backend == "numba":
        testing.check_algorithm(algorithm, {p.op: p for p in families if algorithm.refuses(p) is None}.values())
        print(algorithm.key)
"""
    checked = run(scripts / "python", "-c", code, cwd=tmp_path).split()
    assert checked == [a.key for a in registry.algorithms() if a.backend == "numba"]
    assert checked
