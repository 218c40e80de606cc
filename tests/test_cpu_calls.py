"""Calls in the sources of kernels."""

from __future__ import annotations

import ast
from pathlib import Path

import fastconv.backends.cpu

# Python makes a list of more arguments than these, and older Numba (0.63) then forgets which were literals.
MOST = 30


def test_kernels_have_no_calls_of_too_many_arguments():
    folder = Path(fastconv.backends.cpu.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert len(node.args) <= MOST, f"{file}:{node.lineno}"
