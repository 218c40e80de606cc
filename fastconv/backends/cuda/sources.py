"""Where the CUDA sources are: inside the package when it was installed from a wheel, beside it in a checkout."""

from __future__ import annotations

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
