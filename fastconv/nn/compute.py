"""Who computes elementwise work: Numba's kernels for NumPy arrays of float32 and float64, else array expressions."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from fastconv.nn import plain


def for_array(array: Any) -> ModuleType:
    """Return `fastconv.nn.native` or `fastconv.nn.plain`: modules of the same functions."""
    if isinstance(array, np.ndarray) and array.dtype.char in "fd":
        from fastconv.nn import native

        return native
    return plain
