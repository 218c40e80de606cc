"""How arrays lie in memory."""

from __future__ import annotations

from fastconv.problem import Sizes


def is_dense(strides: Sizes, shape: Sizes, step: int) -> bool:
    """Whether elements lie one step from another, without gaps."""
    for stride, length in zip(strides[::-1], shape[::-1], strict=True):
        if stride != step and length > 1:
            return False
        step *= length
    return True
