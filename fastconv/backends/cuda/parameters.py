"""Parameter structs: what the host hands to a kernel, laid out as the C++ compiler lays it out.

A kernel takes one struct by value: first its pointers, then numbers. `Struct` is the host's half; the kernel's is the
struct of the same name in ``kernels/``. Fields have the same order and types there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INT = "<i4"
LONG = "<i8"
FASTDIV = ("<u4", (4,))
"""``FastDiv<unsigned int>`` of ``kernels/fastdiv.cuh``."""
LONG_FASTDIV = ("<u8", (4,))
"""``FastDiv<unsigned long long>``."""


def array(kind: Any, count: int) -> tuple[Any, tuple[int, ...]]:
    """Return the type of an array of a field type, such as ``int name[count]``."""
    base, shape = kind if isinstance(kind, tuple) else (kind, ())
    return base, (count, *shape)


class Struct:
    """A parameter struct.

    Parameters
    ----------
    pointers : sequence of str
        The names of the arrays whose addresses it begins with.
    fields : mapping of str to type
        The numbers that follow: `INT`, `LONG`, `FASTDIV`, an `array` of one of them, or a nested ``numpy.dtype``.
    """

    def __init__(self, pointers: Sequence[str], fields: Mapping[str, Any]) -> None:
        self.pointers = tuple(pointers)
        self.dtype = np.dtype([*((name, "<u8") for name in pointers), *_typed(fields)], align=True)

    def pack(self, **values: Any) -> bytes:
        """Return the struct's bytes, its pointers zero.

        Raises
        ------
        TypeError
            If a field lacks its value, or a value its field.
        """
        names = set(self.dtype.names or ()) - set(self.pointers)
        if names != values.keys():
            raise TypeError(f"fields: {sorted(names ^ values.keys())} differ between the struct and its values")
        record = np.zeros((), self.dtype)
        for name, value in values.items():
            record[name] = value
        return record.tobytes()


def nested(fields: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the type of a struct within a struct."""
    return np.dtype(list(_typed(fields)), align=True)


def _typed(fields: Mapping[str, Any]) -> list[Any]:
    return [(name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in fields.items()]


def fastdiv(divisor: int, bits: int = 32) -> tuple[int, int, int, int]:
    """Return the four words of a prepared divisor, by the formulas of ``kernels/fastdiv.cuh``."""
    length = (divisor - 1).bit_length()
    multiplier = (1 << bits) * ((1 << length) - divisor) // divisor + 1
    return divisor, multiplier, min(length, 1), max(length - 1, 0)
