"""How JAX's programs store weights: in other orders of their axes than fastconv's problems have, or backwards.

XLA would turn and transpose a weight before every call, which takes as long as a convolution of a small map. fastconv
reads it where it lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

# Axes of a weight before those of its kernel: output channels, input channels.
_CHANNELS = 2


class Stored(NamedTuple):
    """How a weight (K, C, kernel) is stored.

    Attributes
    ----------
    order : tuple of int
        Which of the weight's axes each axis of the array is.
    turned : bool
        Whether the kernel's axes run backwards.
    """

    order: tuple[int, ...]
    turned: bool = False

    @classmethod
    def of(cls, order: Iterable[int], turned: bool = False) -> Self:
        return cls(tuple(map(int, order)), turned)

    @property
    def turned_axes(self) -> range:
        """The weight's axes that run backwards."""
        return range(_CHANNELS, len(self.order)) if self.turned else range(0)

    @property
    def transposed(self) -> Stored:
        """The same array, read as the weight of the transpose: channels exchanged, and the kernel the other way."""
        return Stored(tuple(1 - axis if axis < _CHANNELS else axis for axis in self.order), not self.turned)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the array's shape, of a weight's."""
        return tuple(shape[axis] for axis in self.order)

    def store(self, weight: Any) -> Any:
        """Return the array that stores a weight."""
        return jnp.flip(weight, self.turned_axes).transpose(self.order)

    def take(self, array: Any) -> Any:
        """Return the weight that an array stores."""
        return jnp.flip(array.transpose(np.argsort(self.order)), self.turned_axes)
