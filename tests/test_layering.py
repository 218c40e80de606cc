"""The house's order: no module imports one above it, no backend knows another, and importing is cheap."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fresh import python

import fastconv

HOUSE = Path(fastconv.__file__).parent

# From the ground up. A module imports from the floors below its own, never from its own or from above.
FLOORS = (
    ("_version", "sizes", "environment", "files", "code_files", "progress", "borrowed", "buffers"),
    ("arguments",),
    ("record",),
    ("problem",),
    ("notation", "geometry", "epilogue", "arrays", "options", "tuning"),
    ("machine", "networks"),
    ("algorithm",),
    ("registry", "backends"),
    ("testing",),
    ("contest",),
    ("dispatch",),
    ("repeat",),
    ("call",),
    ("lowering",),
    ("ops", "columns", "pooling"),
    ("grad",),
    ("choice",),
    ("torch", "onnx", "jax", "dask", "nn"),
    ("info",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def module_of(path: Path) -> str:
    """Return the dotted name of a file below the package."""
    return ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"}


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = {name for name in names if name.removeprefix("fastconv.") in MODULES}
            # `from fastconv.problem import Sizes` imports a module, `from fastconv import arrays` too.
            found |= inside | ({node.module} if names - inside else set())
            assert node.module != "fastconv" or names == inside, f"{path}:{node.lineno}: imports the whole package"
    return {name.removeprefix("fastconv.") for name in found if name.startswith("fastconv.")}


def test_every_module_has_its_floor():
    assert {name.partition(".")[0] for name in MODULES} == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_below(module):
    room, _, _ = module.partition(".")
    for imported in imports(MODULES[module]):
        assert imported in MODULES, f"{module} imports {imported}, which does not exist"
        below, _, _ = imported.partition(".")
        if below != room:
            assert FLOOR[below] < FLOOR[room], f"{module} imports {imported} from its own floor or above"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("backends.")])
def test_backend_imports_no_other_backend(module):
    _, backend, *_ = module.split(".")
    others = {name for name in imports(MODULES[module]) if name.startswith("backends.")}
    assert {name.split(".")[1] for name in others} <= {backend}


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    while graph:
        leaves = {name for name, below in graph.items() if not below & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


def test_nothing_but_the_package_itself_is_public_without_saying_so():
    names = {name for name in vars(fastconv) if not name.startswith("_") and name not in FLOOR}
    assert names - {"annotations"} <= set(fastconv.__all__)
    assert all(hasattr(fastconv, name) for name in fastconv.__all__)
    assert list(fastconv.__all__) == sorted(fastconv.__all__)


def loaded_after(code: str) -> set[str]:
    """Return the top-level packages that a fresh process has loaded after some code."""
    names = python(f"{code}\nimport sys\nprint(*sorted(sys.modules))").stdout.split()
    return {name.partition(".")[0] for name in names}


HEAVY = {
    "numba",
    "llvmlite",
    "cupy",
    "torch",
    "scipy",
    "ml_dtypes",
    "rich",
    "threadpoolctl",
    "onnx",
    "onnxruntime",
    "jax",
    "dask",
}


def test_import_loads_numpy_and_nothing_heavy():
    loaded = loaded_after("import fastconv")
    assert {"fastconv", "numpy"} <= loaded
    assert not loaded & HEAVY


def test_a_call_without_numba_loads_no_framework():
    code = """
import numpy, fastconv
fastconv.conv2d(numpy.ones((1, 1, 4, 4)), numpy.ones((1, 1, 3, 3)), backend="reference")
"""
    assert not loaded_after(code) & {"numba", "cupy", "torch", "scipy", "onnx", "onnxruntime", "jax", "dask"}
