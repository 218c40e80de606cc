"""Where the CUDA sources are: inside the package when it was installed from a wheel, beside it in a checkout."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]
_PLACES = (_PACKAGE / "_kernels", _PACKAGE.parent / "kernels")


@cache
def kernel_directory() -> Path:
    """Return the directory of the CUDA sources.

    Raises
    ------
    FileNotFoundError
        If there is none, which a broken installation alone can cause; the message says where it was looked for.
    """
    for place in _PLACES:
        if any(place.glob("*.cu*")):
            return place
    raise FileNotFoundError(f"no CUDA sources in {' or '.join(map(str, _PLACES))}: fastconv is not installed whole")


def source(name: str) -> str:
    """Return the text of a CUDA source or header.

    Parameters
    ----------
    name : str
        Its file name, such as ``fastdiv.cuh``.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message lists those there are.
    """
    directory = kernel_directory()
    names = sorted(path.name for path in directory.glob("*.cu*"))
    if name not in names:
        raise FileNotFoundError(f"name: no CUDA source {name!r} in {directory}; there are {', '.join(names)}")
    return (directory / name).read_text(encoding="utf-8")


_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)


def inlined(text: str, name: str) -> str:
    """Return a CUDA source with the text of every header in the place of its ``#include``, each of them once.

    Parameters
    ----------
    text, name : str
        The source, and what its lines are called in the compiler's messages.
    """
    seen: set[str] = set()

    def whole(text: str, name: str) -> str:
        seen.add(name)
        parts, line, position = [f'#line 1 "{name}"\n'], 1, 0
        text = text.replace("#pragma once\n", "\n")
        for match in _INCLUDE.finditer(text):
            before = text[position : match.start()]
            line += before.count("\n") + 1
            header = match[1]
            included = "" if header in seen else whole(source(header), header)
            parts += [before, included, f'\n#line {line} "{name}"\n']
            position = match.end() + 1
        return "".join((*parts, text[position:]))

    return whole(text, name)


@cache
def translation_unit(name: str, defines: tuple[tuple[str, str], ...] = ()) -> str:
    """Return what a compiler is given: the macros, the source, and its headers, in one text.

    The compiler's cache thereby sees every change of a header.
    """
    return "".join(f"#define {macro} {value}\n" for macro, value in defines) + inlined(source(name), name)
