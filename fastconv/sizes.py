"""Sizes along spatial axes: how many positions a window has, and how much padding gives a wanted number."""

from __future__ import annotations

from typing import TypeAlias

Sizes: TypeAlias = tuple[int, ...]
Padding: TypeAlias = tuple[tuple[int, int], ...]

AXES = "dhw"


def conv_output_size(size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int]) -> int:
    """Positions of a window along one axis: ``floor((size + padding - dilation*(kernel-1) - 1) / stride) + 1``."""
    return (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1


def pool_output_size(
    size: int, kernel: int, stride: int, dilation: int, padding: tuple[int, int], ceil_mode: bool
) -> int:
    """As :func:`conv_output_size`, or rounded up, where a window must still start inside the input or its left padding.

    The last rule is PyTorch's (``pooling_output_shape`` of ATen/native/Pool.h).
    """
    span = size + sum(padding) - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    out = -(-span // stride) + 1
    return out - 1 if (out - 1) * stride >= size + padding[0] else out


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Padding for an output of ``ceil(size / stride)``, the odd one after the input (TensorFlow's split)."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2
