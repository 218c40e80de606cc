"""Weights packed once: fastconv's functions with everything but the first array kept from call to call."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv.choice import plan
from fastconv.options import current

# Forms of input whose plans are kept, each with packed weights of its own.
MOST = 4


def is_constant(array: Any) -> bool:
    """Whether nobody can write to an array's memory, so that what was made of it stays true.

    The initializers of a model are such arrays. An array that a caller feeds usually is not.
    """
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or isinstance(array, bytes)


def freeze(array: Any) -> None:
    """Make an array, and those that it is a view of, constant. Others than arrays are left alone."""
    while isinstance(array, np.ndarray):
        array.setflags(write=False)
        array = array.base


class Packed:
    """A function of fastconv called with the same constant arrays again and again.

    Parameters
    ----------
    function : one of fastconv's ops
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._plans: dict[Any, tuple[tuple[Any, ...], Any]] = {}
        self._lock = threading.Lock()

    def __call__(
        self, x: Any, constants: tuple[Any, ...], residual: Any = None, arguments: Callable[[], dict[str, Any]] = dict
    ) -> Any:
        """Return ``function(x, *constants, **arguments())``, by a plan if the constants are constant.

        Parameters
        ----------
        x : ndarray
        constants : tuple of ndarray or None
        residual : ndarray, optional
        arguments : callable
            Must return the same for all inputs of one form with the same constants; it is not asked again then.
        """
        form = x.shape, x.dtype, x.flags.c_contiguous, residual is None, current()
        known = self._plans.get(form)
        if known is not None and all(map(operator.is_, known[0], constants)):
            return known[1](x) if residual is None else known[1](x, residual=residual)
        named = arguments()
        if residual is not None:
            named["residual"] = residual
        if not all(c is None or is_constant(c) for c in constants):
            return self._function(x, *constants, **named)
        if residual is not None:
            # The plan keeps its example; this one takes no memory.
            named["residual"] = np.broadcast_to(np.zeros((), residual.dtype), residual.shape)
        made = plan(self._function, x, *constants, **named)
        with self._lock:
            self._plans[form] = constants, made
            while len(self._plans) > MOST:
                del self._plans[next(iter(self._plans))]
        return made(x) if residual is None else made(x, residual=residual)
